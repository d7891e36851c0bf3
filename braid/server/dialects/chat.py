"""Chat completions: OpenAI's dialect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from braid.server.decode import Token
from braid.server.dialects.chat_calls import CallSpelling, CallStream
from braid.server.dialects.fields import note_ignored, warning_header
from braid.server.dialects.logprobs import logprob_entries
from braid.server.dialects.schemas import ChatRequest
from braid.server.dialects.text_logprobs import ranked_entries, require_prompt_logprobs
from braid.server.dialects.tools import (
    as_function_calls,
    custom_names,
    max_calls,
    parse_choice,
    parse_function_call,
    parse_functions,
    parse_tools,
)
from braid.server.errors import json_response
from braid.server.generate import Generation, usage_payload
from braid.server.guard.body import read_json
from braid.server.pipeline import FINGERPRINT, Pipeline, record_of
from braid.server.sse import DONE, EventStream, EventTemplate, event
from braid.server.turn import Reply, Turn, TurnDelta, TurnRequest
from braid.text.reply import Content, Reasoning, ReplyPart
from braid.text.tokenizer import Tokenizer


class ChatRoutes:
    """``/v1/chat/completions``."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def completions(self, request: Request) -> Response:
        pipeline, config = self._pipeline, self._pipeline.context.config
        fields, body, size = await read_json(request, ChatRequest, config)
        pipeline.served_name(fields.model)
        fields.check(body)
        warnings = record_of(request).warnings
        warnings += note_ignored(pipeline.metrics, fields, body)
        wanted, dropped = await pipeline.off_loop(size, lambda: self._wanted(fields, size))
        warnings += dropped
        turn = await pipeline.turn(request, wanted)
        spelling = CallSpelling(customs=custom_names(fields.tools), older=bool(fields.functions))
        writer = ChatWriter(turn, pipeline.context.tokenizer, spelling)
        headers = warning_header(warnings)
        if fields.stream:
            events = writer.events(include_usage=fields.include_usage, continuous=fields.continuous_usage)
            return EventStream(events, pipeline.lifecycle, config, headers)
        async with pipeline.lifecycle.watch(request.receive):
            answer = await writer.answer()
        return json_response(answer, headers=headers)

    def _wanted(self, fields: ChatRequest, size: int) -> tuple[TurnRequest, list[str]]:
        most: int | None
        dropped: list[str]
        if fields.functions:
            tools, dropped = parse_functions(fields.functions), []
            choice, most = parse_function_call(fields.function_call, tools), 1
        else:
            tools, dropped = parse_tools(fields.tools)
            parse_function_call(fields.function_call, ())
            choice = parse_choice(fields.tool_choice, tools)
            most = max_calls(fields.parallel_tool_calls, choice)
        wanted = TurnRequest(
            model=fields.model,
            messages=as_function_calls(fields.messages),
            params=fields.params(self._pipeline.context.config.max_stop),
            tools=tools,
            tool_choice=choice,
            max_calls=most,
            constraint=fields.constraint(),
            template=fields.template_variables(),
            add_generation_prompt=fields.add_generation_prompt is not False,
            continue_final_message=bool(fields.continue_final_message),
            return_token_ids=bool(fields.return_token_ids),
            cache_salt=fields.cache_salt or "",
            priority=fields.priority or 0,
            slo=fields.slo(),
            size=size,
        )
        return wanted, dropped


