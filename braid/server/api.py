"""The routes that generate text: body -> checked fields -> one ``Call`` -> answer or stream."""

from __future__ import annotations

import time
import uuid
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from braid import __version__
from braid.server.body import echo, read_json
from braid.server.chat import chat_answer, chat_events
from braid.server.completions import CompletionWriter
from braid.server.config import ServerContext
from braid.server.encode import PromptEncoder, Tokens, check_context, engine_info
from braid.server.errors import HttpError, json_response
from braid.server.gate import RECORD
from braid.server.generate import Call, Generation
from braid.server.lifecycle import Lifecycle, RequestRecord
from braid.server.metrics import ServerMetrics
from braid.server.prompts import (
    chat_tokens,
    check_messages,
    check_sequences,
    check_token_ids,
    completion_prompts,
    dropped_tools,
)
from braid.server.schemas import ChatRequest, CompletionRequest, RequestFields
from braid.server.sse import EventStream

FINGERPRINT = f"braid-{__version__}"


def served_name(context: ServerContext, model: str | None) -> str:
    """The name to answer with; a client may leave the model out.

    Raises:
        HttpError: 404 listing the served names.
    """
    names = context.served_model_names
    if model is None:
        return names[0]
    if model not in names:
        message = f"model {echo(model)} is not served; served: {', '.join(names)}"
        raise HttpError(404, message, param="model", code="model_not_found")
    return model


class TextRoutes:
    """``/v1/chat/completions`` and ``/v1/completions``."""

    def __init__(
        self, context: ServerContext, encoder: PromptEncoder, lifecycle: Lifecycle, metrics: ServerMetrics
    ) -> None:
        self._context = context
        self._encoder = encoder
        self._lifecycle = lifecycle
        self._metrics = metrics

    async def chat_completions(self, request: Request) -> Response:
        context, encoder = self._context, self._encoder
        fields, body, size = await read_json(request, ChatRequest, context.config)
        self._check(fields, body)
        check_messages(context, fields.messages, fields.tools)
        headers = _dropped_warning(dropped_tools(fields.tools))
        if fields.tool_choice == "none":
            fields.tools = None
        prompt = await encoder.off_loop(size, lambda: chat_tokens(context, encoder, fields.messages, fields))
        generation = self._generation(request, fields, (prompt,), "messages")
        tokenizer = context.tokenizer
        if fields.stream:
            usage = fields.include_usage
            events = chat_events(generation, tokenizer, FINGERPRINT, include_usage=usage)
            return EventStream(events, self._lifecycle, context.config, headers)
        async with self._lifecycle.watch(request.receive):
            answer = await chat_answer(generation, tokenizer, FINGERPRINT)
        return json_response(answer, headers=headers)

    async def completions(self, request: Request) -> Response:
        context, encoder = self._context, self._encoder
        fields, body, size = await read_json(request, CompletionRequest, context.config)
        self._check(fields, body)
        special = fields.add_special_tokens is not False
        prompts = await encoder.off_loop(
            size, lambda: completion_prompts(context, encoder, fields.prompt, special)
        )
        generation = self._generation(request, fields, prompts, "prompt")
        echoed = await encoder.off_loop(size, lambda: self._echoed(fields, prompts))
        writer = CompletionWriter(generation, context.tokenizer, FINGERPRINT, echoed)
        if fields.stream:
            events = writer.events(include_usage=fields.include_usage)
            return EventStream(events, self._lifecycle, context.config)
        async with self._lifecycle.watch(request.receive):
            answer = await writer.answer()
        return json_response(answer)

    def _check(self, fields: RequestFields, body: dict[str, Any]) -> None:
        """All that can be refused before the prompt is looked at."""
        known = sum(name in body for name in type(fields).model_fields)
        self._metrics.ignored_fields.inc(len(body) - known)
        fields.model = served_name(self._context, fields.model)
        fields.check(body)
        engine_info(self._context)

    def _echoed(self, fields: CompletionRequest, prompts: tuple[Tokens, ...]) -> list[str]:
        if not fields.echo:
            return [""] * len(prompts)
        if isinstance(fields.prompt, str):
            return [fields.prompt]
        given = fields.prompt if len(fields.prompt) == len(prompts) else [fields.prompt]
        decode = self._context.tokenizer.decode
        return [
            text if isinstance(text, str) else decode(list(prompt))
            for text, prompt in zip(given, prompts, strict=True)
        ]

    def _generation(
        self,
        request: Request,
        fields: ChatRequest | CompletionRequest,
        prompts: tuple[Tokens, ...],
        param: str,
    ) -> Generation:
        """The call, checked against the engine's limits; nothing has been asked of the engine yet."""
        info = engine_info(self._context)
        params = fields.params(self._context.config.max_stop)
        check_sequences(len(prompts), params.n, self._context.config.max_sequences)
        limit, default = info.max_model_len, fields.default_max_tokens
        lengths = tuple(
            check_context(len(prompt), params.max_tokens, limit, param, default) for prompt in prompts
        )
        for prompt in prompts:
            check_token_ids(prompt, info.vocab_size, param)
        check_token_ids(params.stop_token_ids, info.vocab_size, "stop_token_ids")
        check_token_ids(tuple(params.logit_bias), info.vocab_size, "logit_bias")
        record = _record(request)
        call = Call(
            id=f"{'chatcmpl' if isinstance(fields, ChatRequest) else 'cmpl'}-{uuid.uuid4().hex}",
            model=served_name(self._context, fields.model),
            created=int(time.time()),
            prompts=prompts,
            max_tokens=lengths,
            params=params,
            cache_salt=fields.cache_salt or "",
            arrival=record.start,
            return_token_ids=bool(fields.return_token_ids),
        )
        generation = Generation(call, self._context.engine, self._context.tokenizer, self._metrics)
        record.usage = lambda: generation.usage
        return generation


def _record(request: Request) -> RequestRecord:
    record: RequestRecord = request.scope[RECORD]
    return record


def _dropped_warning(dropped: list[str]) -> dict[str, str]:
    """Agents send tools that only their own servers know: a refusal would break them, silence would mislead."""
    return {"warning": f'199 braid "ignored: {", ".join(dropped)}"'} if dropped else {}
