"""Fields of Anthropic's dialect: types, ranges, tools, formats."""

from __future__ import annotations

from typing import Any

import pytest

from braid.core.constraint import ConstraintKind
from braid.core.errors import InvalidParameterError
from braid.server.dialects.messages_schema import CountRequest, MessagesRequest
from braid.server.guard.body import validate
from braid.text.tools import ToolChoice

BASE: dict[str, Any] = {"model": "m", "max_tokens": 8, "messages": [{"role": "user", "content": "hi"}]}
TOOL = {"name": "ls", "description": "list", "input_schema": {"type": "object"}, "strict": True}


def fields(**more: Any) -> MessagesRequest:
    return validate(MessagesRequest, {**BASE, **more})


def choice(value: Any, tools: list[dict[str, Any]] | None = None) -> tuple[ToolChoice, bool]:
    request = fields(tools=[TOOL] if tools is None else tools, tool_choice=value)
    return request.parsed_choice(request.parsed_tools()[0])


def test_max_tokens_is_needed_for_messages_alone() -> None:
    body = {name: value for name, value in BASE.items() if name != "max_tokens"}
    assert validate(CountRequest, body).model == "m"
    with pytest.raises(InvalidParameterError, match="max_tokens"):
        validate(MessagesRequest, body)


def test_parameters_of_the_sampler() -> None:
    params = fields(
        temperature=0.5, top_p=0.9, top_k=7, stop_sequences=["a", "b"], seed=3, min_p=0.1
    ).params()
    assert (params.temperature, params.top_p, params.top_k, params.stop) == (0.5, 0.9, 7, ("a", "b"))
    assert (params.seed, params.min_p, params.max_tokens) == (3, 0.1, None)


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "8"}, "max_tokens"),
        ({"messages": "hi"}, "messages"),
        ({"system": 3}, "system"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 2**40}, "top_k"),
        ({"top_k": -2}, "top_k"),
        ({"stop_sequences": ["a"] * 17}, "stop_sequences"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": ["a" * 513]}, "stop_sequences"),
        ({"stop_sequences": "a"}, "stop_sequences"),
        ({"stop_token_ids": [1] * 129}, "stop_token_ids"),
        ({"min_tokens": 9}, "min_tokens"),
        ({"cache_salt": "s" * 257}, "cache_salt"),
        ({"thinking": {"type": "maybe"}}, "thinking"),
        ({"thinking": {"type": "enabled", "budget_tokens": "many"}}, "thinking"),
        ({"output_config": {"effort": "huge"}}, "output_config"),
        ({"metadata": "me"}, "metadata"),
    ],
)
def test_what_is_wrong_is_named(more: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidParameterError) as error:
        fields(**more).params()
    assert error.value.param == param
    assert param in str(error.value)


def test_tools() -> None:
    known, dropped = fields(tools=[TOOL, {**TOOL, "name": "cat", "type": "custom"}]).parsed_tools()
    assert [(tool.name, tool.description, tool.strict) for tool in known] == [
        ("ls", "list", True),
        ("cat", "list", True),
    ]
    assert known[0].parameters == {"type": "object"}
    assert dropped == []


def test_tools_of_other_servers_are_dropped() -> None:
    others = [{"type": "web_search_20250305", "name": "web_search"}, {"type": "x\r\ny: z"}, {"type": 3}]
    known, dropped = fields(tools=[*others, TOOL]).parsed_tools()
    assert [tool.name for tool in known] == ["ls"]
    assert dropped == ["tools.0 of type web_search_20250305", "tools.1", "tools.2"]


@pytest.mark.parametrize(
    "tool",
    [
        {**TOOL, "name": None},
        {**TOOL, "name": ""},
        {**TOOL, "name": "a" * 129},
        {**TOOL, "input_schema": []},
        {"name": "ls"},
        {**TOOL, "description": 3},
        {**TOOL, "strict": "yes"},
    ],
)
def test_malformed_tools_are_refused(tool: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match=r"^tools\.0\.") as error:
        fields(tools=[tool]).parsed_tools()
    assert error.value.param == "tools"


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidParameterError, match=r"tools\.1\.name 'ls' is taken"):
        fields(tools=[TOOL, TOOL]).parsed_tools()


def test_tool_choices() -> None:
    assert choice(None) == (ToolChoice("auto"), True)
    assert choice({"type": "auto", "disable_parallel_tool_use": True}) == (ToolChoice("auto"), False)
    assert choice({"type": "any"}) == (ToolChoice("required"), True)
    assert choice({"type": "any", "disable_parallel_tool_use": True}) == (ToolChoice("required"), False)
    assert choice({"type": "tool", "name": "ls"}) == (ToolChoice("required", ("ls",)), False)
    assert choice({"type": "none"}) == (ToolChoice("none"), True)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"type": "tool", "name": "rm"}, "got name 'rm'"),
        ({"type": "tool", "name": ["ls"]}, "got name a list"),
        ({"type": "required"}, "got 'required'"),
        ({"type": {}}, "got an object"),
        ({"type": "auto", "disable_parallel_tool_use": 1}, "must be a boolean, got 1"),
    ],
)
def test_wrong_tool_choices_are_refused(value: Any, said: str) -> None:
    with pytest.raises(InvalidParameterError, match=r"^tool_choice") as error:
        choice(value)
    assert str(error.value).endswith(said)


def test_any_tool_needs_tools() -> None:
    with pytest.raises(InvalidParameterError, match="tool_choice of type any needs tools"):
        choice({"type": "any"}, tools=[])


@pytest.mark.parametrize("where", ["output_config", "output_format"])
def test_formats(where: str) -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    request = fields(**{where: {"format": form} if where == "output_config" else form})
    constraint = request.constraint()
    assert constraint is not None
    assert (constraint.kind, constraint.source) == (ConstraintKind.JSON_SCHEMA, '{"type":"object"}')
    assert constraint.param == where


@pytest.mark.parametrize(
    "form", [{"type": "regex"}, {"type": "json_schema"}, {"type": "json_schema", "schema": "x"}]
)
def test_wrong_formats_are_refused(form: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError, match="output_format"):
        fields(output_format=form).constraint()
    with pytest.raises(InvalidParameterError, match="exclude each other"):
        fields(output_format=form, output_config={"format": form}).constraint()


def test_no_format_is_no_constraint() -> None:
    assert fields().constraint() is None
    assert fields(output_config={"effort": "low"}).constraint() is None


@pytest.mark.parametrize(
    ("more", "variables"),
    [
        ({}, {}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2048}},
            {"enable_thinking": True, "thinking": True},
        ),
        (
            {"thinking": {"type": "adaptive", "display": "omitted"}},
            {"enable_thinking": True, "thinking": True},
        ),
        ({"thinking": {"type": "between_tools"}}, {"enable_thinking": True, "thinking": True}),
        ({"thinking": {"type": "disabled"}}, {"enable_thinking": False, "thinking": False}),
        ({"output_config": {"effort": "high"}}, {"reasoning_effort": "high"}),
        (
            {"output_config": {"effort": "high"}, "chat_template_kwargs": {"reasoning_effort": "low"}},
            {"reasoning_effort": "low"},
        ),
    ],
)
def test_what_the_template_sees(more: dict[str, Any], variables: dict[str, Any]) -> None:
    assert fields(**more).template_variables() == variables
