"""How a turn has ended, as far as it tells when the next one comes: what the engine cannot see in tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from braid.policy.agents.program import Finish
from braid.text.reply import CallArguments, CallStart, Content, ReplyPart
from braid.text.tool_key import MAX_COMMAND, MAX_NAMES, ToolCall, calls_key, fence_key, joined

MAX_TEXT = 1 << 18
"""Characters of an answer in which a fenced command is looked for."""


class Ending(NamedTuple):
    """``tool`` is the key of what the turn goes off to do."""

    finish: Finish
    tool: str | None = None


@dataclass(slots=True)
class _Call:
    """A call, and as much of its arguments as its key needs."""

    name: str
    pieces: list[str] = field(default_factory=list)
    num_chars: int = 0

    def add(self, text: str) -> None:
        if self.num_chars <= MAX_COMMAND:
            self.pieces.append(text)
            self.num_chars += len(text)

    def read(self) -> ToolCall:
        return ToolCall(self.name, "".join(self.pieces))


class ChoiceEnding:
    """Reads one choice as it grows.

    Args:
        fences: whether a fenced command is a call: so agents work that give the model no tools.
    """

    def __init__(self, *, fences: bool) -> None:
        self._fences = fences
        self._pieces: list[str] = []
        self._num_chars = 0
        self._calls: list[_Call] = []
        self._reason: str | None = None
        self._is_cut = False

    def add(self, parts: Iterable[ReplyPart]) -> None:
        for part in parts:
            match part:
                case Content(text) if self._fences and self._num_chars <= MAX_TEXT:
                    self._pieces.append(text)
                    self._num_chars += len(text)
                case CallStart(_, _, name) if len(self._calls) < MAX_NAMES:
                    self._calls.append(_Call(name))
                case CallArguments(number, text) if number < len(self._calls):
                    self._calls[number].add(text)

    def end(self, reason: str, stop_reason: int | str | None) -> None:
        """``reason`` as the client sees it; a text in ``stop_reason`` is the stop string that came."""
        self._reason, self._is_cut = reason, isinstance(stop_reason, str)

    def read(self) -> Ending | None:
        """None where it has not ended by itself, and where the engine knows better."""
        if self._reason not in ("stop", "tool_calls"):
            return None
        if self._calls:
            return Ending(Finish.TOOL, calls_key([call.read() for call in self._calls]))
        if self._is_cut:
            return Ending(Finish.STOP)
        key = fence_key("".join(self._pieces)) if 0 < self._num_chars <= MAX_TEXT else None
        return Ending(Finish.TEXT) if key is None else Ending(Finish.TOOL, key)


def combined(choices: Sequence[ChoiceEnding]) -> Ending | None:
    """One ending for all outputs of a turn: if any calls tools, their results come next."""
    endings = [ending for choice in choices if (ending := choice.read()) is not None]
    for finish in (Finish.TOOL, Finish.STOP, Finish.TEXT):
        if any(ending.finish is finish for ending in endings):
            return Ending(finish, joined(ending.tool for ending in endings))
    return None
