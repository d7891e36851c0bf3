"""How long the event loop was busy with other things before it came to read what had arrived."""

from __future__ import annotations

import asyncio
import time

SLEPT_S = 0.0001
"""A loop that looks for work and finds some is back sooner than this."""


class Busy:
    """Knows, for what is read now, since when it may have been lying there.

    Loops have no hook around the wait for work, so it is seen from the callbacks: the first of a turn asks to be
    called before the next wait. What is found after that wait came
    - while waiting, if the wait took time: it was read at once;
    - or else while the turn before was at work: at the earliest when that turn found its own work.

    What this cannot see is a wait that took long because the machine had no core for this process.
    """

    __slots__ = ("_loop", "_since", "_turned_s", "_waiting", "_woke_s")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting = True
        self._turned_s = self._woke_s = self._since = float("-inf")

    def enter(self, now_s: float) -> float:
        """A callback begins, by ``time.monotonic()``: the longest that what it reads can have been there."""
        if self._waiting:
            self._waiting = False
            self._since = now_s if now_s - self._turned_s > SLEPT_S else self._woke_s
            self._woke_s = now_s
            self._loop.call_soon(self._turn)
        return now_s - self._since

    def _turn(self) -> None:
        self._turned_s = time.monotonic()
        self._waiting = True
