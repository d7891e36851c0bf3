"""How a format's calls are written, as grammars in llguidance's dialect of Lark.

A wire is data: ``begin``, ``call``, ``between`` and ``end`` hold pieces. A piece is text (``{name}`` stands for the
tool's name) or one of ``{"arguments": true}`` (JSON by the tool's schema), ``{"object": [name, arguments]}`` (an object
with these keys), ``{"parameters": [before, between, after]}`` (one tag per argument) and ``{"text": after}`` (a shell
command up to ``after``). ``think`` are the markers around thinking,
``answer`` comes before content, ``bare`` says that nothing but its JSON shows a call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from braid.core.constraint import JSON_BLANKS, Constraint, ConstraintKind
from braid.core.errors import InvalidParameterError
from braid.text.schema import call_schema, is_text, property_schemas, text_bounds, tool_schema
from braid.text.shell import shell_tool
from braid.text.tools import Tool, ToolChoice

Thinking = Literal["no", "maybe", "open"]
Piece = str | Mapping[str, Any]
_ANY = r"/(.|\n)*/"


class WireTokens(NamedTuple):
    """Ids of the markers that are special tokens: text of the same letters is not the marker.

    ``ends`` are those that end an output wherever they come: no grammar says them, and nothing follows them.
    """

    ids: Mapping[str, int]
    ends: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Wire:
    """The pieces; see the module."""

    call: tuple[Piece, ...]
    begin: str = ""
    between: str = ""
    end: str = ""
    think: tuple[str, str] | None = None
    answer: str = ""
    bare: bool = False

    @property
    def text(self) -> str:
        """All markers."""
        pieces = [
            piece if isinstance(piece, str) else json.dumps(piece, ensure_ascii=False) for piece in self.call
        ]
        return "\n".join([self.begin, *pieces, self.between, self.end, *(self.think or ()), self.answer])


def example_of(wire: Wire) -> str:
    """How a call looks, for a model that has to be told."""
    shown = {"arguments": '{"PARAMETER": VALUE}', "text": "COMMAND", "parameters": "PARAMETERS"}
    shown["object"] = '{"name": NAME, "parameters": {"PARAMETER": VALUE}}'
    pieces = [piece if isinstance(piece, str) else shown[next(iter(piece))] for piece in wire.call]
    return f"{wire.begin}{''.join(pieces)}{wire.end}".replace("{name}", "NAME")


def wire_of(data: Mapping[str, Any] | None) -> Wire | None:
    """A wire from a format's file."""
    if data is None:
        return None
    fields = {**data, "call": tuple(data["call"])}
    if "think" in data:
        fields["think"] = (data["think"][0], data["think"][1])
    return Wire(**fields)


def write_grammar(
    wire: Wire | None,
    tokens: WireTokens,
    *,
    tools: Sequence[Tool],
    choice: ToolChoice,
    parallel: bool,
    answer: Constraint | None,
    thinking: Thinking,
) -> Constraint | None:
    """The grammar of an output; see ``ReplyFormat.constraint``.

    Raises:
        InvalidParameterError: calls are demanded that this format or these tools cannot make; too long a grammar.
    """
    usable = [tool for tool in tools if not choice.names or tool.name in choice.names]
    lark = _Lark(tokens)
    if choice.mode == "required":
        body, param = _required(lark, wire, usable, choice, parallel), "tool_choice"
    elif answer is not None:
        free = choice.mode == "auto" and wire is not None and usable
        calls = [_calls(lark, wire, usable, parallel)] if free and wire is not None else []
        body, param = " | ".join([_answer(lark, wire, answer), *calls]), answer.param
        if not calls and thinking == "no" and not (wire is not None and wire.answer):
            return answer
    elif choice.mode == "auto" and wire is not None and (_holds(usable) or (choice.names and usable)):
        body, param = _free(lark, wire, usable, parallel), "tools"
    else:
        return None
    return lark.constraint(_thought(lark, wire, body, thinking), param)


def _holds(tools: Sequence[Tool]) -> bool:
    return any(tool.strict for tool in tools)


