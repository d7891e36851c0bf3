"""Tools, tool choices and earlier calls in OpenAI's spellings, nested (chat) and flat (responses)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from braid.core.errors import InvalidParameterError
from braid.server.guard.body import echo
from braid.text.messages import check_depth
from braid.text.tools import Tool, ToolChoice

MAX_TOOLS = 256
CUSTOM_INPUT = "input"
"""The one argument of a custom tool, which takes free text."""

_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,128}")
_SPELLINGS = ("function", "custom")


def parse_tools(
    tools: Sequence[Mapping[str, Any]] | None, param: str = "tools"
) -> tuple[tuple[Tool, ...], list[str]]:
    """The tools a model may call, and where others stand: agents send types that only their own servers know.

    A custom tool (free text as input) becomes a function with one argument.

    Raises:
        InvalidParameterError: too many tools, or a known one is malformed; the message has its path.
    """
    if len(tools or ()) > MAX_TOOLS:
        message = f"{param} has {len(tools or ())} entries, at most {MAX_TOOLS} are allowed"
        raise InvalidParameterError(message, param=param)
    known: list[Tool] = []
    dropped: list[str] = []
    for index, tool in enumerate(tools or ()):
        path = f"{param}.{index}"
        kind = _tool_type(tool, path)
        if kind == "function":
            known.append(parse_function(_body(tool, kind), f"{path}.function"))
        elif kind == "custom":
            known.append(_custom(_body(tool, kind), f"{path}.custom", dropped))
        else:
            dropped.append(path)
    return tuple(known), dropped


def parse_function(function: object, path: str) -> Tool:
    """One function's name, description and parameters.

    Raises:
        InvalidParameterError: a known field is of the wrong type; the message has its path.
    """
    if not isinstance(function, Mapping):
        raise _error(path, "must be an object with a name")
    parameters = function.get("parameters")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise _error(f"{path}.parameters", "must be an object")
    check_depth(parameters or {}, path)
    strict = function.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise _error(f"{path}.strict", "must be true, false or null")
    return Tool(
        name=_name(function.get("name"), path),
        description=_description(function.get("description"), path),
        parameters=parameters,
        strict=bool(strict),
    )


def parse_functions(functions: Sequence[object]) -> tuple[Tool, ...]:
    """The older spelling of tools: functions alone.

    Raises:
        InvalidParameterError: too many, or a malformed one; the message has its path.
    """
    if len(functions) > MAX_TOOLS:
        message = f"functions has {len(functions)} entries, at most {MAX_TOOLS} are allowed"
        raise InvalidParameterError(message, param="functions")
    return tuple(parse_function(entry, f"functions.{index}") for index, entry in enumerate(functions))


def custom_names(tools: Sequence[Mapping[str, Any]] | None) -> frozenset[str]:
    """Names of the custom tools among tools that ``parse_tools`` has taken."""
    customs = [tool for tool in tools or () if tool.get("type") == "custom"]
    return frozenset(str(_body(tool, "custom").get("name")) for tool in customs)


def custom_input(arguments: str) -> str:
    """The free text in a custom tool's arguments; what is no such object is the text itself."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    text = value.get(CUSTOM_INPUT) if isinstance(value, dict) else None
    # A model may write half a surrogate pair, which no answer can hold.
    return (
        text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if isinstance(text, str)
        else arguments
    )


def parse_choice(
    choice: str | Mapping[str, Any] | None, tools: Sequence[Tool], param: str = "tool_choice"
) -> ToolChoice:
    """``none``, ``auto``, ``required``, a tool by name, or a choice of allowed tools.

    Raises:
        InvalidParameterError: another value, a name that is not among the tools, or a demand without tools.
    """
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        return _allowed(choice, tools, param)
    if isinstance(choice, Mapping) and choice.get("type") in ("function", "custom"):
        return ToolChoice("required", (_chosen(choice, tools, param),))
    mode = choice.get("type") if isinstance(choice, Mapping) else choice
    if mode is None and choice is None:
        return ToolChoice("auto")
    return _mode(mode, tools, param)


def parse_function_call(choice: str | Mapping[str, Any] | None, tools: Sequence[Tool]) -> ToolChoice:
    """The older spelling: ``none``, ``auto`` or a function by name."""
    if isinstance(choice, Mapping):
        return ToolChoice("required", (_known(choice.get("name"), tools, "function_call"),))
    if choice not in (None, "none", "auto"):
        message = f"function_call must be none, auto or an object with a function's name, got {echo(choice)}"
        raise InvalidParameterError(message, param="function_call")
    return ToolChoice("none" if choice == "none" else "auto")


def max_calls(parallel: bool | None, choice: ToolChoice) -> int | None:
    """Most calls of one reply; None for any number. A named call is one call."""
    named = choice.mode == "required" and len(choice.names) == 1
    return 1 if parallel is False or named else None


