"""Text completions: answers and stream chunks of the OpenAI dialect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from braid.server.decode import ChoiceDelta, Token
from braid.server.dialects.fields import note_ignored, warning_header
from braid.server.dialects.schemas import CompletionRequest
from braid.server.dialects.text_logprobs import (
    Lists,
    PromptLogprobs,
    Ranked,
    TextLogprobs,
    join_lists,
    ranked_entries,
    require_prompt_logprobs,
)
from braid.server.encode import Tokens
from braid.server.errors import json_response
from braid.server.generate import Generation, usage_payload
from braid.server.guard.body import read_json
from braid.server.pipeline import FINGERPRINT, Pipeline, TextRequest, record_of
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
        warnings = record_of(request).warnings
        warnings += note_ignored(pipeline.metrics, fields, body)
        wanted = await pipeline.off_loop(size, lambda: self._wanted(fields))
        generation = await pipeline.text(request, wanted)
        echoed = await pipeline.off_loop(size, lambda: self._echoed(fields, wanted.prompts))
        writer = CompletionWriter(generation, context.tokenizer, fields, echoed)
        headers = warning_header(warnings)
        if fields.stream:
            return EventStream(writer.events(), pipeline.lifecycle, context.config, headers)
        async with pipeline.lifecycle.watch(request.receive):
            answer = await writer.answer()
        return json_response(answer, headers=headers)

    def _wanted(self, fields: CompletionRequest) -> TextRequest:
        context = self._pipeline.context
        special = fields.add_special_tokens is not False
        params = fields.params(context.config.max_stop)
        return TextRequest(
            model=fields.model,
            prompts=completion_prompts(context, self._pipeline.encoder, fields.prompt, special),
            params=replace(params, constraint=fields.constraint()),
            default_max_tokens=fields.default_max_tokens,
            return_token_ids=bool(fields.return_token_ids),
            cache_salt=fields.cache_salt or "",
            priority=fields.priority or 0,
            slo=fields.slo(),
        )

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
        self,
        generation: Generation,
        tokenizer: Tokenizer,
        fields: CompletionRequest,
        echoed: Sequence[str],
    ) -> None:
        self._generation = generation
        self._tokenizer = tokenizer
        self._fields = fields
        call = generation.call
        self._head: dict[str, Any] = {
            "id": call.id,
            "object": "text_completion",
            "created": call.created,
            "model": call.model,
            "system_fingerprint": FINGERPRINT,
        }
        self._echoed = [echoed[index // call.params.n] for index in range(generation.num_choices)]
        hidden = tokenizer.special_token_ids if call.params.skip_special_tokens else frozenset()
        self._logprobs = [
            TextLogprobs(tokenizer, fields.logprobs or 0, hidden, len(text)) for text in self._echoed
        ]
        self._greeted: set[int] = set()

    async def answer(self) -> dict[str, Any]:
        """Everything at once: what ``events`` sends in pieces, joined."""
        whole: dict[int, dict[str, Any]] = {}
        async with aclosing(self._generation.choices()) as choices:
            async for choice in choices:
                body = await self._body_of(choice)
                joined = whole.setdefault(choice.number, body)
                if joined is not body:
                    _join(joined, body)
        bodies = [whole[index] for index in sorted(whole)]
        if self._fields.prompt_logprobs is not None:
            for body in bodies:
                index, count = body["index"], self._fields.prompt_logprobs
                body["prompt_logprobs"] = await asyncio.to_thread(self._ranked, index, count)
        return {**self._head, "choices": bodies, "usage": self._usage()}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Text deltas, the last of a choice with its finish reason; then usage (if asked for) and [DONE]."""
        include, continuous = self._fields.include_usage, self._fields.continuous_usage
        async with aclosing(self._generation.choices()) as choices:
            async for choice in choices:
                tail = {"usage": self._usage() if continuous else None} if include else {}
                yield event({**self._head, "choices": [await self._body_of(choice)], **tail})
        if include:
            yield event({**self._head, "choices": [], "usage": self._usage()})
        yield DONE

    def _usage(self) -> dict[str, Any]:
        usage = self._generation.usage
        return usage_payload(usage._replace(num_output_tokens=0) if self._fields.prompt_only else usage)

    async def _body_of(self, choice: ChoiceDelta) -> dict[str, Any]:
        """``_body``, off the loop where it tells of a whole prompt."""
        first = choice.number not in self._greeted
        if first and self._fields.echo and self._fields.logprobs is not None:
            return await asyncio.to_thread(self._body, choice)
        return self._body(choice)

    def _body(self, choice: ChoiceDelta) -> dict[str, Any]:
        """What one delta adds to a choice; the first begins with the echoed prompt."""
        if self._fields.prompt_only:
            reason = None if choice.finish_reason is None else "length"
            choice = choice._replace(text="", tokens=(), finish_reason=reason, stop_reason=None)
        index, call = choice.number, self._generation.call
        first = index not in self._greeted
        self._greeted.add(index)
        body = {
            "index": index,
            "text": (self._echoed[index] if first else "") + choice.text,
            "logprobs": self._lists(index, choice.tokens, first),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }
        if call.return_token_ids:
            body["token_ids"] = [token.token_id for token in choice.tokens]
            if first:
                body["prompt_token_ids"] = self._prompt(index)
        return body

    def _lists(self, index: int, tokens: Sequence[Token], first: bool) -> Lists | None:
        if self._fields.logprobs is None:
            return None
        made = self._logprobs[index]
        if not first or not self._fields.echo:
            return made.output(tokens)
        before = made.prompt(self._prompt(index), self._prompt_logprobs(index), self._echoed[index])
        return join_lists(before, made.output(tokens))

    def _ranked(self, index: int, count: int) -> list[Ranked | None]:
        return ranked_entries(self._tokenizer, self._prompt_logprobs(index), count)

    def _prompt_logprobs(self, index: int) -> PromptLogprobs:
        given = self._generation.prompt_logprobs(index)
        return require_prompt_logprobs(given, len(self._prompt(index)))

    def _prompt(self, index: int) -> Tokens:
        call = self._generation.call
        return call.prompts[index // call.params.n]


def _join(whole: dict[str, Any], more: dict[str, Any]) -> None:
    whole["text"] += more["text"]
    if whole["logprobs"] is not None:
        join_lists(whole["logprobs"], more["logprobs"])
    if "token_ids" in whole:
        whole["token_ids"] += more["token_ids"]
    whole |= {"finish_reason": more["finish_reason"], "stop_reason": more["stop_reason"]}
