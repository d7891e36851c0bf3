"""Tools of the Responses API as its answers repeat them, and the free text of custom tools as it streams."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from braid.server.dialects.tools import custom_names, parse_choice, parse_tools
from braid.text.tools import Tool, ToolChoice

_SPELLINGS = ("function", "custom")
_HEAD = '{"input":"'
_HEAD_PATTERN = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_LONGEST_HEAD = 64
_HEX = "[0-9a-fA-F]"
_HIGH, _LOW = rf"[dD][89abAB]{_HEX}{{2}}", rf"[dD][c-fC-F]{_HEX}{{2}}"
_PIECE = re.compile(rf'[^"\\]+|\\u{_HIGH}\\u{_LOW}|\\u{_HEX}{{4}}|\\.|"', re.DOTALL)
_MAY_GO_ON = re.compile(rf"\\(?:u(?:{_HEX}{{0,3}}|{_HIGH}(?:\\(?:u(?:[dD](?:[c-fC-F]{_HEX}?)?)?)?)?)?)?")
_ESCAPED = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class ToolSet(NamedTuple):
    """The tools of one request.

    ``custom`` has the names of the custom ones, ``shown`` and ``shown_choice`` what the answer repeats, ``dropped``
    where the request asks for what only other servers have.
    """

    tools: tuple[Tool, ...]
    choice: ToolChoice
    custom: frozenset[str]
    shown: list[dict[str, Any]]
    shown_choice: str | dict[str, Any]
    dropped: list[str]


def tool_set(tools: Sequence[dict[str, Any]] | None, choice: str | dict[str, Any] | None) -> ToolSet:
    """Read ``tools`` and ``tool_choice``; the choice of a tool that only other servers have is no choice.

    Raises:
        InvalidParameterError: a function or custom tool is malformed, or the choice names none of them.
    """
    known, dropped = parse_tools(tools)
    if isinstance(choice, dict) and choice.get("type") not in (*_SPELLINGS, "allowed_tools"):
        dropped.append("tool_choice")
        choice = None
    parsed = parse_choice(choice, known)
    shown = [_shown(tool, kind) for tool in tools or () if (kind := _kind(tool)) in _SPELLINGS]
    return ToolSet(known, parsed, custom_names(tools), shown, _shown_choice(choice, parsed), dropped)


def _kind(tool: Mapping[str, Any]) -> str:
    return str(tool.get("type", "function" if "function" in tool else None))


def _shown(tool: Mapping[str, Any], kind: str) -> dict[str, Any]:
    body = tool.get(kind, tool)
    shown = {"type": kind, "name": body["name"], "description": body.get("description")}
    if kind == "custom":
        return {**shown, "format": _shown_format(body.get("format") or {})}
    return {**shown, "parameters": body.get("parameters"), "strict": body.get("strict")}


def _shown_format(form: Mapping[str, Any]) -> dict[str, Any]:
    grammar = form.get("grammar", form)
    if form.get("type") != "grammar" or grammar.get("syntax") not in ("lark", "regex"):
        return {"type": "text"}
    return {"type": "grammar", "syntax": grammar["syntax"], "definition": grammar["definition"]}


def _shown_choice(choice: str | Mapping[str, Any] | None, parsed: ToolChoice) -> str | dict[str, Any]:
    if not isinstance(choice, Mapping):
        return choice or "auto"
    if choice["type"] in _SPELLINGS:
        return {"type": choice["type"], "name": parsed.names[0]}
    allowed = choice.get("allowed_tools", choice)
    return {"type": "allowed_tools", "mode": allowed.get("mode", "auto"), "tools": allowed["tools"]}


class InputText:
    """Unpacks the text of a custom tool's input from the arguments ``{"input": "..."}`` as they grow.

    1. The texts joined are the same however the arguments were cut.
    2. Arguments of another form are the input as they stand: nothing a model wrote is lost but what follows the text.
    """

    def __init__(self) -> None:
        self._held = ""
        self._state = "head"

    def feed(self, arguments: str) -> str:
        """More of the input."""
        if self._state == "raw":
            return arguments
        self._held += arguments
        if self._state == "head":
            self._look_for_text()
        if self._state == "raw":
            held, self._held = self._held, ""
            return held
        return self._take(last=False) if self._state == "text" else ""

    def finish(self) -> str:
        """The arguments are over: what was held back."""
        if self._state == "text":
            return self._take(last=True)
        return self._held if self._state == "head" else ""

    def _look_for_text(self) -> None:
        found = _HEAD_PATTERN.match(self._held)
        if found is not None:
            self._state, self._held = "text", self._held[found.end() :]
        elif len(self._held) > _LONGEST_HEAD or not _HEAD.startswith("".join(self._held.split())):
            self._state = "raw"

    def _take(self, *, last: bool) -> str:
        """Text up to the closing quote; an escape that may go on waits, and so does half a surrogate pair."""
        out, at, held = [], 0, self._held
        while at < len(held) and (last or not _MAY_GO_ON.fullmatch(held, at)):
            piece = _PIECE.match(held, at)
            text = held[at:] if piece is None else piece.group()
            at += len(text)
            if text == '"':
                self._state, at = "done", len(held)
                break
            out.append(_unescape(text))
        self._held = held[at:]
        return "".join(out)


def _unescape(piece: str) -> str:
    """An escape that JSON does not know stays as it was written."""
    if piece[0] != "\\":
        return piece
    if len(piece) > 2:
        return str(json.loads(f'"{piece}"')).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return _ESCAPED.get(piece[1:], piece)
