"""Where experts end and KV begins, in one budget of memory: the boundary moves to where a step of it saves more time.

Both sides are asked the same: what would one step more of memory have saved lately, in seconds of requests? On the side
of experts those are misses of experts that a step more of slots would have kept, times the wait for one. On the side of
KV they are blocks computed again that a step more would have kept, times the time to compute one, and the time that a
request waited since blocks were missing. What a step less would cost is taken to be what a step more would save, since
both curves are flat near the boundary.

That slots and KV blocks come from one budget is FreeToken's idea (arXiv 2608.16157); the equations are Braid's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import NamedTuple

WORTH = 1.5
"""So many times as much must a step be worth on the other side: estimates have errors, and a move costs."""
LEAST_SHARE = 0.0005
"""Of the time must a move save at least: one takes some 20 ms, and should have paid for itself within a minute."""
AGREED = 2
"""Windows in a row that must say so; twice as many for every turn back lately."""
MAX_DOUBLINGS = 4
REST = 1
"""Windows after a move that do not count: what was moved is not warm yet."""
CALM = 60
"""Windows without a turn back after which one is forgotten."""


class Side(Enum):
    """Who gets the next step of memory."""

    EXPERTS = "experts"
    KV = "kv"


class Window(NamedTuple):
    """What has happened lately.

    Args:
        seconds: that have passed.
        missed_experts: misses that one step more of slots would have made hits.
        expert_s: that whoever computes waits for a missing expert, in the mean.
        num_running: requests that wait with it, in the mean.
        missed_blocks: KV blocks computed again that one step more would have kept.
        block_s: to compute a block.
        short_s: that a request waited for blocks, times the part of what it lacked that one step gives.
        can_grow: sides that have room for a step.
    """

    seconds: float
    missed_experts: int
    expert_s: float
    num_running: float
    missed_blocks: int
    block_s: float
    short_s: float
    can_grow: frozenset[Side]


class Boundary:
    """Told of windows one after the other, it says when memory is to change sides."""

    def __init__(self) -> None:
        self.worth = dict.fromkeys(Side, 0.0)
        """Of a step more, in request-seconds per second, of the latest window."""
        self.moves = dict.fromkeys(Side, 0)
        self._wanted: Side | None = None
        self._agreed = self._rest = self._turns = self._calm = 0
        self._latest: Side | None = None

    def decide(self, window: Window) -> Side | None:
        """Who gets a step from the other; None: nobody."""
        running = max(1.0, window.num_running)
        self.worth = {
            Side.EXPERTS: window.missed_experts * window.expert_s * running / window.seconds,
            Side.KV: (window.missed_blocks * window.block_s * running + window.short_s) / window.seconds,
        }
        self._calm += 1
        if self._calm >= CALM:
            self._calm, self._turns = 0, max(0, self._turns - 1)
        if self._rest:
            self._rest -= 1
            return None
        wanted = self._better(window.can_grow)
        self._agreed = self._agreed + 1 if wanted is self._wanted else 1
        self._wanted = wanted
        if wanted is None or self._agreed < self._needed(wanted):
            return None
        if self._latest not in (None, wanted):
            self._turns, self._calm = min(MAX_DOUBLINGS, self._turns + 1), 0
        self._latest, self._rest, self._agreed = wanted, REST, 0
        self.moves[wanted] += 1
        return wanted

    def _better(self, can_grow: frozenset[Side]) -> Side | None:
        for side, other in ((Side.EXPERTS, Side.KV), (Side.KV, Side.EXPERTS)):
            gain = self.worth[side]
            if (
                side in can_grow
                and gain >= WORTH * self.worth[other]
                and gain - self.worth[other] > LEAST_SHARE
            ):
                return side
        return None

    def _needed(self, wanted: Side) -> int:
        """Windows that must agree: more for a turn back."""
        is_turn = self._latest not in (None, wanted)
        return (AGREED << self._turns) * (2 if is_turn else 1)

    def describe(self) -> Mapping[str, float]:
        """For telemetry."""
        return {
            **{f"memory_worth_{side.value}": worth for side, worth in self.worth.items()},
            **{f"memory_moves_to_{side.value}": count for side, count in self.moves.items()},
        }
