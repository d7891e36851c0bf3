"""Tools and tool choices in OpenAI's spelling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from braid.core.errors import InvalidParameterError
from braid.server.guard.body import echo
from braid.text.tools import Tool, ToolChoice


def parse_tools(tools: Sequence[dict[str, Any]] | None) -> tuple[tuple[Tool, ...], list[str]]:
    """Function tools, and where others stand: agents send other types, and a refusal would break them.

    Raises:
        InvalidParameterError: a function tool is malformed.
    """
    known, dropped = [], []
    for index, tool in enumerate(tools or ()):
        if tool.get("type") != "function":
            dropped.append(f"tools.{index}")
            continue
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            message = f"tools.{index}.function must be an object with a name"
            raise InvalidParameterError(message, param="tools")
        known.append(
            Tool(
                name=function["name"],
                description=str(function.get("description") or ""),
                parameters=function.get("parameters"),
                strict=bool(function.get("strict")),
            )
        )
    return tuple(known), dropped


def parse_choice(choice: str | dict[str, Any] | None, tools: Sequence[Tool]) -> ToolChoice:
    """``none``, ``auto``, ``required``, or a function by name.

    Raises:
        InvalidParameterError: another value, or a name that is not among the tools.
    """
    if choice is None or choice == "auto":
        return ToolChoice("auto")
    if choice == "none":
        return ToolChoice("none")
    if choice == "required" and tools:
        return ToolChoice("required")
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if any(tool.name == name for tool in tools):
        return ToolChoice("required", (str(name),))
    message = f"tool_choice must be none, auto, required or the name of a given function, got {echo(choice)}"
    raise InvalidParameterError(message, param="tool_choice")


def max_calls(parallel: bool | None, choice: ToolChoice) -> int | None:
    """Most calls of one reply: a named call is one call."""
    return 1 if parallel is False or choice.names else None
