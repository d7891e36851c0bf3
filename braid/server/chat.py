"""Chat completions: answers and stream chunks of the OpenAI dialect."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from braid.core.request import TokenLogprobs
from braid.server.decode import Token
from braid.server.generate import Generation, usage_payload
from braid.server.sse import DONE, event
from braid.text.tokenizer import Tokenizer

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say (OpenAI's own choice)."""


async def chat_answer(generation: Generation, tokenizer: Tokenizer, fingerprint: str) -> dict[str, Any]:
    """Everything at once; the same texts that ``chat_events`` sends in pieces."""
    call = generation.call
    texts = [""] * generation.num_choices
    tokens: list[list[Token]] = [[] for _ in texts]
    ends: list[tuple[str | None, int | str | None]] = [(None, None)] * len(texts)
    async with aclosing(generation.choices()) as choices:
        async for choice in choices:
            texts[choice.number] += choice.text
            tokens[choice.number].extend(choice.tokens)
            ends[choice.number] = (choice.finish_reason, choice.stop_reason)
    answer = {
        "id": call.id,
        "object": "chat.completion",
        "created": call.created,
        "model": call.model,
        "system_fingerprint": fingerprint,
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": _logprobs(tokenizer, generation, tokens[index]),
                "finish_reason": ends[index][0],
                "stop_reason": ends[index][1],
                **_token_ids(generation, tokens[index]),
            }
            for index, text in enumerate(texts)
        ],
        "usage": usage_payload(generation.usage),
    }
    if call.return_token_ids:
        answer["prompt_token_ids"] = call.prompts[0]
    return answer


async def chat_events(
    generation: Generation, tokenizer: Tokenizer, fingerprint: str, *, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    """Per choice: the role, text deltas, the finish reason; then usage (if asked for) and [DONE]."""
    call = generation.call
    head: dict[str, Any] = {
        "id": call.id,
        "object": "chat.completion.chunk",
        "created": call.created,
        "model": call.model,
        "system_fingerprint": fingerprint,
    }
    tail: dict[str, Any] = {"usage": None} if include_usage else {}
    greeted: set[int] = set()
    async with aclosing(generation.choices()) as choices:
        async for choice in choices:
            out = b""
            if choice.number not in greeted:
                greeted.add(choice.number)
                role = _choice(choice.number, {"role": "assistant", "content": ""}, None)
                first = {"prompt_token_ids": call.prompts[0]} if call.return_token_ids else {}
                out += event({**head, "choices": [role], **first, **tail})
            if choice.text or choice.tokens:
                logprobs = _logprobs(tokenizer, generation, choice.tokens)
                body = _choice(choice.number, {"content": choice.text}, logprobs)
                body.update(_token_ids(generation, choice.tokens))
                out += event({**head, "choices": [body], **tail})
            if choice.finish_reason is not None:
                body = _choice(choice.number, {}, None, choice.finish_reason)
                body["stop_reason"] = choice.stop_reason
                out += event({**head, "choices": [body], **tail})
            yield out
    if include_usage:
        yield event({**head, "choices": [], "usage": usage_payload(generation.usage)})
    yield DONE


def _choice(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _token_ids(generation: Generation, tokens: Sequence[Token]) -> dict[str, Any]:
    return {"token_ids": [token.token_id for token in tokens]} if generation.call.return_token_ids else {}


def _logprobs(tokenizer: Tokenizer, generation: Generation, tokens: Sequence[Token]) -> dict[str, Any] | None:
    if generation.call.params.logprobs is None:
        return None
    content = [_entry(tokenizer, token.logprobs) for token in tokens if token.logprobs is not None]
    return {"content": content, "refusal": None}


def _entry(tokenizer: Tokenizer, logprobs: TokenLogprobs) -> dict[str, Any]:
    top = [_one(tokenizer, token_id, logprob) for token_id, logprob in logprobs.top]
    return {**_one(tokenizer, logprobs.token_id, logprobs.logprob), "top_logprobs": top}


def _one(tokenizer: Tokenizer, token_id: int, logprob: float) -> dict[str, Any]:
    return {
        "token": tokenizer.token_text(token_id),
        "logprob": max(logprob, LOWEST_LOGPROB),
        "bytes": list(tokenizer.token_bytes(token_id)),
    }
