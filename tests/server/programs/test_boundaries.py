"""Tokens are words with the blank before them, and a rendered message is a line."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from braid.core.errors import InvalidParameterError
from braid.core.sampling import SamplingParams
from braid.server.programs.boundaries import boundaries, marked_messages
from braid.server.turn import TurnRequest

MARK = {"cache_control": {"type": "ephemeral"}}


def conversation(*texts: str, marks: tuple[int, ...] = (), **more: Any) -> TurnRequest:
    messages = [{"role": "user", "content": text} for text in texts]
    return TurnRequest(messages=messages, params=SamplingParams(), breakpoints=marks, **more)


def render(wanted: TurnRequest) -> str:
    lines = "".join(f"{message['content']}\n" for message in wanted.messages)
    return f"{lines}go:" if wanted.add_generation_prompt else lines


def found(wanted: TurnRequest, text: str | None = None) -> list[str]:
    """The prefixes at whose ends there is a boundary."""
    text = render(wanted) if text is None else text
    words = re.findall(r" ?[^ \n]+\n?", text)
    assert "".join(words) == text
    ends = boundaries(
        wanted,
        tuple(range(len(words))),
        text,
        render=render,
        token_bytes=lambda token: words[token].encode(),
    )
    return ["".join(words[:end]) for end in ends]


def test_where_marked_messages_end() -> None:
    wanted = conversation("you are", "say hällo wörld", "and more", marks=(1, 2))
    assert found(wanted) == ["you are\n", "you are\nsay hällo wörld\n"]


def test_a_token_that_a_boundary_cuts_is_not_before_it() -> None:
    wanted = conversation("one two", "three", marks=(1,))
    assert found(wanted, "one twofold\nthree\ngo:") == ["one"]


def test_what_the_whole_prompt_shows_otherwise_ends_there() -> None:
    wanted = conversation("one", "two", "three", marks=(1, 2, 3))
    assert found(wanted, "one\nthought two\nthree\ngo:") == ["one\n"]


def test_no_boundary_at_nothing() -> None:
    assert found(conversation("one", marks=(1,)), "other\ngo:") == []


def test_a_template_that_takes_no_such_beginning() -> None:
    def refuse(wanted: TurnRequest) -> str:
        raise InvalidParameterError("the last message must be a user's")

    wanted = conversation("one", "two", marks=(1,))
    assert boundaries(wanted, (1, 2), "one\ntwo\n", render=refuse, token_bytes=lambda token: b"one\n") == ()


@pytest.mark.parametrize(
    ("marks", "kept"), [((), ()), ((3, 1, 3), (1, 3)), ((0, 9), ()), ((1, 2, 3, 4, 5), (2, 3, 4, 5))]
)
def test_the_last_four_marks_inside(marks: tuple[int, ...], kept: tuple[int, ...]) -> None:
    assert marked_messages(conversation(*"abcde", marks=marks)) == kept


def test_marks_that_still_stand_in_messages() -> None:
    wanted = conversation("a", "b")
    messages = [wanted.messages[0], {"role": "user", "content": [{"type": "text", "text": "b", **MARK}]}]
    assert marked_messages(replace(wanted, messages=messages)) == (2,)
