"""How the HTTP process tells an engine that hangs from one that works on something long."""

from __future__ import annotations

from typing import NamedTuple

BEATS = 10
"""Questions that go without a sign of life before an engine is given up."""


class Pulse(NamedTuple):
    """What the engine's loop answers between two of its own turns.

    ``progress`` counts what the lanes have done, layers and steps; only its changes mean anything.
    """

    is_busy: bool
    progress: int


class Heartbeat:
    """Counts questions, not seconds: a server that was itself stopped for a while has asked nothing meanwhile.

    A step may take any time as long as its layers come one after the other.
    """

    def __init__(self) -> None:
        self._progress = -1
        self._silent = 0

    def ask(self) -> bool:
        """Count one question; False if the engine is to be given up instead."""
        self._silent += 1
        return self._silent <= BEATS

    def hear(self, pulse: Pulse) -> None:
        """An answer counts if there is nothing to do or something was done since the last one."""
        if not pulse.is_busy or pulse.progress != self._progress:
            self._silent = 0
        self._progress = pulse.progress
