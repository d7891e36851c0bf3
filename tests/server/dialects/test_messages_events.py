"""Reply parts as Anthropic's content blocks and events."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.server.dialects.messages_events import (
    BlockEvents,
    call_input,
    content_blocks,
    stop_reason,
    usage_payload,
)
from braid.server.lifecycle import Usage
from braid.text.reply import CallArguments, CallEnd, CallStart, Content, Reasoning, ReplyPart

PARTS: list[ReplyPart] = [
    Reasoning("Let me "),
    Reasoning("see."),
    Content("I "),
    Content("look."),
    CallStart(0, "call_1", "ls"),
    CallArguments(0, '{"path"'),
    CallArguments(0, ': "/"}'),
    CallEnd(0),
    CallStart(1, "call_2", "pwd"),
    CallEnd(1),
    Content("done"),
]
BLOCKS = [
    {"type": "thinking", "thinking": "Let me see.", "signature": ""},
    {"type": "text", "text": "I look."},
    {"type": "tool_use", "id": "toolu_call_1", "name": "ls", "input": {"path": "/"}},
    {"type": "tool_use", "id": "toolu_call_2", "name": "pwd", "input": {}},
    {"type": "text", "text": "done"},
]


def accumulate(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As a client does it, checking the order of the events."""
    blocks: list[dict[str, Any]] = []
    open_index = None
    texts: dict[int, str] = {}
    for event in events:
        index = event["index"]
        if event["type"] == "content_block_start":
            assert open_index is None
            assert index == len(blocks)
            open_index = index
            blocks.append(dict(event["content_block"]))
            continue
        assert index == open_index
        if event["type"] == "content_block_stop":
            open_index = None
            if index in texts:
                blocks[index]["input"] = json.loads(texts[index])
            continue
        delta = dict(event["delta"])
        kind = delta.pop("type")
        if kind == "input_json_delta":
            texts[index] = texts.get(index, "") + delta["partial_json"]
        else:
            (key,) = delta
            assert kind == f"{key}_delta"
            blocks[index][key] += delta[key]
    assert open_index is None
    return blocks


def events_of(parts: list[ReplyPart]) -> list[dict[str, Any]]:
    grown = BlockEvents()
    return [event for part in parts for event in grown.feed(part)] + grown.end()


def test_blocks_of_a_reply() -> None:
    assert content_blocks(PARTS) == BLOCKS
    assert accumulate(events_of(PARTS)) == BLOCKS


def test_thinking_ends_with_a_signature() -> None:
    events = events_of([Reasoning("a"), Content("b")])
    deltas = [event["delta"]["type"] for event in events if event["type"] == "content_block_delta"]
    assert deltas == ["thinking_delta", "signature_delta", "text_delta"]


def test_nothing_makes_no_block() -> None:
    assert content_blocks([]) == content_blocks([Content(""), Reasoning("")]) == []


part = st.one_of(
    st.builds(Content, st.text(max_size=4)),
    st.builds(Reasoning, st.text(max_size=4)),
    st.builds(CallStart, st.just(0), st.text(max_size=3), st.text(max_size=3)),
    st.builds(CallArguments, st.just(0), st.sampled_from(['{"a":', "1}", "[", '"', "é"])),
    st.builds(CallEnd, st.just(0)),
)


def _calls(parts: list[ReplyPart]) -> list[ReplyPart]:
    """Only arguments that stand in a call."""
    kept: list[ReplyPart] = []
    inside = False
    for one in parts:
        if isinstance(one, CallStart):
            inside = True
        if inside or not isinstance(one, CallArguments | CallEnd):
            kept.append(one)
        inside = inside and isinstance(one, CallStart | CallArguments)
    return kept


@given(st.lists(part, max_size=12).map(_calls))
def test_joined_events_are_the_whole_answer(parts: list[ReplyPart]) -> None:
    assert accumulate(events_of(parts)) == content_blocks(parts)


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ("", {}),
        (' {"a": {"b": [1, null]}} ', {"a": {"b": [1, None]}}),
        ('{"a": 1', {"raw_arguments": '{"a": 1'}),
        ("[1]", {"raw_arguments": "[1]"}),
        ("null", {"raw_arguments": "null"}),
        ('{"a": NaN}', {"raw_arguments": '{"a": NaN}'}),
        ('{"a": "\\ud800"}', {"raw_arguments": '{"a": "\\ud800"}'}),
        ('{"a":' * 5000, {"raw_arguments": '{"a":' * 5000}),
    ],
)
def test_input_is_always_an_object(arguments: str, value: dict[str, Any]) -> None:
    assert call_input(arguments) == value
    parts: list[ReplyPart] = [CallStart(0, "x", "f"), CallArguments(0, arguments), CallEnd(0)]
    assert accumulate(events_of(parts)) == content_blocks(parts)
    assert content_blocks(parts)[0]["input"] == value


def test_usage_adds_up_to_the_prompt() -> None:
    payload = usage_payload(Usage(100, 7, 32, 64, 5))
    assert payload == {
        "input_tokens": 4,
        "cache_creation_input_tokens": 64,
        "cache_read_input_tokens": 32,
        "output_tokens": 7,
        "output_tokens_details": {"thinking_tokens": 5},
    }


@pytest.mark.parametrize(
    ("finish", "stopped_by", "cut", "reason"),
    [
        ("stop", None, False, ("end_turn", None)),
        ("stop", 17, False, ("end_turn", None)),
        ("stop", "END", False, ("stop_sequence", "END")),
        ("length", None, False, ("max_tokens", None)),
        ("length", None, True, ("model_context_window_exceeded", None)),
        ("tool_calls", None, True, ("tool_use", None)),
        ("tool_calls", "END", False, ("tool_use", None)),
    ],
)
def test_stop_reasons(
    finish: str, stopped_by: int | str | None, cut: bool, reason: tuple[str, str | None]
) -> None:
    assert stop_reason(finish, stopped_by, cut=cut, stops=("END",)) == reason
