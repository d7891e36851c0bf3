"""Blocks held for a while because somebody asked for it, and given back as soon as somebody needs them.

Rules:
    1. A lease holds references on READY blocks; nobody waits, and nobody is preempted, because of it.
    2. All leases together hold at most half of the blocks that there are in any case; one owner at most its equal share
       of that half among the owners that hold leases when it asks.
    3. The lease that would end first is revoked first.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Iterator
from operator import attrgetter
from typing import NamedTuple

from braid.policy.agents.program import ProgramId
from braid.sched.block_pool import BlockPool

SHARE = 2
"""One part in so many of the pool may be leased."""

by_end = attrgetter("until", "number")


class Lease(NamedTuple):
    """``blocks`` are held until the time ``until``; numbers break ties."""

    until: float
    number: int
    holder: ProgramId
    blocks: list[int]


class Leases:
    """All leases on one pool, at most one per program."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._by_holder: dict[ProgramId, Lease] = {}
        self._by_end: list[Lease] = []
        self._held: dict[str, Counter[int]] = {}
        """Per owner its blocks, with the number of its leases on each."""
        self.num_granted = self.num_clipped = self.num_revoked = 0

    def __len__(self) -> int:
        return len(self._by_end)

    def __iter__(self) -> Iterator[Lease]:
        return iter(self._by_end)

    @property
    def next_end(self) -> float | None:
        return self._by_end[0].until if self._by_end else None

    def end_of(self, holder: ProgramId) -> float | None:
        """When its lease ends; None if it holds none."""
        lease = self._by_holder.get(holder)
        return None if lease is None else lease.until

    def grant(self, holder: ProgramId, blocks: list[int], until: float) -> int:
        """Hold as many of the first ``blocks`` as the quotas allow, instead of what ``holder`` held; how many."""
        self.end(holder)
        kept = blocks[: self._allowed(holder.owner, blocks)]
        if kept:
            lease = Lease(until, self.num_granted, holder, kept)
            self._pool.lease(kept)
            self._by_holder[holder] = lease
            insort(self._by_end, lease, key=by_end)
            self._held.setdefault(holder.owner, Counter()).update(kept)
            self.num_granted += 1
        return len(kept)

    def end(self, holder: ProgramId) -> None:
        """Give back what ``holder`` holds, if anything."""
        lease = self._by_holder.pop(holder, None)
        if lease is None:
            return
        self._by_end.remove(lease)
        held = self._held[holder.owner]
        held.subtract(lease.blocks)
        for block in lease.blocks:
            if not held[block]:
                del held[block]
        if not held:
            del self._held[holder.owner]
        self._pool.end_lease(lease.blocks)

    def expire(self, now: float) -> None:
        """End the leases whose time is over."""
        while self._by_end and self._by_end[0].until <= now:
            self.end(self._by_end[0].holder)

    def make_room(self, count: int) -> bool:
        """Revoke leases until ``count`` blocks are free; False, with nothing revoked, if that cannot be."""
        if count <= self._pool.num_free:
            return True
        if count > self._pool.num_free + self._pool.num_revocable:
            return False
        for lease in list(self._by_end):
            if self._pool.has_revocable(lease.blocks):
                self.end(lease.holder)
                self.num_revoked += 1
            if count <= self._pool.num_free:
                break
        return True

    def check_integrity(self) -> None:
        """Prove that the counts are those of the leases.

        Raises:
            AssertionError: naming what does not add up; a bug in Braid.
        """
        assert self._by_end == sorted(self._by_holder.values(), key=by_end), "leases are out of order"
        held: dict[str, Counter[int]] = {}
        for lease in self._by_end:
            held.setdefault(lease.holder.owner, Counter()).update(lease.blocks)
        assert held == self._held, "leased blocks are miscounted"
        assert self._pool.num_leased <= self._pool.least_blocks // SHARE, "too many blocks are leased"

    def _allowed(self, owner: str, blocks: list[int]) -> int:
        """How many of the first ``blocks`` this owner may lease now."""
        total = self._pool.least_blocks // SHARE
        held = self._held.get(owner, Counter[int]())
        own = total // len(self._held.keys() | {owner}) - len(held)
        left = total - self._pool.num_leased
        for index, block in enumerate(blocks):
            own -= block not in held
            left -= not self._pool.is_leased(block)
            if own < 0 or left < 0:
                return index
        return len(blocks)
