from __future__ import annotations

import json
from typing import Any

import pytest

from braid.core.errors import InvalidParameterError
from braid.server.dialects.responses_input import FOREIGN, open_reasoning, read_input, seal_reasoning
from braid.server.errors import HttpError

USER = {"role": "user", "content": "hi"}
CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "done"}
CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def thought(text: str) -> dict[str, Any]:
    return {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": text}]}


def said(text: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": text, "annotations": []}
    return {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "content": [part]}


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ("hi", [USER]),
        ([USER], [USER]),
        ([{"type": "message", **USER}], [USER]),
        (
            [{"role": "user", "content": [{"type": "input_text", "text": "hi"}]}],
            [USER],
        ),
        (
            [{"role": "user", "content": [{"type": "input_text", "text": text} for text in "ab"]}],
            [{"role": "user", "content": [{"type": "text", "text": text} for text in "ab"]}],
        ),
        ([{"role": "user", "content": []}], [{"role": "user", "content": ""}]),
        (
            [{"role": "developer", "content": "a"}, {"role": "system", "content": "b"}, USER],
            [{"role": "developer", "content": "a\n\nb"}, USER],
        ),
        (
            [USER, {"role": "developer", "content": "later"}],
            [USER, {"role": "developer", "content": "later"}],
        ),
        (
            [USER, thought("hm"), said("yes"), CALL, OUTPUT],
            [
                USER,
                {
                    "role": "assistant",
                    "content": "yes",
                    "reasoning_content": "hm",
                    "tool_calls": [CHAT_CALL],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "done"},
            ],
        ),
        (
            [USER, CALL, CALL, OUTPUT, OUTPUT],
            [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL, CHAT_CALL]},
                {"role": "tool", "tool_call_id": "c1", "content": "done"},
                {"role": "tool", "tool_call_id": "c1", "content": "done"},
            ],
        ),
        (
            [USER, said("one"), said("two"), USER],
            [USER, {"role": "assistant", "content": "one\ntwo"}, USER],
        ),
        ([USER, thought("cut off"), USER], [USER, USER]),
        (
            [USER, {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}],
            [USER, {"role": "assistant", "content": "no"}],
        ),
        (
            [{**OUTPUT, "output": [{"type": "input_text", "text": "a"}]}],
            [{"role": "tool", "tool_call_id": "c1", "content": "a"}],
        ),
    ],
)
def test_items_become_messages(items: Any, messages: list[dict[str, Any]]) -> None:
    assert read_input(items, None).messages == messages


def test_instructions_and_leading_messages_are_one() -> None:
    items = [{"role": "developer", "content": "b"}, USER, {"role": "developer", "content": "c"}]
    messages = read_input(items, "a").messages
    assert [message["role"] for message in messages] == ["system", "user", "developer"]
    assert messages[0]["content"] == "a\n\nb"


def test_custom_calls_become_functions() -> None:
    call = {"type": "custom_tool_call", "call_id": "c1", "name": "patch", "input": '"é"\n'}
    output = {"type": "custom_tool_call_output", "call_id": "c1", "output": "ok"}
    assistant, tool = read_input([call, output], None).messages
    function = assistant["tool_calls"][0]["function"]
    assert function["name"] == "patch"
    assert json.loads(function["arguments"]) == {"input": '"é"\n'}
    assert tool == {"role": "tool", "tool_call_id": "c1", "content": "ok"}


def test_what_belongs_to_other_servers_is_named() -> None:
    items = [{"type": kind, "id": "x"} for kind in sorted(FOREIGN)]
    read = read_input([*items, USER, *items], None)
    assert read.messages == [USER]
    assert read.dropped == sorted(FOREIGN)


def test_marked_parts_are_breakpoints() -> None:
    mark = {"prompt_cache_breakpoint": {"mode": "explicit"}}
    marked = {"role": "user", "content": [{"type": "input_text", "text": "a", **mark}]}
    system = {"role": "system", "content": [{"type": "input_text", "text": "s", **mark}]}
    assert read_input([system, USER, marked, said("x"), USER], "i").breakpoints == (1, 3)


class TestSealedReasoning:
    @pytest.mark.parametrize("text", ["", "plan", "é 😀\n"])
    def test_comes_back(self, text: str) -> None:
        assert open_reasoning(seal_reasoning(text)) == text

    @pytest.mark.parametrize("sealed", ["", "gAAAAB", "braid-reasoning-1.!!", "braid-reasoning-1./w=="])
    def test_what_others_sealed_says_nothing(self, sealed: str) -> None:
        assert open_reasoning(sealed) == ""

    def test_readable_text_comes_first(self) -> None:
        item = {**thought("seen"), "encrypted_content": seal_reasoning("hidden")}
        assert read_input([item, said("x")], None).messages[0]["reasoning_content"] == "seen"
        hidden = {**item, "content": None}
        assert read_input([hidden, said("x")], None).messages[0]["reasoning_content"] == "hidden"


@pytest.mark.parametrize(
    ("item", "named"),
    [
        ({"role": "wizard", "content": "x"}, "input.1.role"),
        ({"role": "user"}, "input.1.content"),
        ({"role": "user", "content": [5]}, "input.1.content.0"),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}, "input_image"),
        ({"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}, "input_file"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "input.1.content.0.text"),
        ({**CALL, "arguments": {"a": 1}}, "input.1.arguments"),
        ({**CALL, "name": None}, "input.1.name"),
        ({**OUTPUT, "call_id": 5}, "input.1.call_id"),
        ({**OUTPUT, "output": None}, "input.1.output"),
        ({"type": "custom_tool_call", "call_id": "c", "name": "p"}, "input.1.input"),
        ({"type": "reasoning", "content": "x"}, "input.1.content"),
        ({"type": "reasoning", "content": [{"type": "image"}]}, "input.1.content.0"),
        ({"type": "telepathy"}, "telepathy"),
        ({}, "input.1.type"),
    ],
)
def test_bad_items(item: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidParameterError, match=named) as caught:
        read_input([USER, item], None)
    assert caught.value.param == "input"


@pytest.mark.parametrize("item", [{"type": "item_reference", "id": "msg_1"}, {"id": "msg_1"}])
def test_references_find_nothing(item: dict[str, Any]) -> None:
    with pytest.raises(HttpError, match=r"input\.0") as caught:
        read_input([item], None)
    assert (caught.value.status, caught.value.code) == (404, "item_not_found")


def test_thousands_of_leading_messages_are_joined_once() -> None:
    """Each was put behind all before it: a minute for as many as a body may hold."""
    given = read_input([{"role": "system", "content": "x" * 1500}] * 15_000, "first")
    assert len(given.messages) == 1
    assert given.messages[0]["content"].startswith("first\n\nxxx")
    assert len(given.messages[0]["content"]) == 5 + 15_000 * 1502
