from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from braid.core.request import TokenLogprobs
from braid.server.decode import Token
from braid.server.dialects.responses_items import OutputItems
from braid.text.reply import CallArguments, CallEnd, CallStart, Content, Reasoning, ReplyPart

PARTS: list[ReplyPart] = [
    Reasoning("think a while"),
    Content("I will look. "),
    CallStart(0, "call_0", "f"),
    CallArguments(0, '{"a": "é"}'),
    CallEnd(0),
    CallStart(1, "call_1", "patch"),
    CallArguments(1, '{"input": "a\\nb\\ud83d\\ude00"}'),
    CallEnd(1),
    Content("Done"),
]


def new(*, sealed: bool = False) -> OutputItems:
    def logprobs(tokens: Sequence[Token]) -> list[dict[str, Any]]:
        return [{"token": str(token.token_id)} for token in tokens]

    return OutputItems("x", frozenset({"patch"}), sealed=sealed, logprobs=logprobs)


def cut(parts: Sequence[ReplyPart], size: int) -> list[ReplyPart]:
    """The same parts in smaller pieces."""
    out: list[ReplyPart] = []
    for part in parts:
        if isinstance(part, (CallStart, CallEnd)):
            out.append(part)
            continue
        texts = [part.text[at : at + size] for at in range(0, len(part.text), size)]
        out.extend(part._replace(text=text) for text in texts)
    return out


@pytest.mark.parametrize("size", [1, 2, 5, 100])
def test_items_are_the_same_however_cut(size: int) -> None:
    whole = new()
    whole.feed(PARTS, ())
    whole.finish("completed")
    pieces = new()
    queue = cut(PARTS, size)
    rng = random.Random(size)
    while queue:
        count = rng.randint(1, 4)
        pieces.feed(queue[:count], ())
        del queue[:count]
    pieces.finish("completed")
    assert pieces.values() == whole.values()
    kinds = [item["type"] for item in whole.values()]
    assert kinds == ["reasoning", "message", "function_call", "custom_tool_call", "message"]
    assert whole.values()[2]["arguments"] == '{"a": "é"}'
    assert whole.values()[3]["input"] == "a\nb😀"


def test_what_is_open_is_incomplete() -> None:
    items = new()
    items.feed(PARTS[:1], ())
    items.feed([Content("half")], ())
    assert [item["status"] for item in items.values()] == ["completed", "incomplete"]
    items.finish("incomplete")
    assert [item["status"] for item in items.values()] == ["completed", "incomplete"]


def test_events_are_not_changed_by_what_follows() -> None:
    items = new(sealed=True)
    added = items.feed([Reasoning("a")], ())[0]
    items.feed([Reasoning("b")], ())
    done = items.finish("completed")
    assert added["item"]["content"] == []
    assert added["item"]["encrypted_content"] is None
    assert done[2]["item"]["encrypted_content"] is not None


@pytest.mark.parametrize(
    ("parts", "status", "kinds"),
    [
        ([], "completed", ["message"]),
        ([], "incomplete", []),
        ([Reasoning("a")], "completed", ["reasoning", "message"]),
        ([Reasoning("a")], "incomplete", ["reasoning"]),
        ([CallStart(0, "c", "f"), CallEnd(0)], "completed", ["function_call"]),
    ],
)
def test_a_whole_reply_has_a_message_or_a_call(parts: Any, status: str, kinds: list[str]) -> None:
    items = new()
    items.feed(parts, ())
    items.finish(status)
    assert [item["type"] for item in items.values()] == kinds


def test_tokens_wait_for_their_text() -> None:
    items = new()
    tokens = [Token(number, TokenLogprobs(number, -1.0, 1, ())) for number in range(5)]
    items.feed([Reasoning("a")], tokens[:1])
    items.feed([], tokens[1:2])
    delta = items.feed([Content("b")], tokens[2:3])[-1]
    items.feed([Content("c")], tokens[3:4])
    done = items.finish("completed")
    assert [entry["token"] for entry in delta["logprobs"]] == ["1", "2"]
    assert [entry["token"] for entry in done[0]["logprobs"]] == ["1", "2", "3"]
