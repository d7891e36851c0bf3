"""Blocks that a policy holds for a program between its turns. Only baselines do it: they are in everybody's way.

Rules:
    1. A hold ends when its program's next turn starts, when the program is over, or when its time is; but while a
       turn of the program waits, time does not count.
    2. A turn whose blocks are held takes its own references before the hold gives its back.
    3. Nothing can wait for ever because of holds: where nothing runs and nothing fits, the holds of the programs that
       came last end first (Continuum, arXiv 2511.02230).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

from braid.policy.agents.program import Program
from braid.sched.block_pool import BlockPool


@dataclass(slots=True, eq=False)
class Hold:
    program: Program
    blocks: list[int]
    until: float


class Holds:
    """At most one per program."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._by_program: dict[Program, Hold] = {}
        self._ends: list[tuple[float, int, Hold]] = []
        """A heap; holds that were ended otherwise are still in it."""
        self._number = 0
        self.num_blocks = 0
        """Over all holds; one that two of them have counts twice."""

    def __len__(self) -> int:
        return len(self._by_program)

    def __iter__(self) -> Iterator[Hold]:
        return iter(self._by_program.values())

    def __contains__(self, program: Program) -> bool:
        return program in self._by_program

    @property
    def next_end(self) -> float | None:
        """When the next hold ends by itself."""
        while self._ends and not self._is_live(self._ends[0][2]):
            heapq.heappop(self._ends)
        return self._ends[0][0] if self._ends else None

    def grant(self, program: Program, blocks: Sequence[int], until: float) -> None:
        """Hold READY blocks instead of what was held for the program."""
        self.end(program)
        if not blocks:
            return
        hold = Hold(program, list(blocks), until)
        self._pool.hold(hold.blocks)
        self._by_program[program] = hold
        self.num_blocks += len(hold.blocks)
        if until < inf:
            self._number += 1
            heapq.heappush(self._ends, (until, self._number, hold))

    def end(self, program: Program) -> bool:
        """Give back what is held for it; False if nothing is."""
        hold = self._by_program.pop(program, None)
        if hold is None:
            return False
        self.num_blocks -= len(hold.blocks)
        self._pool.release(hold.blocks)
        return True

    def expire(self, now: float) -> list[Program]:
        """End the holds whose time is over; of which programs.

        One whose program waits is kept until that starts or gives up: ``end`` is its scheduler's duty then.
        """
        ended = []
        while self._ends and self._ends[0][0] <= now:
            hold = heapq.heappop(self._ends)[2]
            if self._is_live(hold) and not hold.program.num_waiting:
                self.end(hold.program)
                ended.append(hold.program)
        return ended

    def is_over(self, program: Program, now: float) -> bool:
        """Whether the time of its hold has passed."""
        hold = self._by_program.get(program)
        return hold is not None and hold.until <= now

    def make_room(self, count: int) -> list[Program]:
        """End holds until ``count`` blocks are free, or there is none left: of which programs."""
        ended: list[Program] = []
        if count <= self._pool.num_free:
            return ended
        for program in sorted(self._by_program, key=lambda program: -program.first_arrival):
            self.end(program)
            ended.append(program)
            if count <= self._pool.num_free:
                break
        return ended

    def check_integrity(self) -> None:
        assert self.num_blocks == sum(len(hold.blocks) for hold in self), "held blocks are miscounted"

    def _is_live(self, hold: Hold) -> bool:
        return self._by_program.get(hold.program) is hold
