"""For which programs the lifetime that their clients wish is honoured: as long as their owners keep within a share.

Protection only raises the rank of blocks, and holds nothing back. At most half of the pool has it; one owner at most
its equal share of that half among the owners that have some when it asks.
"""

from __future__ import annotations

import heapq
from collections import Counter
from math import inf
from typing import NamedTuple

from braid.policy.agents.program import Program

SHARE = 2
"""One part in so many of the pool may be protected."""
MAX_S = 3600.0


class Protection(NamedTuple):
    owner: str
    num_blocks: int
    number: int


class Protections:
    """Sets and clears ``Program.is_protected``."""

    def __init__(self, num_blocks: int) -> None:
        self._num_blocks = num_blocks
        self._given: dict[Program, Protection] = {}
        self._by_owner: Counter[str] = Counter()
        self._ends: list[tuple[float, int, Program]] = []
        """A heap; protections that ended otherwise are still in it."""
        self._number = 0

    def __len__(self) -> int:
        return len(self._given)

    def grant(self, program: Program, now: float) -> bool:
        """Protect what a program's turn has left, if its client wishes it and its owner's share allows."""
        self.end(program)
        seconds = _lifetime(program)
        if program.id is None or seconds <= 0 or not program.keys:
            return False
        owner, count = program.id.owner, len(program.keys)
        total = self._num_blocks // SHARE
        share = total // len(self._by_owner.keys() | {owner})
        if self._by_owner[owner] + count > share or self._by_owner.total() + count > total:
            return False
        self._number += 1
        self._given[program] = Protection(owner, count, self._number)
        self._by_owner[owner] += count
        heapq.heappush(self._ends, (now + seconds, self._number, program))
        program.is_protected = True
        return True

    def end(self, program: Program) -> bool:
        """Its next turn is here, or the program is over; False if it was not protected."""
        given = self._given.pop(program, None)
        if given is None:
            return False
        program.is_protected = False
        self._by_owner[given.owner] -= given.num_blocks
        if not self._by_owner[given.owner]:
            del self._by_owner[given.owner]
        if len(self._ends) > 2 * len(self._given) + 64:
            self._ends = [end for end in self._ends if self._is_live(end)]
            heapq.heapify(self._ends)
        return True

    def expire(self, now: float) -> list[Program]:
        """End those whose time is over; of which programs."""
        ended = []
        while self._ends and self._ends[0][0] <= now:
            end = heapq.heappop(self._ends)
            if self._is_live(end):
                self.end(end[2])
                ended.append(end[2])
        return ended

    def check_integrity(self) -> None:
        """Prove that the counts are those of what was given.

        Raises:
            AssertionError: naming what does not add up; a bug in Braid.
        """
        counts: Counter[str] = Counter()
        for given in self._given.values():
            counts[given.owner] += given.num_blocks
        assert counts == self._by_owner, "protected blocks are miscounted"
        assert counts.total() <= self._num_blocks // SHARE, "too many blocks are protected"
        assert all(program.is_protected for program in self._given), "a protection is not known"

    def _is_live(self, end: tuple[float, int, Program]) -> bool:
        given = self._given.get(end[2])
        return given is not None and given.number == end[1]


def _lifetime(program: Program) -> float:
    """Seconds; 0 if there is no wish, or none that makes sense."""
    intent = program.intent
    if intent is None or intent.min_s is None or not intent.min_s > 0:
        return 0.0
    most = inf if intent.max_s is None else intent.max_s
    return min(intent.min_s, most, MAX_S)
