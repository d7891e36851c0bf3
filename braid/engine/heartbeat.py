"""How the HTTP process tells an engine that hangs from one that works on something long."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

BEATS = 10
"""Questions that go without a sign of life before an engine is given up."""
LOOP = "loop"
"""Who is at fault when nothing is answered at all."""


class Pulse(NamedTuple):
    """What the engine's loop answers between two of its own turns.

    ``lanes`` has those with a step in flight, and what each has done so far, layers and steps; only changes of these
    numbers mean anything.
    """

    lanes: Mapping[str, int]


class _Lane(NamedTuple):
    progress: int
    silent: int
    """Questions since it last got on."""


class Heartbeat:
    """Counts questions, not seconds: a server that was itself stopped for a while has asked nothing meanwhile.

    A step may take any time as long as its layers come one after the other. Each lane is judged alone, so that one
    that hangs does not hide behind one that works.
    """

    def __init__(self) -> None:
        self._silent = 0
        self._lanes: dict[str, _Lane] = {}

    def ask(self) -> bool:
        """Count one question; False if the engine is to be given up instead."""
        self._silent += 1
        self._lanes = {name: lane._replace(silent=lane.silent + 1) for name, lane in self._lanes.items()}
        return not self.stuck

    @property
    def stuck(self) -> tuple[str, ...]:
        """Lanes that have not got on for too long; ``LOOP`` where nobody answers."""
        if self._silent > BEATS:
            return (LOOP,)
        return tuple(name for name, lane in self._lanes.items() if lane.silent > BEATS)

    def hear(self, pulse: Pulse) -> None:
        """An answer is a sign of the loop, and of the lanes that have done something since the last one."""
        self._silent = 0
        before = self._lanes
        self._lanes = {}
        for name, progress in pulse.lanes.items():
            known = before.get(name)
            is_same = known is not None and known.progress == progress
            self._lanes[name] = known if is_same and known is not None else _Lane(progress, 0)
