"""One choice: from the engine's tokens to text, stop strings and aligned log-probabilities. Pure, no I/O."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from braid.core.request import FAILED, Delta, TokenLogprobs
from braid.core.sampling import SamplingParams
from braid.server.errors import failed
from braid.text.stream import TextStream
from braid.text.tokenizer import Tokenizer


class Token(NamedTuple):
    token_id: int
    logprobs: TokenLogprobs | None


class ChoiceDelta(NamedTuple):
    """What a client sees of a choice at once; the last one has a ``finish_reason``.

    ``tokens`` are those whose text is complete with this delta; kept only where log-probabilities or token ids
    were asked for.
    """

    number: int
    text: str
    tokens: tuple[Token, ...]
    finish_reason: str | None
    stop_reason: int | str | None
    num_tokens: int = 0
    """Tokens that came with this delta, whether their text is shown yet or not."""


class ChoiceDecoder:
    """Turns the deltas of one sequence into what its client sees.

    Text that may begin a stop string is held back, and the tokens it came from with it: tokens are released when
    the text sent so far covers their bytes, all that are left with the last delta.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        number: int,
        *,
        keep_tokens: bool = False,
        keep_special: frozenset[int] = frozenset(),
    ) -> None:
        self.number = number
        self.num_tokens = 0
        self.num_cached_tokens = 0
        self.finish_reason: str | None = None
        self.prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
        """Of the prompt's tokens, from the first delta on; kept only where they were asked for."""
        self._tokenizer = tokenizer
        self._params = params
        self._stream = TextStream(tokenizer, params, keep_special=keep_special)
        self._hidden = (
            tokenizer.special_token_ids - keep_special if params.skip_special_tokens else frozenset()
        )
        self._unreported = 0
        self._keep_tokens = keep_tokens or params.logprobs is not None
        self._pending: deque[tuple[int, Token]] = deque()
        self._bytes_seen = 0
        self._bytes_sent = 0

    def push(self, delta: Delta) -> ChoiceDelta | None:
        """None where nothing can be shown yet.

        Raises:
            RequestFailedError: the engine failed on this request.
            OverloadedError: it did for want of memory.
            EngineDeadError: the engine ended this request without being asked to.
        """
        if delta.finish_reason in FAILED:
            raise failed(delta)
        self.num_cached_tokens = max(self.num_cached_tokens, delta.num_cached_tokens)
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        text, stopped = self._decode(delta)
        stop_reason = stopped if stopped is not None else delta.stop_reason
        if stopped is not None:
            self.finish_reason = "stop"
        elif delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason.value
            text += self._stream.finish()
        tokens = self._release(text)
        if not text and not tokens and self.finish_reason is None:
            return None
        count, self._unreported = self._unreported, 0
        return ChoiceDelta(self.number, text, tokens, self.finish_reason, stop_reason, count)

    def _decode(self, delta: Delta) -> tuple[str, str | None]:
        """Tokens behind a stop string do not count: an engine may have sent more than were needed."""
        pushed = self._stream.push(delta.token_ids)
        self.num_tokens += pushed.num_tokens
        self._unreported += pushed.num_tokens
        if self._keep_tokens:
            for position in range(pushed.num_tokens):
                self._remember(delta, position)
        return pushed.text, pushed.stopped

    def _remember(self, delta: Delta, position: int) -> None:
        token_id = delta.token_ids[position]
        self._bytes_seen += 0 if token_id in self._hidden else len(self._tokenizer.token_bytes(token_id))
        logprobs = None if delta.logprobs is None else delta.logprobs[position]
        self._pending.append((self._bytes_seen, Token(token_id, logprobs)))

    def _release(self, text: str) -> tuple[Token, ...]:
        if not self._keep_tokens:
            return ()
        self._bytes_sent += len(text.encode())
        ready = []
        while self._pending and (self.finish_reason is not None or self._pending[0][0] <= self._bytes_sent):
            ready.append(self._pending.popleft()[1])
        return tuple(ready)
