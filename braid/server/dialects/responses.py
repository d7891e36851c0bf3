"""Responses: OpenAI's newer dialect, as Codex and the agents SDK speak it. Nothing is stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from braid.core.sampling import SamplingParams
from braid.server.decode import Token
from braid.server.dialects.fields import note_ignored, warning_header
from braid.server.dialects.logprobs import logprob_entries
from braid.server.dialects.responses_events import ResponseWriter
from braid.server.dialects.responses_input import read_input
from braid.server.dialects.responses_items import OutputItems
from braid.server.dialects.responses_schema import ENCRYPTED_REASONING, ResponsesRequest, TextFields
from braid.server.dialects.responses_tools import ToolSet, tool_set
from braid.server.dialects.tools import max_calls
from braid.server.errors import HttpError, json_response
from braid.server.guard.body import read_json
from braid.server.pipeline import Pipeline, record_of
from braid.server.sse import EventStream
from braid.server.turn import Turn, TurnRequest

_CACHE_TTLS = ("30m", "12h")


class ResponseRoutes:
    """``/v1/responses``, and the paths of stored responses, of which there are none."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    async def create(self, request: Request) -> Response:
        pipeline, config = self._pipeline, self._pipeline.context.config
        fields, body, size = await read_json(request, ResponsesRequest, config)
        pipeline.served_name(fields.model)
        fields.check(body)
        warnings = record_of(request).warnings
        warnings += note_ignored(pipeline.metrics, fields, body)
        tools, wanted, ignored = await pipeline.off_loop(size, lambda: self._read(fields, size))
        warnings += ignored
        turn = await pipeline.turn(request, wanted)
        headers = warning_header(warnings)
        writer = self._writer(turn, fields, tools, wanted.params)
        if fields.stream:
            return EventStream(writer.events(), pipeline.lifecycle, config, headers, on_error=writer.failure)
        async with pipeline.lifecycle.watch(request.receive):
            answer = await writer.answer()
        return json_response(answer, headers=headers)

    async def stored(self, request: Request) -> Response:
        """Whatever is asked of an earlier response."""
        message = "no response is stored here; a running one is cancelled by closing its connection"
        raise HttpError(404, message, param="response_id", code="response_not_found")

    def _read(self, fields: ResponsesRequest, size: int) -> tuple[ToolSet, TurnRequest, list[str]]:
        """The tools, the turn, and what is left out of the request."""
        tools = tool_set(fields.tools, fields.tool_choice)
        given = read_input(fields.input, fields.instructions)
        wanted = TurnRequest(
            model=fields.model,
            messages=given.messages,
            params=fields.params(self._pipeline.context.config.max_stop),
            tools=tools.tools,
            tool_choice=tools.choice,
            max_calls=max_calls(fields.parallel_tool_calls, tools.choice),
            constraint=fields.answer_constraint(),
            template=fields.template_variables(),
            cache_salt=fields.cache_salt or "",
            priority=fields.priority or 0,
            slo=fields.slo(),
            breakpoints=given.breakpoints,
            size=size,
            id_prefix="resp_",
            param="input",
        )
        items = [f"input items of type {kind}" for kind in given.dropped]
        return tools, wanted, [*tools.dropped, *items, *fields.ignored()]

    def _writer(
        self, turn: Turn, fields: ResponsesRequest, tools: ToolSet, params: SamplingParams
    ) -> ResponseWriter:
        tokenizer = self._pipeline.context.tokenizer

        def logprobs(tokens: Sequence[Token]) -> list[dict[str, Any]]:
            return [] if params.logprobs is None else logprob_entries(tokenizer, tokens)

        suffix = turn.generation.call.id.removeprefix("resp_")
        sealed = fields.wants(ENCRYPTED_REASONING)
        items = OutputItems(suffix, tools.custom, sealed=sealed, logprobs=logprobs)
        return ResponseWriter(turn, items, echoed(fields, tools, params))


def echoed(fields: ResponsesRequest, tools: ToolSet, params: SamplingParams) -> dict[str, Any]:
    """The fields of an answer that say what was asked for, or what holds where nothing was."""
    text = fields.text or TextFields()
    summary = None if fields.reasoning is None else fields.reasoning.summary
    return {
        "background": False,
        "instructions": fields.instructions,
        "max_output_tokens": fields.max_output_tokens,
        "max_tool_calls": fields.max_tool_calls,
        "metadata": fields.metadata or {},
        "parallel_tool_calls": fields.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": _string(fields.prompt_cache_key),
        "prompt_cache_options": _cache_options(fields.prompt_cache_options),
        "prompt_cache_retention": _retention(fields.prompt_cache_retention),
        "reasoning": {"effort": fields.reasoning_effort, "summary": summary},
        "safety_identifier": fields.safety_identifier,
        "service_tier": "default",
        "store": False,
        "temperature": params.temperature,
        "text": {"format": _format(text.format), "verbosity": text.verbosity or "medium"},
        "tool_choice": tools.shown_choice,
        "tools": tools.shown,
        "top_logprobs": fields.top_logprobs or 0,
        "top_p": params.top_p,
        "truncation": "disabled",
        "user": fields.user,
    }


def _format(form: dict[str, Any] | None) -> dict[str, Any]:
    """In the flat spelling, whichever the client chose."""
    if form is None or form.get("type") != "json_schema":
        return {"type": "text" if form is None else form["type"]}
    spec = form.get("json_schema", form)
    schema = spec["schema"] if isinstance(spec["schema"], dict) else json.loads(spec["schema"])
    known = {name: spec[name] for name in ("description", "strict") if spec.get(name) is not None}
    return {"type": "json_schema", "name": spec.get("name") or "schema", "schema": schema, **known}


def _cache_options(options: object) -> dict[str, Any] | None:
    if not isinstance(options, dict):
        return None
    mode, ttl = options.get("mode"), options.get("ttl")
    known = mode if mode in ("implicit", "explicit") else "implicit"
    return {"mode": known, "ttl": ttl if ttl in _CACHE_TTLS else _CACHE_TTLS[0]}


def _retention(value: object) -> str | None:
    name = value.replace("-", "_") if isinstance(value, str) else None
    return name if name in ("in_memory", "24h") else None


def _string(value: object) -> str | None:
    return value if isinstance(value, str) else None
