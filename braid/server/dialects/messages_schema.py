"""Request fields of Anthropic's dialect. Types are strict; ranges are checked where a value is used."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from braid.core.constraint import Constraint
from braid.core.errors import InvalidParameterError
from braid.core.sampling import MAX_STOP, SamplingParams
from braid.server.dialects.fields import Items, ProgramFields, refuse
from braid.server.dialects.schemas import MAX_STOP_CHARS, MAX_STOP_TOKEN_IDS, UNSUPPORTED, check_common
from braid.server.dialects.structured import StructuredFields, schema_constraint
from braid.server.dialects.tools import MAX_TOOLS, parse_function
from braid.server.guard.body import echo
from braid.server.slo import SloFields
from braid.text.tools import Tool, ToolChoice

_SAMPLING_FIELDS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "ignore_eos",
    "min_tokens",
)
_TYPE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,40}")
_CHOICES = "of type auto, any, tool (with the name of a given tool) or none"


class Thinking(BaseModel):
    """``budget_tokens`` and ``display`` have no effect: how long a model thinks is its own choice, and all is shown."""

    model_config = ConfigDict(strict=True)

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: int | None = None
    display: str | None = None


class OutputConfig(BaseModel):
    model_config = ConfigDict(strict=True)

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: dict[str, Any] | None = None


class CountRequest(StructuredFields):
    """What a prompt is made of: the body of ``count_tokens``, and a part of that of ``messages``."""

    model_config = ConfigDict(strict=True)

    model: str | None = None
    messages: Items[dict[str, Any]]
    system: str | Items[dict[str, Any]] | None = None
    tools: Items[dict[str, Any]] | None = None
    tool_choice: dict[str, Any] | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def check(self, body: Mapping[str, Any]) -> None:
        """Refuse what would change the output and cannot be had."""
        refuse((*UNSUPPORTED, "chat_template"), body)

    def parsed_tools(self) -> tuple[tuple[Tool, ...], list[str]]:
        """The client's own tools, and where those stand that only Anthropic's servers have or know.

        Raises:
            InvalidParameterError: a tool is malformed, or two have one name.
        """
        count = len(self.tools or ())
        if count > MAX_TOOLS:
            message = f"tools has {count} entries, at most {MAX_TOOLS} are allowed"
            raise InvalidParameterError(message, param="tools")
        known: dict[str, Tool] = {}
        dropped = []
        for index, entry in enumerate(self.tools or ()):
            if entry.get("type") not in (None, "custom"):
                dropped.append(_dropped(index, entry["type"]))
                continue
            tool = _tool(entry, f"tools.{index}")
            if tool.name in known:
                message = f"tools.{index}.name {echo(tool.name)} is taken by an earlier tool"
                raise InvalidParameterError(message, param="tools")
            known[tool.name] = tool
        return tuple(known.values()), dropped

    def parsed_choice(self, tools: Sequence[Tool]) -> tuple[ToolChoice, bool]:
        """Whether and what the model calls, and whether it may call several at once.

        Raises:
            InvalidParameterError: another type, or a name that is not among the tools.
        """
        choice = self.tool_choice or {"type": "auto"}
        single = choice.get("disable_parallel_tool_use")
        if single is not None and not isinstance(single, bool):
            message = f"tool_choice.disable_parallel_tool_use must be a boolean, got {echo(single)}"
            raise InvalidParameterError(message, param="tool_choice")
        kind, name = choice.get("type"), choice.get("name")
        if kind == "auto" or kind == "none":
            return ToolChoice(kind), not single
        if kind == "any" and tools:
            return ToolChoice("required"), not single
        if kind == "tool" and any(tool.name == name for tool in tools):
            return ToolChoice("required", (str(name),)), False
        if kind == "any":
            raise InvalidParameterError("tool_choice of type any needs tools", param="tool_choice")
        what = f"name {echo(name)}" if kind == "tool" else echo(kind)
        raise InvalidParameterError(f"tool_choice must be {_CHOICES}, got {what}", param="tool_choice")

    def constraint(self) -> Constraint | None:
        """What the text of the answer must look like.

        Raises:
            InvalidParameterError: a format that is no JSON schema, or two formats.
        """
        ours, other = self._format(), super().constraint()
        if ours is not None and other is not None:
            message = f"{ours.param} and {other.param} exclude each other"
            raise InvalidParameterError(message, param=other.param)
        return ours or other

    def _format(self) -> Constraint | None:
        given = self.output_config.format if self.output_config is not None else None
        if given is not None and self.output_format is not None:
            message = "output_format and output_config.format exclude each other"
            raise InvalidParameterError(message, param="output_format")
        param = "output_config" if given is not None else "output_format"
        wanted = given if given is not None else self.output_format
        if wanted is None:
            return None
        if wanted.get("type") != "json_schema" or not isinstance(wanted.get("schema"), dict):
            message = f"{param}: the format must be of type json_schema, with an object as its schema"
            raise InvalidParameterError(message, param=param)
        return schema_constraint(wanted["schema"], param)

    def template_variables(self) -> dict[str, Any]:
        """Further variables of the template: those that reasoning models are known to read."""
        variables: dict[str, Any] = {}
        if self.thinking is not None:
            variables["enable_thinking"] = variables["thinking"] = self.thinking.type != "disabled"
        if self.output_config is not None and self.output_config.effort is not None:
            variables["reasoning_effort"] = self.output_config.effort
        return {**variables, **(self.chat_template_kwargs or {})}


class MessagesRequest(CountRequest, ProgramFields, SloFields):
    max_tokens: int
    stream: bool | None = None
    stop_sequences: Items[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    # Beyond Anthropic's own.
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop_token_ids: Items[int] | None = None
    ignore_eos: bool | None = None
    min_tokens: int | None = None
    cache_salt: str | None = None
    priority: int | None = None
    # Accepted without effect on the output.
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None

    def params(self) -> SamplingParams:
        """What the engine is asked for, without an output limit.

        Raises:
            InvalidParameterError: naming the field, the value and the valid range.
        """
        self._check()
        given = {name: value for name in _SAMPLING_FIELDS if (value := getattr(self, name)) is not None}
        return SamplingParams(
            **given,
            stop=tuple(self.stop_sequences or ()),
            stop_token_ids=tuple(self.stop_token_ids or ()),
            max_tokens=None,
        )

    def _check(self) -> None:
        _require(self.max_tokens >= 1, "max_tokens", "must be an integer >= 1", self.max_tokens)
        stops = self.stop_sequences or []
        _require(len(stops) <= MAX_STOP, "stop_sequences", f"may have at most {MAX_STOP} entries", len(stops))
        longest = max(map(len, stops), default=1)
        valid = f"entries must have 1 to {MAX_STOP_CHARS} characters"
        _require("" not in stops and longest <= MAX_STOP_CHARS, "stop_sequences", valid)
        count = len(self.stop_token_ids or ())
        _require(
            count <= MAX_STOP_TOKEN_IDS, "stop_token_ids", f"may have at most {MAX_STOP_TOKEN_IDS} ids", count
        )
        top_k = self.top_k or 0
        _require(-1 <= top_k < 2**31, "top_k", "must be a 32-bit integer >= -1", top_k)
        least = self.min_tokens or 0
        _require(least <= self.max_tokens, "min_tokens", "must be at most max_tokens", least)
        check_common(self.priority, self.cache_salt)


def _require(ok: bool, param: str, valid: str, value: object = None) -> None:
    if not ok:
        got = "" if value is None else f", got {echo(value)}"
        raise InvalidParameterError(f"{param} {valid}{got}", param=param)


def _dropped(index: int, kind: object) -> str:
    """For a header: nothing of the input but a plain name."""
    named = isinstance(kind, str) and _TYPE_NAME.fullmatch(kind)
    return f"tools.{index} of type {kind}" if named else f"tools.{index}"


def _tool(entry: Mapping[str, Any], where: str) -> Tool:
    schema = entry.get("input_schema")
    if not isinstance(schema, dict):
        raise InvalidParameterError(
            f"{where}.input_schema must be an object, got {echo(schema)}", param="tools"
        )
    return parse_function({**entry, "parameters": schema}, where)
