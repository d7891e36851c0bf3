"""How many tokens lately came in time, and the margin that follows from it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

WINDOW = 128
"""Tokens that count."""
EVERY = 32
"""Tokens after which the margin may move."""
GOAL = 0.99
"""Of the tokens should come in time: nearly all, since one that is late is what people notice."""
USUAL, LOWEST = 0.95, 0.6
DOWN, UP = 0.95, 1.02


class Attainment:
    """The margin falls while tokens come late although they were foreseen in time, and rises again when they come in
    time."""

    def __init__(self) -> None:
        self.margin = USUAL
        self._tbt: deque[bool] = deque(maxlen=WINDOW)
        self._ttft: deque[bool] = deque(maxlen=WINDOW)
        self._num = self._kept = 0
        """Tokens since something changed, and those in time."""

    def answered(self, in_time: bool, *, is_first: bool) -> None:
        """Any token, to be shown."""
        (self._ttft if is_first else self._tbt).append(in_time)

    def learn(self, in_time: bool, *, can_tighten: bool) -> None:
        """A token that is not the first, from a step beside prompts.

        Args:
            can_tighten: whether the limit was foreseen to be kept; where it cannot be, no margin helps.
        """
        self._num += 1
        self._kept += in_time
        if self._num % EVERY == 0:
            self._move(can_tighten)
        if self._num == WINDOW:
            self._num, self._kept = WINDOW // 2, self._kept // 2

    def forget(self) -> None:
        """What came late before something changed says nothing about what holds now."""
        self._num = self._kept = 0

    def _move(self, can_tighten: bool) -> None:
        attained = self._kept / self._num
        if attained < GOAL and can_tighten:
            self.margin = max(LOWEST, self.margin * DOWN)
            self.forget()
        elif attained >= GOAL:
            self.margin = min(USUAL, self.margin * UP)

    def describe(self) -> Mapping[str, float]:
        return {
            "phases_margin": self.margin,
            "phases_tbt_attainment": _share(self._tbt),
            "phases_ttft_attainment": _share(self._ttft),
        }


def _share(kept: deque[bool]) -> float:
    return sum(kept) / len(kept) if kept else 1.0