class ChatWriter:
    """Writes the replies of one turn."""

    def __init__(self, turn: Turn, tokenizer: Tokenizer, spelling: CallSpelling) -> None:
        self._turn = turn
        self._generation = turn.generation
        self._tokenizer = tokenizer
        self._spelling = spelling
        self._calls: dict[int, CallStream] = {}
        """Of the choices that have begun."""
        self._templates: dict[int, EventTemplate] = {}

    async def answer(self) -> dict[str, Any]:
        """Everything at once; the same texts that ``events`` sends in pieces."""
        replies = await self._turn.replies()
        call = self._generation.call
        answer = {
            **self._head("chat.completion"),
            "choices": [self._whole(index, reply) for index, reply in enumerate(replies)],
            "usage": usage_payload(self._generation.usage),
        }
        if call.return_token_ids:
            answer["prompt_token_ids"] = call.prompts[0]
        count = call.params.prompt_logprobs
        if count is not None:
            given = self._generation.prompt_logprobs(0)
            entries = require_prompt_logprobs(given, len(call.prompts[0]))
            ranked = await asyncio.to_thread(ranked_entries, self._tokenizer, entries, count)
            answer["prompt_logprobs"] = ranked
        return answer

    async def events(self, *, include_usage: bool, continuous: bool = False) -> AsyncGenerator[bytes, None]:
        """Per choice: the role, deltas, the finish reason; then usage (if asked for) and [DONE].

        ``continuous`` tells the usage so far with every chunk.
        """
        head = self._head("chat.completion.chunk")
        async with aclosing(self._turn.deltas()) as deltas:
            async for delta in deltas:
                text = None if continuous else self._only_text(delta)
                if text is not None:
                    yield self._template(delta.number, head, include_usage).fill(text)
                    continue
                tail: dict[str, Any] = {"usage": self._usage() if continuous else None}
                out = b""
                for body in self._bodies(delta):
                    extra = body.pop("prompt_token_ids", None)
                    first = {} if extra is None else {"prompt_token_ids": extra}
                    out += event({**head, "choices": [body], **first, **(tail if include_usage else {})})
                yield out
        if include_usage:
            yield event({**head, "choices": [], "usage": self._usage()})
        yield DONE

    def _only_text(self, delta: TurnDelta) -> str | None:
        """The text of a delta that is nothing but more text; None of any other."""
        if delta.tokens or delta.finish_reason is not None or len(delta.parts) != 1:
            return None
        if delta.number not in self._calls or self._generation.call.params.logprobs is not None:
            return None
        part = delta.parts[0]
        return part.text if isinstance(part, Content) else None

    def _template(self, number: int, head: dict[str, Any], include_usage: bool) -> EventTemplate:
        template = self._templates.get(number)
        if template is None:
            tail: dict[str, Any] = {"usage": None} if include_usage else {}

            def make(text: str) -> bytes:
                body = {**_choice(number, {"content": text}, None), **_token_ids(self._generation, ())}
                return event({**head, "choices": [body], **tail})

            template = self._templates[number] = EventTemplate(make)
        return template

    def _usage(self) -> dict[str, Any]:
        return usage_payload(self._generation.usage)

    def _head(self, kind: str) -> dict[str, Any]:
        call = self._generation.call
        return {
            "id": call.id,
            "object": kind,
            "created": call.created,
            "model": call.model,
            "system_fingerprint": FINGERPRINT,
        }

    def _whole(self, index: int, reply: Reply) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": reply.content, "refusal": None}
        if reply.calls:
            message["content"] = reply.content or None
            message |= self._spelling.whole(reply.calls)
        if reply.reasoning:
            message |= {"reasoning": reply.reasoning, "reasoning_content": reply.reasoning}
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(reply.tokens),
            "finish_reason": self._spelling.finish_reason(reply.finish_reason),
            "stop_reason": reply.stop_reason,
            **_token_ids(self._generation, reply.tokens),
        }

    def _bodies(self, delta: TurnDelta) -> list[dict[str, Any]]:
        """The choices of the chunks that one delta makes."""
        bodies = []
        call = self._generation.call
        if delta.number not in self._calls:
            self._calls[delta.number] = CallStream(self._spelling)
            role = _choice(delta.number, {"role": "assistant", "content": ""}, None)
            if call.return_token_ids:
                role["prompt_token_ids"] = call.prompts[0]
            bodies.append(role)
        for at, piece in enumerate(self._pieces(delta)):
            tokens = delta.tokens if at == 0 else ()
            choice = _choice(delta.number, piece, self._logprobs(tokens))
            bodies.append({**choice, **_token_ids(self._generation, tokens)})
        if delta.finish_reason is not None:
            reason = self._spelling.finish_reason(delta.finish_reason)
            bodies.append({**_choice(delta.number, {}, None, reason), "stop_reason": delta.stop_reason})
        return bodies

    def _pieces(self, delta: TurnDelta) -> list[dict[str, Any]]:
        calls = self._calls[delta.number]
        pieces = [piece for part in delta.parts if (piece := _piece(part, calls)) is not None]
        if delta.finish_reason is not None:
            pieces.extend(calls.finish())
        return pieces or ([{"content": ""}] if delta.tokens else [])

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if self._generation.call.params.logprobs is None:
            return None
        return {"content": logprob_entries(self._tokenizer, tokens), "refusal": None}


def _piece(part: ReplyPart, calls: CallStream) -> dict[str, Any] | None:
    match part:
        case Content(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning": text, "reasoning_content": text}
        case _:
            return calls.spell(part)


def _choice(
    index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None, finish_reason: str | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _token_ids(generation: Generation, tokens: Sequence[Token]) -> dict[str, Any]:
    return {"token_ids": [token.token_id for token in tokens]} if generation.call.return_token_ids else {}
