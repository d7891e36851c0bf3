"""What a model's text means: reasoning, content and tool calls, read as it grows.

Rules:
    1. The parts joined are the same however the text was cut: a client's stream equals its whole answer.
    2. No text is lost: what turns out to be no tool call is content, as it was written.
    3. A call's arguments are text; joined they are what the model wrote, a JSON object where it wrote one.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Reasoning(NamedTuple):
    """More of the model's thinking."""

    text: str


class Content(NamedTuple):
    """More of the answer."""

    text: str


class CallStart(NamedTuple):
    """Tool call ``number`` (0, 1, ...) begins; its arguments follow, other calls' do not come between."""

    number: int
    id: str
    name: str


class CallArguments(NamedTuple):
    """More of a call's arguments."""

    number: int
    text: str


class CallEnd(NamedTuple):
    """A call is complete."""

    number: int


ReplyPart = Reasoning | Content | CallStart | CallArguments | CallEnd


class ReplyReader(Protocol):
    """Reads the text of one output."""

    @property
    def in_reasoning(self) -> bool:
        """Whether what was fed last is thinking."""
        ...

    @property
    def num_calls(self) -> int:
        """Calls begun so far."""
        ...

    def feed(self, text: str) -> list[ReplyPart]:
        """More text, and what it makes certain."""
        ...

    def finish(self) -> list[ReplyPart]:
        """The text is over: what was held back."""
        ...


class PlainReader:
    """All text is content: for models and calls without reasoning and tools."""

    in_reasoning = False
    num_calls = 0

    def feed(self, text: str) -> list[ReplyPart]:
        return [Content(text)] if text else []

    def finish(self) -> list[ReplyPart]:
        return []
