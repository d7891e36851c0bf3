"""What changes on every request although nothing has changed: it stands first, and so nothing behind it is reused.

One such line is known and left out: Claude Code's billing line, which other clients hand on when they convert a
request. Others are found: turns of one program that differ in their first block and are alike in nearly all the rest.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

BILLING_LINE = "x-anthropic-billing-header:"
SYSTEM_ROLES = ("system", "developer")

ALIKE = 0.9
"""The share of an earlier prompt that a later one must have."""
NUM_WINDOWS, WINDOW = 64, 16
"""Pieces of a prompt, and tokens of each, that stand for all of it."""
MIN_BLOCKS = 8
"""Shorter prompts are alike in little more than what their template writes."""


def without_volatile_line(text: str) -> str | None:
    """A system text without the billing line it begins with; None where it begins with none."""
    return text.partition("\n")[2].lstrip("\n") if text.startswith(BILLING_LINE) else None


class Stripped(NamedTuple):
    """A conversation without billing lines; ``breakpoints`` are in its messages."""

    messages: Sequence[dict[str, Any]]
    breakpoints: tuple[int, ...]
    num_lines: int


def strip(messages: Sequence[dict[str, Any]], breakpoints: tuple[int, ...]) -> Stripped:
    """Leave billing lines out: of system messages only, and only where a text begins. A message that was nothing else
    goes as a whole."""
    kept: list[dict[str, Any]] = []
    ends: dict[int, int] = {}
    num_lines = 0
    for number, message in enumerate(messages, 1):
        if isinstance(message, dict) and message.get("role") in SYSTEM_ROLES:
            content, count = _content(message.get("content"))
            num_lines += count
            message = {**message, "content": content} if count else message
            if not count or content:
                kept.append(message)
        else:
            kept.append(message)
        ends[number] = len(kept)
    if not num_lines:
        return Stripped(messages, breakpoints, 0)
    return Stripped(kept, tuple(ends.get(point, point) for point in breakpoints), num_lines)


def _content(content: object) -> tuple[Any, int]:
    """A message's content without billing lines, and how many there were."""
    if isinstance(content, str):
        rest = without_volatile_line(content)
        return (content, 0) if rest is None else (rest, 1)
    if not isinstance(content, list):
        return content, 0
    kept: list[Any] = []
    count = 0
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) else None
        rest = without_volatile_line(text) if isinstance(text, str) else None
        if rest is None:
            kept.append(part)
            continue
        count += 1
        if rest:
            kept.append({**part, "text": rest})
    return kept, count


class Glance(NamedTuple):
    """Enough of a prompt to see whether another one differs from it at its beginning only: its first block, and pieces
    of the rest. At most 4 KiB, no text."""

    first: tuple[int, ...]
    windows: tuple[bytes, ...]

    @classmethod
    def at(cls, prompt: Sequence[int], block_size: int) -> Glance | None:
        """None of a prompt that is too short to tell."""
        rest = len(prompt) - block_size - WINDOW
        if len(prompt) < MIN_BLOCKS * block_size or rest < NUM_WINDOWS:
            return None
        places = [block_size + rest * number // NUM_WINDOWS for number in range(NUM_WINDOWS)]
        windows = [array("I", prompt[place : place + WINDOW]).tobytes() for place in places]
        return cls(tuple(prompt[:block_size]), tuple(windows))

    def first_difference(self, prompt: Sequence[int]) -> int | None:
        """Where in its first block another prompt differs, if that is nearly all; None if they share that block, or
        little."""
        begin = tuple(prompt[: len(self.first)])
        if begin == self.first:
            return None
        data, at, missing = array("I", prompt).tobytes(), 0, 0
        for window in self.windows:
            found = data.find(window, at)
            if found >= 0:
                at = found
            elif (missing := missing + 1) > (1 - ALIKE) * NUM_WINDOWS:
                return None
        pairs = zip(self.first, begin, strict=False)
        return next((place for place, (one, other) in enumerate(pairs) if one != other), len(begin))
