from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.server.dialects.responses_tools import InputText, tool_set
from braid.server.dialects.tools import custom_input


def unpack(*pieces: str) -> str:
    text = InputText()
    return "".join(map(text.feed, pieces)) + text.finish()


CASES = {
    '{"input": "a"}': "a",
    ' {\n "input" :"a\\n\\"b\\\\ \\u00e9 \\ud83d\\ude00"} ': 'a\n"b\\ é 😀',
    '{"input": "raw é 😀\nline"}': "raw é 😀\nline",
    '{"input": "cut off': "cut off",
    '{"input": "cut \\': "cut \\",
    '{"input": "cut \\u00': "cut \\u00",
    '{"input": "half \\ud83d': "half �",
    '{"input": "half \\ud83d x \\ude00"}': "half � x �",
    '{"input": "two \\ud83d\\ud83d\\ude00"}': "two �😀",
    '{"input": "\\x \\uZZ"}': "\\x \\uZZ",
    '{"input": "a", "more": 1}': "a",
    '{"inp': '{"inp',
    '{"in put": "a"}': '{"in put": "a"}',
    '{"other": "a"}': '{"other": "a"}',
    '{"input": 5}': '{"input": 5}',
    "*** Begin Patch": "*** Begin Patch",
    " " * 100: " " * 100,
    "": "",
}


@pytest.mark.parametrize(("arguments", "text"), CASES.items())
def test_input_is_the_same_however_cut(arguments: str, text: str) -> None:
    assert unpack(arguments) == text
    assert unpack(*arguments) == text
    for at in range(len(arguments)):
        assert unpack(arguments[:at], arguments[at:]) == text


@given(st.text(st.characters(exclude_categories=["Cs"])), st.booleans(), st.lists(st.integers(0, 200)))
def test_what_json_wrote_is_read(text: str, ascii_only: bool, cuts: list[int]) -> None:
    arguments = json.dumps({"input": text}, ensure_ascii=ascii_only)
    ends = sorted({min(cut, len(arguments)) for cut in [0, *cuts, len(arguments)]})
    pieces = [arguments[start:end] for start, end in itertools.pairwise(ends)]
    assert unpack(*pieces) == text == custom_input(arguments)


def test_shown_tools_are_flat() -> None:
    nested = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    flat = {"type": "custom", "name": "p", "description": "d", "format": {"type": "text"}}
    read = tool_set([nested, {"type": "mcp"}, flat], {"type": "function", "function": {"name": "f"}})
    assert [tool.name for tool in read.tools] == ["f", "p"]
    assert read.custom == {"p"}
    assert read.shown == [
        {
            "type": "function",
            "name": "f",
            "description": None,
            "parameters": {"type": "object"},
            "strict": None,
        },
        flat,
    ]
    assert read.shown_choice == {"type": "function", "name": "f"}
    assert read.dropped == ["tools.1"]


def test_shown_allowed_tools_are_flat() -> None:
    entries = [{"type": "function", "name": "f"}]
    choice = {"type": "allowed_tools", "allowed_tools": {"tools": entries}}
    read = tool_set([{"type": "function", "name": "f"}], choice)
    assert read.shown_choice == {"type": "allowed_tools", "mode": "auto", "tools": entries}


@pytest.mark.parametrize(
    ("form", "shown"),
    [
        (None, {"type": "text"}),
        ({"type": "grammar", "syntax": "peg", "definition": "x"}, {"type": "text"}),
        *(
            (form, {"type": "grammar", "syntax": "regex", "definition": "a+"})
            for form in (
                {"type": "grammar", "syntax": "regex", "definition": "a+"},
                {"type": "grammar", "grammar": {"syntax": "regex", "definition": "a+"}},
            )
        ),
    ],
)
def test_shown_formats_are_those_of_the_api(form: object, shown: dict[str, str]) -> None:
    assert tool_set([{"type": "custom", "name": "p", "format": form}], None).shown[0]["format"] == shown
