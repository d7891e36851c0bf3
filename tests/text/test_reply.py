"""The machine under all formats: calls in JSON, markers and blanks, in every shape a template may give."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.text.json_calls import Begin, End, JsonCalls, Keys, More, Shape, State
from braid.text.markers import MAX_MARKER, Marker, Scanner, Watch
from braid.text.regions import regions_of
from braid.text.reply import CallArguments, CallEnd, CallStart, Content, PlainReader, Reasoning, ReplyPart
from braid.text.reply_reader import Grammar, RegionReader

THINK = {"open": "<think>", "close": "</think>", "repeats": True, "join": "\n"}
CALL = {
    "open": "<call>",
    "close": "</call>",
    "repeats": True,
    "content": "json",
    "transform": {"function": {"name": "{content.name}", "arguments": "{content.arguments}"}},
}


class NoParser:
    def calls(self, text: str, tools: Any) -> list[tuple[str, str]]:
        return []


def parts(pieces: Iterable[str], fields: dict[str, Any] | None = None) -> list[ReplyPart]:
    """The parts of a reply, joined."""
    template = {"fields": fields or {"thinking": THINK, "content": {}, "tool_calls": CALL}}
    grammar = Grammar(
        regions=regions_of(template), parser=NoParser(), names=frozenset({"f"}), make_id=lambda: "id"
    )
    reader = RegionReader(grammar)
    result: list[ReplyPart] = []
    for part in [*(part for piece in pieces for part in reader.feed(piece)), *reader.finish()]:
        last = result[-1] if result else None
        if isinstance(part, (Content, Reasoning, CallArguments)) and isinstance(last, type(part)):
            result[-1] = last._replace(text=last.text + part.text)  # type: ignore[union-attr]
        else:
            result.append(part)
    return result


def call(arguments: str, number: int = 0, *, ended: bool = True) -> list[ReplyPart]:
    end: list[ReplyPart] = [CallEnd(number)] if ended else []
    return [CallStart(number, "id", "f"), CallArguments(number, arguments), *end]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", []),
        (" \n", [Content(" \n")]),
        ("\n a \n", [Content("\n a \n")]),
        ("<think>\n a \n</think>\n\n b\n", [Reasoning("a"), Content("b\n")]),
        ("<think> \n</think>\n", []),
        ("<think>a</think>\n<think>b</think>", [Reasoning("a\nb")]),
        ("<think>a", [Reasoning("a")]),
        ('a\n<call>{"name":"f","arguments":{}}</call>\n', [Content("a"), *call("{}")]),
        ('a\n<call>{"name":"f","arguments":{}}</call>b', [Content("a"), *call("{}"), Content("\nb")]),
        (' <call> {"arguments": {"a": {}} , "name":"f"} </call> ', call('{"a": {}}')),
        ('<call>{"name":"f","arguments":null}</call>', call("{}")),
        ('<call>{"name":"f","arguments":"{\\"a\\": 1}"}</call>', call('{"a": 1}')),
        ('<call>{"name":"f"}</call>', call("{}")),
        ('<call>{"id":[1,{"x":"}"}],"name":"f","arguments":{"a":1},"z":"</call>"}</call>', call('{"a":1}')),
        ('<call>{"name":"f","arguments":{"a":"</call>\\"}"}}', call('{"a":"</call>\\"}"}')),
        ('<call>{"name":"f","arguments":{"a":1}</call>', call('{"a":1}')),
        ('<call>{"name":"f","arguments":{"a":1}}}</call>', [*call('{"a":1}'), Content("}</call>")]),
        ('<call>{"name":"f","arguments":{"a":1', call('{"a":1', ended=False)),
        ('<call>{"name":"f","arguments":{"a":x}}</call>!', [*call('{"a":x}}'), Content("!")]),
        ('<call>{"name":"f","arguments":{"a":"1\n2"}}</call>', call('{"a":"1\n2"}')),
        ('<call>{"name":"f","arguments":{}}</call><call>[</call>', [*call("{}"), Content("<call>[</call>")]),
    ],
)  # fmt: skip
def test_parts(text: str, wanted: list[ReplyPart]) -> None:
    assert parts([text]) == wanted
    assert parts(text) == wanted


def test_a_mark_is_left_out_beside_calls_only() -> None:
    fields = {
        "_calls": {"open": ["<begin>", "<end>"], "close_pattern": ""},
        "content": {},
        "tool_calls": CALL,
    }
    made = '<call>{"name":"f","arguments":{}}</call>'
    cases = {
        f"<begin>\n{made}\n<end>\n": call("{}"),
        "a <begin> b": [Content("a <begin> b")],
        "<begin>": [Content("<begin>")],
        "<begin><call>x": [Content("<begin><call>x")],
        f"{made}<end> b <end>": [*call("{}"), Content("b <end>")],
    }
    for text, wanted in cases.items():
        assert parts([text], fields) == wanted
        assert parts(text, fields) == wanted


def test_a_bare_object_is_a_call_where_it_names_a_tool() -> None:
    fields = {"content": {}, "tool_calls": {**CALL, "open": None, "close": None}}
    del fields["tool_calls"]["open"], fields["tool_calls"]["close"]
    fields["tool_calls"]["open_pattern"] = r'\A\s*(?=\{\s*"name")'
    assert parts('{"name": "f", "arguments": {"a": 1}}', fields) == call('{"a": 1}')
    for text in ('{"name": "g", "arguments": {"a": 1}}', '{"name": "f"}', '{"name": "f", "x": 1} y'):
        assert parts(text, fields) == [Content(text)]
        assert parts([text], fields) == [Content(text)]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.text(max_size=5), VALUES, max_size=4),
    st.booleans(),
    st.sampled_from([None, 1]),
    st.integers(1, 9),
)
def test_any_arguments_pass_as_they_are(value: Any, ascii_: bool, indent: int | None, step: int) -> None:
    arguments = json.dumps(value, ensure_ascii=ascii_, indent=indent)
    text = f'<call>{{"name": "f", "arguments": {arguments}}}</call>'
    assert parts(text[at : at + step] for at in range(0, len(text), step)) == call(arguments)


def run(shape: Shape, text: str, name: str | None = None) -> tuple[list[Any], State]:
    machine = JsonCalls(shape, Keys(), name, lenient=True, accept=lambda name: True)
    steps = [step for char in text for step, _ in machine.feed(char) if step is not None]
    return steps, machine.state


def test_the_shapes_of_json_calls() -> None:
    arguments = [More(char) for char in '{"a":1}']
    one = [Begin("f"), *arguments, End()]
    assert run(Shape.ARGUMENTS, ' {"a":1}', "f") == (one, State.DONE)
    assert run(Shape.ARGUMENTS, "[1]", "f") == ([], State.NO_CALL)
    item = '{"name":"f","arguments":{"a":1}}'
    assert run(Shape.LIST, f" [ {item} , {item} ]") == ([*one, *one], State.DONE)
    assert run(Shape.LIST, f"[{item}, 3]") == (one, State.NO_CALL)
    assert run(Shape.LIST, item) == ([], State.NO_CALL)
    assert run(Shape.OBJECT, f"{item[:-1]}")[1] is State.OPEN
    assert run(Shape.OBJECT, '{"name":"f","arguments":{a')[1] is State.OPEN
    assert run(Shape.OBJECT, '{"name":"f","arguments":{<')[1] is State.BROKEN


def test_markers_wait_as_long_as_they_must() -> None:
    watch = Watch([Marker(literals=["<a>", "<a>b"]), Marker(pattern=r"<(?P<name>\w+)=")])
    scanner = Scanner()
    scanner.add("x<a>")
    assert scanner.find(watch) == ("x", None)
    scanner.add("c")
    text, hit = scanner.find(watch)
    assert hit is not None
    assert (text, hit.text, scanner.rest()) == ("", "<a>", "c")
    scanner.add("<name=")
    assert scanner.find(watch) == ("c", None)
    scanner.end()
    _, hit = scanner.find(watch)
    assert hit is not None
    assert hit.groups == {"name": "name"}


def test_a_marker_has_a_greatest_length() -> None:
    watch = Watch([Marker(pattern=r"<\w+>")])
    scanner = Scanner()
    scanner.add("<" + "a" * (MAX_MARKER - 2))
    assert scanner.find(watch)[0] == ""
    scanner.add("a" * 5)
    assert len(scanner.find(watch)[0]) == MAX_MARKER + 4


@pytest.mark.parametrize(
    "text",
    ["word ", "<a ", "\n \n", "é日", '<call>{"name":"f","arguments":{"a":"', "<think>x ", "<call><call>"],
)
def test_long_replies_take_linear_work(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is judged, and what is kept to be judged, stays in proportion to what comes."""
    judged, kept = [], []
    judge = Watch.judge

    def counted(self: Watch, text: str, begin: int, end: int) -> Any:
        judged.append(end - begin)
        kept.append(len(text))
        return judge(self, text, begin, end)

    monkeypatch.setattr(Watch, "judge", counted)
    reply = text + text[-3:] * 5_000
    parts(reply[at : at + 4] for at in range(0, len(reply), 4))
    assert len(judged) <= 4 * len(reply)
    assert max(kept, default=0) <= MAX_MARKER + 100


def test_plain_replies_are_content() -> None:
    reader = PlainReader()
    assert [*reader.feed("a<think>"), *reader.feed(""), *reader.finish()] == [Content("a<think>")]