def as_function_calls(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with calls in one spelling: custom and older calls become function calls, their results tool
    results. What is malformed stays as it is, for those who check messages."""
    out: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        new = dict(message)
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            new["tool_calls"] = [_function_call(call) for call in calls]
        older = new.pop("function_call", None)
        if isinstance(older, Mapping) and not calls:
            new["tool_calls"] = [{"id": f"call_{index}", "type": "function", "function": dict(older)}]
        if message.get("role") == "function":
            new |= {"role": "tool", "tool_call_id": _call_before(out)}
        out.append(new)
    return out


def _function_call(call: object) -> object:
    custom = call.get("custom") if isinstance(call, Mapping) and call.get("type") == "custom" else None
    if not isinstance(call, Mapping) or not isinstance(custom, Mapping):
        return call
    arguments = json.dumps({CUSTOM_INPUT: custom.get("input", "")}, ensure_ascii=False)
    rest = {key: value for key, value in call.items() if key != "custom"}
    return {**rest, "type": "function", "function": {"name": custom.get("name"), "arguments": arguments}}


def _call_before(messages: Sequence[Mapping[str, Any]]) -> str:
    """The id of the last call: an older result does not say which call it answers."""
    calls = messages[-1].get("tool_calls") if messages else None
    last = calls[-1] if isinstance(calls, list) and calls else None
    return str(last.get("id")) if isinstance(last, Mapping) else "call_0"


def _tool_type(tool: Mapping[str, Any], path: str) -> str:
    kind = tool.get("type", "function" if "function" in tool else None)
    if not isinstance(kind, str):
        raise _error(f"{path}.type", f"must be a string, got {echo(kind)}")
    return kind


def _body(tool: Mapping[str, Any], kind: str) -> Any:
    """What describes the tool: an object of its own in chat, the tool itself in responses."""
    return tool.get(kind, tool)


def _custom(custom: object, path: str, dropped: list[str]) -> Tool:
    if not isinstance(custom, Mapping):
        raise _error(path, "must be an object with a name")
    form = custom.get("format") or {}
    if not isinstance(form, Mapping):
        raise _error(f"{path}.format", "must be an object")
    schema: dict[str, Any] = {"type": "string", "description": "The tool's input, as free text."}
    description = _description(custom.get("description"), path)
    if form.get("type") == "grammar":
        grammar = form.get("grammar", form)
        definition = grammar.get("definition") if isinstance(grammar, Mapping) else None
        if not isinstance(definition, str):
            raise _error(f"{path}.format.definition", "must be a string")
        syntax = str(grammar.get("syntax"))[:16]
        description += f"\nThe input must follow this {syntax} grammar:\n{definition}"
        dropped.append(f"{path}.format")
    parameters = {"type": "object", "properties": {CUSTOM_INPUT: schema}, "required": [CUSTOM_INPUT]}
    return Tool(name=_name(custom.get("name"), path), description=description.strip(), parameters=parameters)


def _name(name: object, path: str) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _error(f"{path}.name", f"must be 1 to 128 letters, digits, '_', '-' or '.', got {echo(name)}")
    return name


def _description(value: object, path: str) -> str:
    if value is not None and not isinstance(value, str):
        raise _error(f"{path}.description", f"must be a string or null, got {echo(value)}")
    return value or ""


def _allowed(choice: Mapping[str, Any], tools: Sequence[Tool], param: str) -> ToolChoice:
    spec = choice.get("allowed_tools", choice)
    entries = spec.get("tools") if isinstance(spec, Mapping) else None
    if not isinstance(spec, Mapping) or not isinstance(entries, list) or not entries:
        raise InvalidParameterError(f"{param}.allowed_tools.tools must be a list of tools", param=param)
    mode = spec.get("mode", "auto")
    if mode not in ("auto", "required"):
        message = f"{param}.allowed_tools.mode must be auto or required, got {echo(mode)}"
        raise InvalidParameterError(message, param=param)
    if len(entries) > MAX_TOOLS:
        message = f"{param} allows {len(entries)} tools, at most {MAX_TOOLS} are allowed"
        raise InvalidParameterError(message, param=param)
    known = [entry for entry in entries if not isinstance(entry, Mapping) or entry.get("type") in _SPELLINGS]
    names = dict.fromkeys(_chosen(entry, tools, param) for entry in known)
    return ToolChoice(mode, tuple(names)) if names else _mode("none", tools, param)


def _chosen(entry: object, tools: Sequence[Tool], param: str) -> str:
    body = _body(entry, str(entry.get("type"))) if isinstance(entry, Mapping) else None
    return _known(body.get("name") if isinstance(body, Mapping) else None, tools, param)


def _known(name: object, tools: Sequence[Tool], param: str) -> str:
    if isinstance(name, str) and any(tool.name == name for tool in tools):
        return name
    raise InvalidParameterError(f"{param} names {echo(name)}, which is not among the tools", param=param)


def _mode(mode: object, tools: Sequence[Tool], param: str) -> ToolChoice:
    if mode == "required" and not tools:
        raise InvalidParameterError(f"{param} required needs at least one function tool", param=param)
    if mode == "none" or mode == "auto" or mode == "required":
        return ToolChoice(mode)
    message = (
        f"{param} must be none, auto, required, allowed tools or the name of a given tool, got {echo(mode)}"
    )
    raise InvalidParameterError(message, param=param)


def _error(path: str, what: str) -> InvalidParameterError:
    return InvalidParameterError(f"{path} {what}", param=path.partition(".")[0])
