"""When a division may change: not for one prediction, not often, and not where somebody would have to wait for it."""

from __future__ import annotations

AGREED = 2
"""Times in a row that something else must have been better; twice as often for every change lately."""
MAX_DOUBLINGS = 3
FORGET_S = 60.0
"""After which a change counts half."""
STEPS = 4
"""Steps between two changes."""
BURST = 2.0
"""Changes that may follow each other as fast as the rules above let them, for the first steps of a new load."""
PER_SECOND = 0.5
"""Changes that are allowed after that."""


class Switching:
    """Keys are those of ``Choice``: 0 for one step for both, else the units of the lane of prompts."""

    def __init__(self) -> None:
        self.num = 0
        self._steps = 0
        """Since the change before."""
        self._agreed = 0
        self._credit = BURST
        self._changes = 0.0
        """Lately."""
        self._latest: float | None = None
        self._ended: str | None = None
        """The lane whose step has just ended."""

    def stepped(self, lane: str) -> None:
        self._steps += 1
        self._ended = lane

    def divided(self) -> None:
        self._ended = None

    def may_switch(self, held: int, wanted: int, now: float, *, at_once: bool) -> bool:
        """Whether what is wanted holds from now on; ``at_once`` for steps in flight too."""
        if self._latest is not None:
            self._credit = min(BURST, self._credit + (now - self._latest) * PER_SECOND)
            self._changes *= 0.5 ** ((now - self._latest) / FORGET_S)
        self._latest = now
        self._agreed = 0 if wanted == held else self._agreed + 1
        if (
            self._agreed < AGREED * 2 ** min(MAX_DOUBLINGS, self._changes)
            or self._steps < STEPS
            or self._credit < 1
        ):
            return False
        if not at_once and not self._is_open(held, wanted):
            return False
        self.num += 1
        self._changes += 1
        self._credit -= 1
        self._steps = self._agreed = 0
        return True

    def _is_open(self, held: int, wanted: int) -> bool:
        """A lane is made smaller when its step has just ended: else the other, which grows, would have to wait for it,
        and a step of prompts is long."""
        if not held or not wanted:
            return True
        return self._ended == ("prefill" if wanted < held else "decode")
