"""What a stub server is told and what it knows: options, the prompts and faults, who waits, and a log."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import msgspec

from braid.core.errors import BraidError
from braid.lab.replay.stub.words import BOS, REPLY, Pieces, PrefixCache, WordTokenizer

Fault = Literal["429", "503", "500", "html", "rubbish", "not_http", "reset", "cut", "error_event", "silence"]
FAULTS: tuple[Fault, ...] = (
    "429",
    "503",
    "500",
    "html",
    "rubbish",
    "not_http",
    "reset",
    "cut",
    "error_event",
    "silence",
)
"""
    429, 503      refused, with Retry-After
    500           an error
    html          200 and a web page
    rubbish       200 and something that is not JSON where JSON should be
    not_http      bytes that are no answer
    reset         the connection ends before an answer
    cut           the connection ends in the middle of the answer
    error_event   an error in the middle of the stream (of an answer that is not streamed: the same as 500)
    silence       no answer, and no end
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class StubOptions:
    """How a stub behaves.

    Args:
        model, max_model_len: its model and context.
        ttft_s: from the start of a request to its first token; ``ttft_per_token_s`` more for every prompt token that
            the cache does not know.
        tbt_s: between tokens.
        concurrency: requests that are served at a time, in order of arrival; the others wait. None for any number.
        cache_block: an endless prefix cache of prompts and replies in blocks of so many tokens; None for no cache.
        bos: a text prompt begins with a BOS token.
        has_tokenize: /tokenize and /detokenize are there.
        natural_tokens: a reply ends by itself after so many; None: never before ``max_tokens``.
        extras: ``ignore_eos`` and ``min_tokens`` are obeyed, ignored, or refused as unknown.
        continuous_usage: ``continuous_usage_stats`` is obeyed; otherwise it is ignored.
        api_key: asked for; None for an open server.
        faults: share of the generation requests with each fault; spread evenly, the same at every start.
        retry_after_s: of refusals, in whole seconds.
        accept_delay_s: every new connection is left alone for so long.
        stall: the whole server stands still, so many seconds after the first generation request, for so long.
    """

    model: str = "stub"
    max_model_len: int = 1_048_576
    ttft_s: float = 0.0
    ttft_per_token_s: float = 0.0
    tbt_s: float = 0.0
    concurrency: int | None = None
    cache_block: int | None = None
    bos: bool = False
    has_tokenize: bool = True
    natural_tokens: int | None = None
    extras: Literal["obeyed", "ignored", "refused"] = "obeyed"
    continuous_usage: bool = True
    api_key: str | None = None
    faults: Mapping[str, float] = field(default_factory=dict)
    retry_after_s: int = 1
    accept_delay_s: float = 0.0
    stall: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.faults) - set(FAULTS))
        if unknown:
            raise StubError(f"{unknown[0]!r} is no fault; one of: {', '.join(FAULTS)}")
        if min(self.faults.values(), default=0) < 0 or sum(self.faults.values()) > 1:
            raise StubError(
                f"the faults' shares must be in [0, 1], and so must their sum: {dict(self.faults)}"
            )


class StubError(BraidError, ValueError):
    """An option has a wrong value, or the address cannot be had."""


@dataclass(slots=True)
class Seen:
    """A generation request that the stub has seen.

    Args:
        arrival_s: when its last byte was there, on ``time.monotonic()``.
        token_times_s: when each token was written; of an answer in one piece, none.
        ended: ``done``, ``hung_up`` (the client went away) or the fault; empty while it is open.
    """

    number: int
    arrival_s: float
    path: str
    prompt_tokens: int
    cached_tokens: int
    max_tokens: int
    program: str
    stream: bool
    connection: int
    fault: str = ""
    token_times_s: list[float] = field(default_factory=list)
    ended: str = ""


class _Message(msgspec.Struct):
    role: str
    content: str | list[Any] | None = None


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class Body(msgspec.Struct):
    model: str | None = None
    prompt: str | list[int] | None = None
    messages: list[_Message] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None
    return_token_ids: bool = False
    add_special_tokens: bool = True
    tokens: list[int] | None = None


