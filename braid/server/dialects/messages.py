"""Messages: Anthropic's dialect, as its SDKs and Claude Code speak it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from braid.core.errors import InvalidParameterError
from braid.core.sampling import SamplingParams
from braid.server.dialects.fields import asks, note_ignored, warning_header
from braid.server.dialects.messages_events import (
    BlockEvents,
    Event,
    content_blocks,
    stop_reason,
    usage_payload,
)
from braid.server.dialects.messages_input import Conversation, read_conversation
from braid.server.dialects.messages_schema import CountRequest, MessagesRequest
from braid.server.dialects.tools import max_calls
from braid.server.errors import anthropic_payload, as_http_error, json_response
from braid.server.guard.body import read_json
from braid.server.pipeline import Pipeline, record_of
from braid.server.sse import EventStream, named_event
from braid.server.turn import Turn, TurnDelta, TurnRequest
from braid.text.reply import ReplyPart

PING = named_event("ping", {"type": "ping"})
_CHANGES_OUTPUT = frozenset(
    {"container", "context_management", "logit_bias", "mcp_servers", "n", "reasoning_effort", "stop"}
)
"""Fields of Anthropic's own servers, or of other dialects, that change what they answer, and that do nothing here."""


class MessageRoutes:
    """``/v1/messages`` and ``/v1/messages/count_tokens``."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def messages(self, request: Request) -> Response:
        pipeline, config = self._pipeline, self._pipeline.context.config
        fields, body, size = await read_json(request, MessagesRequest, config)
        pipeline.served_name(fields.model)
        wanted = await self._wanted(request, fields, body, size, fields.params())
        wanted = replace(
            wanted,
            default_max_tokens=fields.max_tokens,
            cache_salt=fields.cache_salt or "",
            priority=fields.priority or 0,
            slo=fields.slo(),
        )
        turn = await pipeline.turn(request, wanted)
        record = record_of(request)
        headers = warning_header(record.warnings)
        writer = MessageWriter(turn, fields.max_tokens, record.request_id)
        if fields.stream:
            events, failure = writer.events(), writer.failure
            return EventStream(events, pipeline.lifecycle, config, headers, on_error=failure, ping=PING)
        async with pipeline.lifecycle.watch(request.receive):
            answer = await writer.answer()
        return json_response(answer, headers=headers)

    async def count_tokens(self, request: Request) -> Response:
        pipeline = self._pipeline
        fields, body, size = await read_json(request, CountRequest, pipeline.context.config)
        pipeline.served_name(fields.model)
        wanted = await self._wanted(request, fields, body, size, SamplingParams())
        count = await pipeline.count(wanted)
        return json_response({"input_tokens": count}, headers=warning_header(record_of(request).warnings))

    async def _wanted(
        self,
        request: Request,
        fields: CountRequest,
        body: Mapping[str, Any],
        size: int,
        params: SamplingParams,
    ) -> TurnRequest:
        """The turn, without what only an answer needs; notes what is left out of the request."""
        fields.check(body)
        ignored = self._ignored(fields, body)
        read = await self._pipeline.off_loop(size, lambda: self._read(fields, size, params))
        wanted, dropped, num_stripped = read
        self._pipeline.metrics.volatile_lines.inc(num_stripped)
        record_of(request).warnings.extend(dropped + ignored)
        return wanted

    def _read(
        self, fields: CountRequest, size: int, params: SamplingParams
    ) -> tuple[TurnRequest, list[str], int]:
        """The turn, the tools that were dropped, and how many billing lines."""
        tools, dropped = fields.parsed_tools()
        choice, parallel = fields.parsed_choice(tools)
        talk = self._conversation(fields)
        wanted = TurnRequest(
            model=fields.model,
            messages=talk.messages,
            params=params,
            tools=tools,
            tool_choice=choice,
            max_calls=max_calls(parallel, choice),
            constraint=fields.constraint(),
            template=fields.template_variables(),
            add_generation_prompt=not talk.prefill,
            continue_final_message=talk.prefill,
            breakpoints=talk.breakpoints,
            size=size,
            id_prefix="msg_",
        )
        return wanted, dropped, talk.num_stripped

    def _conversation(self, fields: CountRequest) -> Conversation:
        most, count = self._pipeline.context.config.max_messages, len(fields.messages)
        if count > most:  # asked of what was sent: messages of one role in a row become one
            message = f"messages must have 1 to {most} entries, got {count}"
            raise InvalidParameterError(message, param="messages")
        return read_conversation(
            fields.system,
            fields.messages,
            tools=fields.tools or (),
            cache_control=fields.cache_control,
            strip_volatile_line=self._pipeline.context.config.strip_volatile_line,
        )

    def _ignored(self, fields: CountRequest, body: Mapping[str, Any]) -> list[str]:
        ours = [name for name in body if name in _CHANGES_OUTPUT and asks(name, body[name])]
        return ours + note_ignored(self._pipeline.metrics, fields, body)


class MessageWriter:
    """Writes the reply of one turn. ``max_tokens`` is what the client asked for; the context may leave less."""

    def __init__(self, turn: Turn, max_tokens: int, request_id: str) -> None:
        self._turn = turn
        self._call = turn.generation.call
        self._max_tokens = max_tokens
        self._request_id = request_id

    async def answer(self) -> dict[str, Any]:
        """Everything at once; what a client makes of ``events``."""
        parts: list[ReplyPart] = []
        last: TurnDelta | None = None
        async with aclosing(self._turn.deltas()) as deltas:
            async for last in deltas:
                parts.extend(last.parts)
        return self._message(content_blocks(parts), *self._end(last))

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The message without content, then block after block, then its end and the usage.

        The first event has the usage of the prompt, so it waits for the engine's first output.
        """
        blocks = BlockEvents()
        last: TurnDelta | None = None
        async with aclosing(self._turn.deltas()) as deltas:
            async for delta in deltas:
                events = [] if last is not None else [self._start()]
                for part in delta.parts:
                    events += blocks.feed(part)
                last = delta
                if events:
                    yield _frames(events)
        yield _frames([*blocks.end(), *self._finish(last)])

    def failure(self, error: Exception) -> bytes:
        """How a stream ends with an error."""
        return named_event("error", anthropic_payload(as_http_error(error), self._request_id))

    def _start(self) -> Event:
        return {"type": "message_start", "message": self._message([], None, None)}

    def _finish(self, last: TurnDelta | None) -> list[Event]:
        reason, sequence = self._end(last)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        usage = usage_payload(self._turn.generation.usage)
        return [{"type": "message_delta", "delta": delta, "usage": usage}, {"type": "message_stop"}]

    def _end(self, last: TurnDelta | None) -> tuple[str, str | None]:
        assert last is not None, "a turn ends with a delta that says why"
        cut = self._call.max_tokens[0] < self._max_tokens
        return stop_reason(last.finish_reason, last.stop_reason, cut=cut, stops=self._call.params.stop)

    def _message(
        self, content: list[dict[str, Any]], reason: str | None, sequence: str | None
    ) -> dict[str, Any]:
        return {
            "id": self._call.id,
            "type": "message",
            "role": "assistant",
            "model": self._call.model,
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": usage_payload(self._turn.generation.usage),
        }


def _frames(events: list[Event]) -> bytes:
    return b"".join(named_event(event["type"], event) for event in events)