def _required(
    lark: _Lark, wire: Wire | None, tools: Sequence[Tool], choice: ToolChoice, parallel: bool
) -> str:
    if wire is None:
        raise InvalidParameterError(
            "this model's format of tool calls is not known, so none can be demanded; start the server with "
            "--tool-call-parser, or use tool_choice auto",
            param="tool_choice",
        )
    if not tools:
        wanted = ", ".join(choice.names) or "a tool"
        raise InvalidParameterError(
            f"tool_choice demands {wanted[:200]}, which is not in tools", param="tool_choice"
        )
    return _calls(lark, wire, tools, parallel)


def _thought(lark: _Lark, wire: Wire | None, body: str, thinking: Thinking) -> str:
    """``body`` after the thinking that is open or may come."""
    think = ("<think>", "</think>") if wire is None else wire.think
    if think is None or thinking == "no":
        return body
    begin, end = think
    rest = lark.rule(f"{lark.until(end)} {lark.blank()}")
    if thinking == "open":
        return f"{rest} ({body})"
    return f"({lark.literal(begin)} {rest})? ({body})"


def _answer(lark: _Lark, wire: Wire | None, answer: Constraint) -> str:
    prefix = "" if wire is None else wire.answer
    return f"{lark.literal(prefix)} {lark.embed(answer)}"


def _calls(lark: _Lark, wire: Wire, tools: Sequence[Tool], parallel: bool) -> str:
    """One call, or several."""
    calls = lark.rule(" | ".join(_call(lark, wire.call, tool) for tool in tools))
    last = wire.call[-1]
    parallel = parallel and not (isinstance(last, str) and lark.ends_output(last))
    more = f" ({lark.literal(wire.between)} {calls})*" if parallel else ""
    return lark.rule(f"{lark.literal(wire.begin)} {calls}{more} {lark.literal(wire.end)}")


def _free(lark: _Lark, wire: Wire, tools: Sequence[Tool], parallel: bool) -> str:
    """Any text, with calls that keep to the schemas of strict tools."""
    relaxed = [tool if tool.strict else Tool(name=tool.name) for tool in tools]
    if wire.answer or wire.bare:
        text = f"{lark.literal(wire.answer)} {_ANY}" if wire.answer else r"/[^{](.|\n)*/ | "
        return f"{_calls(lark, wire, relaxed, parallel)} | {text}"
    first = wire.begin + (wire.call[0] if isinstance(wire.call[0], str) else "")
    trigger = lark.trigger(first)
    within = Wire(call=_without(trigger, wire), between=wire.between, end=wire.end)
    calls = _calls(lark, within, relaxed, parallel)
    return f"({lark.until(trigger)} {calls}){'*' if parallel else '?'} {_ANY}"


def _without(trigger: str, wire: Wire) -> tuple[Piece, ...]:
    return ((wire.begin + str(wire.call[0])).removeprefix(trigger), *wire.call[1:])


def _call(lark: _Lark, pieces: Sequence[Piece], tool: Tool) -> str:
    return " ".join(_piece(lark, piece, tool) for piece in pieces)


def _piece(lark: _Lark, piece: Piece, tool: Tool) -> str:
    if isinstance(piece, str):
        # Within JSON the name is a string of JSON; elsewhere it stands for itself.
        quoted = json.dumps(tool.name, ensure_ascii=False)
        return lark.literal(piece.replace('"{name}"', quoted).replace("{name}", tool.name))
    if "arguments" in piece:
        return lark.json(tool_schema(tool))
    if "object" in piece:
        return lark.json(call_schema(tool, *piece["object"]))
    if "text" in piece:
        return _command(lark, tool, piece["text"])
    before, between, after = piece["parameters"]
    parts = []
    for name, schema, required in property_schemas(tool):
        part = f"{lark.literal(before + name + between)} {_value(lark, schema, after)}"
        parts.append(part if required else f"({part})?")
    return lark.rule(" ".join(parts) or '""')


def _command(lark: _Lark, tool: Tool, after: str) -> str:
    shell = shell_tool([tool])
    schemas = {name: schema for name, schema, _ in property_schemas(tool)}
    return lark.until(after, *text_bounds(schemas.get(shell.argument, {}) if shell else {}))