class RefusedError(Exception):
    """A request is answered with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


_decode = msgspec.json.Decoder(Body).decode


def parse(body: bytes) -> Body:
    """A request's body.

    Raises:
        RefusedError: it is not JSON, or has fields of a wrong type.
    """
    try:
        return _decode(body)
    except msgspec.MsgspecError as error:
        raise RefusedError(400, f"the body cannot be read: {error}") from None


class Stub:
    """The state that all connections share."""

    def __init__(self, options: StubOptions) -> None:
        self.options = options
        self.url = ""
        self.log: list[Seen] = []
        self.num_connections = 0
        self.transports: set[asyncio.Transport] = set()
        self.tokenizer = WordTokenizer()
        self.reply_ids = self.tokenizer.encode("".join(REPLY))
        self.pieces = {chat: Pieces(options.model, chat) for chat in (False, True)}
        self._cache = PrefixCache(options.cache_block) if options.cache_block else None
        self._dealt = dict.fromkeys(["", *options.faults], 0)
        self._running = self._num_seen = 0
        self._waiting: deque[Callable[[], None]] = deque()
        self._stalls = options.stall is not None

    def accept(self, path: str, body: Body, program: str, connection: int) -> tuple[Seen, list[int]]:
        """A generation request enters the log; and its prompt.

        Raises:
            RefusedError: it makes no sense.
        """
        now = time.monotonic()
        ids = self._prompt(path, body)
        wanted = body.max_completion_tokens or body.max_tokens
        if wanted is None:
            wanted = 16
        self._check(body, wanted, len(ids))
        cached = self._cache.enter(ids) if self._cache else 0
        seen = Seen(
            self._num_seen,
            now,
            path,
            len(ids),
            cached,
            wanted,
            program,
            body.stream,
            connection,
            self._deal(),
        )
        self.log.append(seen)
        self._num_seen += 1
        if self._stalls and self.options.stall is not None:
            self._stalls = False
            after, long = self.options.stall
            asyncio.get_running_loop().call_later(after, time.sleep, long)
        return seen, ids

    def num_tokens(self, body: Body, wanted: int) -> int:
        """How long the reply will be."""
        natural = self.options.natural_tokens
        obeyed = self.options.extras == "obeyed"
        if natural is None or (obeyed and body.ignore_eos):
            return wanted
        return min(wanted, max(natural, (body.min_tokens or 0) if obeyed else 0))

    def answered(self, prompt: list[int], num_tokens: int) -> None:
        """A reply is complete: it is in the cache, behind its prompt."""
        if self._cache is not None:
            rounds = num_tokens // len(self.reply_ids) + 1
            self._cache.enter(prompt + (self.reply_ids * rounds)[:num_tokens])

    def start(self, begin: Callable[[], None]) -> None:
        """Call ``begin`` now, or when a running request has ended."""
        if self.options.concurrency is not None and self._running >= self.options.concurrency:
            self._waiting.append(begin)
            return
        self._running += 1
        begin()

    def end(self) -> None:
        """One that was started has ended."""
        self._running -= 1
        if self._waiting:
            self._running += 1
            self._waiting.popleft()()

    def drop(self, begin: Callable[[], None]) -> bool:
        """Forget one that waits; False if it does not wait."""
        if begin not in self._waiting:
            return False
        self._waiting.remove(begin)
        return True

    def info(self, method: str, path: str, body: bytes) -> Any:
        """Everything that generates nothing.

        Raises:
            RefusedError: there is no such thing.
        """
        options = self.options
        if method == "GET" and path == "/v1/models":
            card = {"id": options.model, "object": "model", "created": 0, "owned_by": "braid"}
            return {"object": "list", "data": [{**card, "max_model_len": options.max_model_len}]}
        if method == "GET" and path == "/version":
            return {"version": "stub"}
        if method == "GET" and path == "/health":
            return {"status": "ok"}
        if method == "GET" and path == "/stub/log":
            return [asdict(seen) for seen in self.log]
        if method == "DELETE" and path == "/stub/log":
            self.log.clear()
            return {}
        if method == "POST" and options.has_tokenize and path == "/tokenize":
            ids = self._prompt(path, parse(body))
            return {"count": len(ids), "max_model_len": options.max_model_len, "tokens": ids}
        if method == "POST" and options.has_tokenize and path == "/detokenize":
            return {"prompt": self.tokenizer.decode(parse(body).tokens or ())}
        raise RefusedError(404, f"there is no {method} {path}")

    def _prompt(self, path: str, body: Body) -> list[int]:
        if path == "/v1/chat/completions" or (path == "/tokenize" and body.messages is not None):
            if not body.messages:
                raise RefusedError(400, "messages must not be empty")
            return self.tokenizer.chat([_text(message.content) for message in body.messages])
        if isinstance(body.prompt, list):
            ids = body.prompt
        elif body.prompt is not None:
            special = [BOS] if self.options.bos and body.add_special_tokens else []
            ids = special + self.tokenizer.encode(body.prompt)
        else:
            raise RefusedError(400, "prompt must be a text or a list of token ids")
        if not ids and path != "/tokenize":
            raise RefusedError(400, "prompt must not be empty")
        return ids

    def _check(self, body: Body, wanted: int, num_prompt: int) -> None:
        options = self.options
        if body.model not in (None, options.model):
            raise RefusedError(404, f"the model {body.model!r} does not exist; there is {options.model!r}")
        if wanted < 1:
            raise RefusedError(400, f"max_tokens must be at least 1, got {wanted}")
        if num_prompt + wanted > options.max_model_len:
            text = f"{num_prompt} prompt tokens and {wanted} more are over the context of {options.max_model_len}"
            raise RefusedError(400, text)
        if options.extras == "refused" and (body.ignore_eos is not None or body.min_tokens is not None):
            name = "ignore_eos" if body.ignore_eos is not None else "min_tokens"
            raise RefusedError(400, f"unrecognized request argument: {name}")

    def _deal(self) -> str:
        """The fault (or none) that is furthest behind its share."""
        if not self.options.faults:
            return ""
        count = self._num_seen + 1
        shares = {"": 1 - sum(self.options.faults.values()), **self.options.faults}
        fault = max(shares, key=lambda name: shares[name] * count - self._dealt[name])
        self._dealt[fault] += 1
        return fault


def _text(content: str | list[Any] | None) -> str:
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content or ""
