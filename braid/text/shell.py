"""The one tool of a format that can only run commands, such as fenced shell code."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from braid.text.chat_parsing import ChatParser
from braid.text.tools import Tool

_NAMES = (
    "bash",
    "shell",
    "sh",
    "terminal",
    "execute_bash",
    "run_command",
    "execute_command",
    "run_shell_command",
)
_ARGUMENTS = ("command", "cmd", "script", "code", "input")


class ShellTool(NamedTuple):
    """A client's tool and its argument that takes the command."""

    name: str
    argument: str


def shell_tool(tools: Sequence[Tool]) -> ShellTool | None:
    """The tool that runs commands: one of the usual names, else the first with one of the usual arguments."""
    found = [ShellTool(tool.name, argument) for tool in tools if (argument := _argument(tool)) is not None]
    named = [tool for tool in found if tool.name.lower() in _NAMES]
    return next(iter([*named, *found]), None)


def _argument(tool: Tool) -> str | None:
    properties = (tool.parameters or {}).get("properties")
    if not isinstance(properties, Mapping):
        return None
    return next((name for name in _ARGUMENTS if name in properties), None)


class ShellCalls:
    """Gives the parser's calls the names that the client knows."""

    def __init__(self, parser: ChatParser, tool: ShellTool) -> None:
        self._parser = parser
        self._tool = tool

    def calls(self, text: str, tools: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
        return [(self._tool.name, self._renamed(text)) for _, text in self._parser.calls(text, ())]

    def _renamed(self, arguments: str) -> str:
        (command,) = json.loads(arguments).values()
        return json.dumps({self._tool.argument: command}, ensure_ascii=False)