def _value(lark: _Lark, schema: Mapping[str, Any], after: str) -> str:
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(choices, list) and choices and all(isinstance(value, str) for value in choices):
        return f"({' | '.join(lark.literal(value) for value in choices)}) {lark.literal(after)}"
    if is_text(schema):
        closing = after.rstrip("\n")
        value = lark.until(closing, *text_bounds(schema), only=True)
        return f"{value} {lark.literal(after[len(closing) :])}"
    return f"{lark.json(schema)} {lark.literal(after)}"


class _Lark:
    """Rules as they come up."""

    def __init__(self, tokens: WireTokens) -> None:
        self._tokens = tokens.ids
        self._ends = tokens.ends
        longest = sorted(tokens.ids, key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, longest)) or r"(?!)")
        self._lines: list[str] = []

    def constraint(self, body: str, param: str) -> Constraint:
        source = "\n".join([f"start: {body}", *self._lines])
        return Constraint(kind=ConstraintKind.LARK, source=source, param=param)

    def rule(self, body: str, options: str = "") -> str:
        name = f"r{len(self._lines)}"
        self._lines.append(f"{name}{options}: {body}")
        return name

    def literal(self, text: str) -> str:
        """Exactly this text, special tokens as themselves."""
        parts, at = [], 0
        for match in self._special.finditer(text):
            token = "" if match[0] in self._ends else f"<[{self._tokens[match[0]]}]>"
            parts += [text[at : match.start()], token]
            at = match.end()
        parts.append(text[at:])
        quoted = [p if i % 2 else json.dumps(p, ensure_ascii=False) for i, p in enumerate(parts) if p]
        return " ".join(quoted)

    def ends_output(self, text: str) -> bool:
        return any(match[0] in self._ends for match in self._special.finditer(text))

    def blank(self) -> str:
        return r"/\n{0,2}/"

    def until(self, end: str, least: int = 0, most: int | None = None, *, only: bool = False) -> str:
        """Any text up to the first ``end``, and ``end``.

        ``only`` is for an ``end`` of a tag after line breaks: the tag comes nowhere else either.
        """
        text = (
            r"(.|\n)*" if most is None and not least else rf"(.|\n){{{least},{'' if most is None else most}}}"
        )
        tag = end.lstrip("\n")
        if self._special.match(tag):
            return f"/{text}/ {self.literal(tag)}"
        pattern = f"/{text}{_slashed(re.escape(end))}/"
        if only and tag != end:
            elsewhere = rf"/((?s:.*)[^\n])?{_slashed(re.escape(tag))}(?s:.+)/"
            self._lines.append(f"T{len(self._lines)}: {pattern} & ~{elsewhere}")
            pattern = f"T{len(self._lines) - 1}"
        return self.rule(pattern, "[lazy]")

    def trigger(self, text: str) -> str:
        """The first part of a call that shows what it is: a special token, else the first line."""
        special = self._special.match(text)
        if special is not None:
            return special[0]
        return re.split(r"\n|\{name\}", text, maxsplit=1)[0]

    def json(self, schema: Mapping[str, Any]) -> str:
        return self.rule(f"%json {json.dumps(schema, ensure_ascii=False)}")

    def embed(self, answer: Constraint) -> str:
        match answer.kind:
            case ConstraintKind.JSON_SCHEMA:
                return self.rule(f"%json {_answer_schema(answer)}")
            case ConstraintKind.REGEX:
                return self.rule(f"/{_slashed(answer.source)}/")
            case ConstraintKind.LARK:
                return self.rule(f"%lark {{\n{answer.source}\n}}")


def _answer_schema(answer: Constraint) -> str:
    """A client's schema, with blanks as in the schemas of tools; what is no schema is left for the engine to refuse."""
    try:
        schema = json.loads(answer.source)
    except (ValueError, RecursionError):
        return answer.source
    if not isinstance(schema, dict) or "x-guidance" in schema:
        return answer.source
    return json.dumps({**schema, "x-guidance": {"whitespace_pattern": JSON_BLANKS}}, ensure_ascii=False)


def _slashed(pattern: str) -> str:
    """A pattern for use between slashes, where a line break is not allowed either."""
    return re.sub(r"\\(.)|(/)|(\n)", _escape, pattern, flags=re.DOTALL)


def _escape(match: re.Match[str]) -> str:
    if match[2]:
        return r"\/"
    if match[3]:
        return r"\n"
    return r"\n" if match[1] == "\n" else match[0]
