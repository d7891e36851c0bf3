"""Text completions: answers and stream chunks of the OpenAI dialect."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from braid.server.chat import LOWEST_LOGPROB
from braid.server.decode import Token
from braid.server.generate import Generation, usage_payload
from braid.server.sse import DONE, event
from braid.text.tokenizer import Tokenizer


class CompletionWriter:
    """Writes the choices of one call. ``echoed`` has the text to put before each prompt's outputs ("" for none)."""

    def __init__(
        self, generation: Generation, tokenizer: Tokenizer, fingerprint: str, echoed: Sequence[str]
    ) -> None:
        self._generation = generation
        self._tokenizer = tokenizer
        call = generation.call
        self._head: dict[str, Any] = {
            "id": call.id,
            "object": "text_completion",
            "created": call.created,
            "model": call.model,
            "system_fingerprint": fingerprint,
        }
        self._echoed = [echoed[index // call.params.n] for index in range(generation.num_choices)]
        self._offsets = [len(text) for text in self._echoed]
        self._greeted: set[int] = set()

    async def answer(self) -> dict[str, Any]:
        """Everything at once; the same texts that ``events`` sends in pieces."""
        texts = list(self._echoed)
        tokens: list[list[Token]] = [[] for _ in texts]
        ends: list[tuple[str | None, int | str | None]] = [(None, None)] * len(texts)
        async with aclosing(self._generation.choices()) as choices:
            async for choice in choices:
                texts[choice.number] += choice.text
                tokens[choice.number].extend(choice.tokens)
                ends[choice.number] = (choice.finish_reason, choice.stop_reason)
        bodies = [
            self._choice(index, text, tokens[index], *ends[index], first=True)
            for index, text in enumerate(texts)
        ]
        return {**self._head, "choices": bodies, "usage": usage_payload(self._generation.usage)}

    async def events(self, *, include_usage: bool) -> AsyncGenerator[bytes, None]:
        """Text deltas, the last of a choice with its finish reason; then usage (if asked for) and [DONE]."""
        tail: dict[str, Any] = {"usage": None} if include_usage else {}
        async with aclosing(self._generation.choices()) as choices:
            async for choice in choices:
                first = choice.number not in self._greeted
                self._greeted.add(choice.number)
                text = (self._echoed[choice.number] if first else "") + choice.text
                ends = (choice.finish_reason, choice.stop_reason)
                body = self._choice(choice.number, text, choice.tokens, *ends, first=first)
                yield event({**self._head, "choices": [body], **tail})
        if include_usage:
            yield event({**self._head, "choices": [], "usage": usage_payload(self._generation.usage)})
        yield DONE

    def _choice(
        self,
        index: int,
        text: str,
        tokens: Sequence[Token],
        finish_reason: str | None,
        stop_reason: int | str | None,
        *,
        first: bool,
    ) -> dict[str, Any]:
        call = self._generation.call
        body = {
            "index": index,
            "text": text,
            "logprobs": self._logprobs(index, tokens),
            "finish_reason": finish_reason,
            "stop_reason": stop_reason,
        }
        if call.return_token_ids:
            body["token_ids"] = [token.token_id for token in tokens]
            if first:
                body["prompt_token_ids"] = call.prompts[index // call.params.n]
        return body

    def _logprobs(self, index: int, tokens: Sequence[Token]) -> dict[str, Any] | None:
        """Four lists of one entry per token; offsets count characters from the start of the choice's text."""
        if self._generation.call.params.logprobs is None:
            return None
        out: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for token in tokens:
            if token.logprobs is None:
                continue
            text = self._tokenizer.token_text(token.token_id)
            logprob = max(token.logprobs.logprob, LOWEST_LOGPROB)
            top = {text: logprob}
            for token_id, value in token.logprobs.top:
                top.setdefault(self._tokenizer.token_text(token_id), max(value, LOWEST_LOGPROB))
            out["tokens"].append(text)
            out["token_logprobs"].append(logprob)
            out["top_logprobs"].append(top)
            out["text_offset"].append(self._offsets[index])
            self._offsets[index] += len(text)
        return out
