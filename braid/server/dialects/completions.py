"""Text completions: answers and stream chunks of the OpenAI dialect."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from braid.server.decode import Token
from braid.server.dialects.chat import LOWEST_LOGPROB
from braid.server.dialects.fields import note_ignored
from braid.server.dialects.schemas import CompletionRequest
from braid.server.encode import Tokens
from braid.server.errors import json_response
from braid.server.generate import Generation, usage_payload
from braid.server.guard.body import read_json
from braid.server.pipeline import FINGERPRINT, Pipeline, TextRequest
from braid.server.prompts import completion_prompts
from braid.server.sse import DONE, EventStream, event
from braid.text.tokenizer import Tokenizer


class CompletionRoutes:
    """``/v1/completions``."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def completions(self, request: Request) -> Response:
        pipeline, context = self._pipeline, self._pipeline.context
        fields, body, size = await read_json(request, CompletionRequest, context.config)
        pipeline.served_name(fields.model)
        fields.check(body)
        note_ignored(pipeline.metrics, fields, body)
        special = fields.add_special_tokens is not False
        prompts = await pipeline.off_loop(
            size, lambda: completion_prompts(context, pipeline.encoder, fields.prompt, special)
        )
        wanted = TextRequest(
            model=fields.model,
            prompts=prompts,
            params=fields.params(context.config.max_stop),
            default_max_tokens=fields.default_max_tokens,
            return_token_ids=bool(fields.return_token_ids),
            cache_salt=fields.cache_salt or "",
            priority=fields.priority or 0,
        )
        generation = await pipeline.text(request, wanted)
        echoed = await pipeline.off_loop(size, lambda: self._echoed(fields, prompts))
        writer = CompletionWriter(generation, context.tokenizer, FINGERPRINT, echoed)
        if fields.stream:
            events = writer.events(include_usage=fields.include_usage)
            return EventStream(events, pipeline.lifecycle, context.config)
        async with pipeline.lifecycle.watch(request.receive):
            answer = await writer.answer()
        return json_response(answer)

    def _echoed(self, fields: CompletionRequest, prompts: tuple[Tokens, ...]) -> list[str]:
        if not fields.echo:
            return [""] * len(prompts)
        if isinstance(fields.prompt, str):
            return [fields.prompt]
        given = fields.prompt if len(fields.prompt) == len(prompts) else [fields.prompt]
        decode = self._pipeline.context.tokenizer.decode
        return [
            text if isinstance(text, str) else decode(list(prompt))
            for text, prompt in zip(given, prompts, strict=True)
        ]


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
