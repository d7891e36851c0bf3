"""Chat completions: OpenAI's dialect."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from braid.core.request import TokenLogprobs
from braid.server.decode import Token
from braid.server.dialects.fields import note_ignored
from braid.server.dialects.schemas import ChatRequest
from braid.server.dialects.tools import max_calls, parse_choice, parse_tools
from braid.server.errors import json_response
from braid.server.generate import Generation, usage_payload
from braid.server.guard.body import read_json
from braid.server.pipeline import FINGERPRINT, Pipeline
from braid.server.sse import DONE, EventStream, event
from braid.server.turn import Reply, Turn, TurnDelta, TurnRequest
from braid.text.reply import CallArguments, CallStart, Content, Reasoning, ReplyPart
from braid.text.tokenizer import Tokenizer

LOWEST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot say (OpenAI's own choice)."""


class ChatRoutes:
    """``/v1/chat/completions``."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def completions(self, request: Request) -> Response:
        pipeline, config = self._pipeline, self._pipeline.context.config
        fields, body, size = await read_json(request, ChatRequest, config)
        pipeline.served_name(fields.model)
        fields.check(body)
        warnings = note_ignored(pipeline.metrics, fields, body)
        wanted, dropped = self._wanted(fields, size)
        turn = await pipeline.turn(request, wanted)
        headers = _warning(dropped + warnings)
        writer = ChatWriter(turn, pipeline.context.tokenizer)
        if fields.stream:
            events = writer.events(include_usage=fields.include_usage)
            return EventStream(events, pipeline.lifecycle, config, headers)
        async with pipeline.lifecycle.watch(request.receive):
            answer = await writer.answer()
        return json_response(answer, headers=headers)

    def _wanted(self, fields: ChatRequest, size: int) -> tuple[TurnRequest, list[str]]:
        tools, dropped = parse_tools(fields.tools)
        choice = parse_choice(fields.tool_choice, tools)
        wanted = TurnRequest(
            model=fields.model,
            messages=fields.messages,
            params=fields.params(self._pipeline.context.config.max_stop),
            tools=tools,
            tool_choice=choice,
            max_calls=max_calls(fields.parallel_tool_calls, choice),
            template=fields.template_variables(),
            add_generation_prompt=fields.add_generation_prompt is not False,
            continue_final_message=bool(fields.continue_final_message),
            return_token_ids=bool(fields.return_token_ids),
            cache_salt=fields.cache_salt or "",
            priority=fields.priority or 0,
            size=size,
        )
        return wanted, dropped


def _warning(ignored: Sequence[str]) -> dict[str, str]:
    """Agents send what only their own servers know: a refusal would break them, silence would mislead."""
    return {"warning": f'199 braid "ignored: {", ".join(ignored)}"'} if ignored else {}


class ChatWriter:
    """Writes the replies of one turn."""

    def __init__(self, turn: Turn, tokenizer: Tokenizer) -> None:
        self._turn = turn
        self._generation = turn.generation
        self._tokenizer = tokenizer
        self._greeted: set[int] = set()

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
        return answer

    async def events(self, *, include_usage: bool) -> AsyncGenerator[bytes, None]:
        """Per choice: the role, deltas, the finish reason; then usage (if asked for) and [DONE]."""
        head = self._head("chat.completion.chunk")
        tail: dict[str, Any] = {"usage": None} if include_usage else {}
        async with aclosing(self._turn.deltas()) as deltas:
            async for delta in deltas:
                out = b""
                for body in self._bodies(delta):
                    extra = body.pop("prompt_token_ids", None)
                    first = {} if extra is None else {"prompt_token_ids": extra}
                    out += event({**head, "choices": [body], **first, **tail})
                yield out
        if include_usage:
            yield event({**head, "choices": [], "usage": usage_payload(self._generation.usage)})
        yield DONE

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
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in reply.calls
            ]
        if reply.reasoning:
            message |= {"reasoning": reply.reasoning, "reasoning_content": reply.reasoning}
        return {
            "index": index,
            "message": message,
            "logprobs": _logprobs(self._tokenizer, self._generation, reply.tokens),
            "finish_reason": reply.finish_reason,
            "stop_reason": reply.stop_reason,
            **_token_ids(self._generation, reply.tokens),
        }

    def _bodies(self, delta: TurnDelta) -> list[dict[str, Any]]:
        """The choices of the chunks that one delta makes."""
        bodies = []
        call = self._generation.call
        if delta.number not in self._greeted:
            self._greeted.add(delta.number)
            role = _choice(delta.number, {"role": "assistant", "content": ""}, None)
            if call.return_token_ids:
                role["prompt_token_ids"] = call.prompts[0]
            bodies.append(role)
        pieces = [piece for part in delta.parts if (piece := _piece(part)) is not None]
        if delta.tokens and not pieces:
            pieces.append({"content": ""})
        for at, piece in enumerate(pieces):
            tokens = delta.tokens if at == 0 else ()
            logprobs = _logprobs(self._tokenizer, self._generation, tokens)
            bodies.append({**_choice(delta.number, piece, logprobs), **_token_ids(self._generation, tokens)})
        if delta.finish_reason is not None:
            end = _choice(delta.number, {}, None, delta.finish_reason)
            bodies.append({**end, "stop_reason": delta.stop_reason})
        return bodies


def _piece(part: ReplyPart) -> dict[str, Any] | None:
    match part:
        case Content(text):
            return {"content": text}
        case Reasoning(text):
            return {"reasoning": text, "reasoning_content": text}
        case CallStart(number, id, name):
            function = {"name": name, "arguments": ""}
            return {"tool_calls": [{"index": number, "id": id, "type": "function", "function": function}]}
        case CallArguments(number, text):
            return {"tool_calls": [{"index": number, "function": {"arguments": text}}]}
        case _:
            return None


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
