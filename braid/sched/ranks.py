"""What programs' blocks are worth: a policy's ranks, asked anew when something happens and when their time is up."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from math import inf, isnan
from typing import NamedTuple

from braid.policy.agents.policy import Rank, Retention
from braid.policy.agents.program import Program
from braid.sched.programs import ProgramTable

MAX_ASKED = 8
"""Ranks whose time is up, asked anew in one step; the others wait for the next one."""


class Place(NamedTuple):
    """Where a program's blocks stand: the smaller go first. Unique, as no two programs change at once.

    ``changed`` numbers the changes of programs: among equals those go first of which nothing was heard for longest.
    """

    protection: int
    value: float
    changed: int


class Standing(NamedTuple):
    """A program's rank; ``timer`` names its entry among the timers."""

    rank: Rank
    place: Place
    timer: int


class Ranks:
    """The ranks of the known programs.

    Listeners are called with a program whenever it was asked for, be the rank another or not, and with a program that
    is not known any more; then it has no rank.
    """

    def __init__(self, policy: Retention, programs: ProgramTable) -> None:
        self._policy = policy
        self._programs = programs
        self._standings: dict[Program, Standing] = {}
        self._timers: list[tuple[float, int, Program]] = []
        """A heap; entries that another one has replaced are still in it."""
        self._listeners: list[Callable[[Program], None]] = []
        self._num_timers = self._num_changes = 0
        self._now = 0.0

    def __len__(self) -> int:
        return len(self._standings)

    def watch(self, listener: Callable[[Program], None]) -> None:
        self._listeners.append(listener)

    def get(self, program: Program) -> Rank | None:
        standing = self._standings.get(program)
        return None if standing is None else standing.rank

    def place(self, program: Program) -> Place:
        """Of a known program."""
        standing = self._standings.get(program)
        if standing is None:
            self.changed(program, self._now)
            standing = self._standings[program]
        return standing.place

    def changed(self, program: Program, now: float) -> None:
        """Its state is another one: ask anew. Programs that the table does not know have no rank."""
        self._now = now
        if self._programs.knows(program):
            self._num_changes += 1
            self._ask(program, self._num_changes)

    def forget(self, program: Program) -> None:
        """It is not known any more."""
        if self._standings.pop(program, None) is not None:
            self._tell(program)

    def tick(self, now: float) -> None:
        """Ask anew for those whose time is up, a bounded number of them."""
        self._now = now
        num_asked = 0
        while self._timers and self._timers[0][0] <= now and num_asked < MAX_ASKED:
            _, number, program = heapq.heappop(self._timers)
            standing = self._standings.get(program)
            if standing is not None and standing.timer == number:
                self._ask(program, standing.place.changed)
                num_asked += 1

    def check_integrity(self) -> None:
        """Prove that known programs only have ranks.

        Raises:
            AssertionError: naming what does not add up; a bug in Braid.
        """
        assert all(self._programs.knows(program) for program in self._standings), (
            "an unknown program has a rank"
        )
        assert len(self._timers) <= 2 * len(self._standings) + 64, "timers pile up"

    def _ask(self, program: Program, change: int) -> None:
        rank = self._policy.rank(program, self._now)
        assert not isnan(rank.value), "a rank has no place"
        self._num_timers += 1
        self._standings[program] = Standing(
            rank, Place(rank.protection, rank.value, change), self._num_timers
        )
        if rank.until < inf:
            heapq.heappush(self._timers, (rank.until, self._num_timers, program))
        if len(self._timers) > 2 * len(self._standings) + 32:
            self._sweep()
        self._tell(program)

    def _sweep(self) -> None:
        """Let go of timers that others have replaced."""
        standings = self._standings
        self._timers = [
            timer for timer in self._timers if timer[2] in standings and standings[timer[2]].timer == timer[1]
        ]
        heapq.heapify(self._timers)

    def _tell(self, program: Program) -> None:
        for listener in self._listeners:
            listener(program)
