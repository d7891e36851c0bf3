"""The one writer of KV blocks' states. Integers only: what a block holds is the executor's business.

Rules:
    1. ``FREE -> RESERVED -> FILLING -> READY -> FREE``; RESERVED and FILLING may also go back to FREE,
       FILLING to RESERVED.
    2. Only READY blocks are shared or found by key, and only READY blocks may have more than one reference.
    3. A READY block without references keeps its content until the block is needed: it counts as free, and goes
       when its turn comes in the order of ``idle``. Without a key it is of no use to anyone and becomes FREE at once.
    4. What an in-flight step may still read or write waits in limbo, references held, until the step's
       lane settles.
    5. A lease is a reference that may be taken back: blocks with no other references are revocable.
    6. A locked block is being read behind everybody's back: it is not evicted meanwhile, and nothing else changes.
    7. Blocks may be put away and taken back (``resize``): those away are FREE, and granted to nobody.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple

from braid.core.metrics import Histogram, HistogramCounter
from braid.sched.idle import IdleBlocks, LeastRecent


class BlockState(IntEnum):
    FREE = 0
    RESERVED = 1
    FILLING = 2
    READY = 3


FREE, RESERVED, FILLING, READY = (int(state) for state in BlockState)

TIME_BOUNDS = (0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
"""Seconds: from one step to the longest lease."""


class BlockTimes(NamedTuple):
    """What became of cached blocks, in seconds; see ``EngineStats``."""

    lifetime: Histogram
    idle_before_evict: Histogram
    reuse_gap: Histogram


class BlockPool:
    """``num_blocks`` blocks, with names below ``most``.

    ``now`` is the time of what is done next; the pool has no clock of its own.

    Args:
        idle: in which order idle blocks are evicted; by their last use if None.
        least, most: between which ``resize`` may move ``num_blocks``; None for ``num_blocks`` itself.
    """

    def __init__(
        self,
        num_blocks: int,
        idle: IdleBlocks | None = None,
        *,
        least: int | None = None,
        most: int | None = None,
    ) -> None:
        self.num_blocks = num_blocks
        self.least_blocks = num_blocks if least is None else least
        self.most_blocks = num_blocks if most is None else most
        assert 0 < self.least_blocks <= num_blocks <= self.most_blocks, (least, num_blocks, most)
        self.now = 0.0
        self.num_evicted = 0
        self.num_missed = 0
        """Blocks that had to be computed again and that ``num_remembered`` more would have kept."""
        self.num_remembered = 0
        """So many evicted blocks are remembered by their keys."""
        self._ghosts: dict[bytes, None] = {}
        """Their keys, the latest last."""
        num_names = self.most_blocks
        self._states = bytearray(num_names)
        self._refs = [0] * num_names
        self._keys: list[bytes | None] = [None] * num_names
        self._by_key: dict[bytes, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))
        self._away = list(range(num_names - 1, num_blocks - 1, -1))
        """The lowest last."""
        self._idle: IdleBlocks = LeastRecent() if idle is None else idle
        """READY blocks without references."""
        self._watchers: dict[bytes, list[Callable[[bool], None]]] = {}
        self._limbo: dict[str, list[list[int]]] = {}
        self._leases: dict[int, int] = {}
        """How many of a block's references are leases, where there are any."""
        self._revocable: set[int] = set()
        self._locked: set[int] = set()
        self._orphans: list[int] = []
        """Locked blocks that would be FREE."""
        self._granted = array("d", bytes(8 * num_names))
        self._used = array("d", bytes(8 * num_names))
        self._lifetime, self._idle_time, self._reuse_gap = (HistogramCounter(TIME_BOUNDS) for _ in range(3))

    @property
    def num_free(self) -> int:
        """Blocks that can be granted now, idle cached ones included."""
        locked = sum(block in self._idle for block in self._locked) if self._locked else 0
        return len(self._free) + len(self._idle) - locked

    @property
    def num_empty(self) -> int:
        """Blocks that can be granted without evicting any."""
        return len(self._free)

    @property
    def num_revocable(self) -> int:
        """Blocks that only leases keep from being free."""
        return len(self._revocable) - len(self._revocable & self._locked)

    @property
    def num_leased(self) -> int:
        return len(self._leases)

    @property
    def num_cached(self) -> int:
        """Blocks that can be found by key, referenced or not."""
        return len(self._by_key)

    def state(self, block: int) -> BlockState:
        return BlockState(self._states[block])

    def refs(self, block: int) -> int:
        return self._refs[block]

    def allocate(self, count: int) -> list[int]:
        """Take ``count <= num_free`` blocks: FREE ones, then the least recently used idle ones.

        They come out RESERVED, with one reference.
        """
        assert count <= self.num_free, f"{count} blocks asked, {self.num_free} free"
        while len(self._free) < count:
            self._evict()
        blocks = [self._free.pop() for _ in range(count)]
        now = self.now
        for block in blocks:
            self._states[block] = RESERVED
            self._refs[block] = 1
            self._granted[block] = now
        return blocks

    def fill(self, block: int) -> None:
        """A step begins to write. RESERVED -> FILLING."""
        assert self._states[block] == RESERVED, f"block {block} is {self.state(block).name}, not RESERVED"
        self._states[block] = FILLING

    def refill(self, block: int) -> None:
        """What a step wrote will be written again. FILLING -> RESERVED."""
        assert self._states[block] == FILLING, f"block {block} is {self.state(block).name}, not FILLING"
        self._states[block] = RESERVED

    def publish(self, block: int, key: bytes) -> None:
        """The block is full and final. FILLING -> READY; found by ``key`` unless another block already is."""
        assert self._states[block] == FILLING, f"block {block} is {self.state(block).name}, not FILLING"
        self._states[block] = READY
        self._used[block] = self.now
        if key not in self._by_key:
            self._by_key[key] = block
            self._keys[block] = key
            self._tell(key, True)

    def resize(self, num_blocks: int) -> list[int]:
        """Have so many blocks, or as few as can be: only those that count as free are put away.

        The highest of the empty ones go, so that what is left lies together; idle ones are evicted where there are too
        few. What it has come to is ``num_blocks``.

        Returns:
            Those put away, whose memory may go; none of them is in any step.
        """
        assert self.least_blocks <= num_blocks <= self.most_blocks, num_blocks
        while self.num_blocks < num_blocks:
            self._free.append(self._away.pop())
            self.num_blocks += 1
        count = min(self.num_blocks - num_blocks, self.num_free)
        while len(self._free) < count:
            self._evict()
        self._free.sort(reverse=True)
        gone, self._free = self._free[:count], self._free[count:]
        self._away = sorted([*self._away, *gone], reverse=True)
        self.num_blocks -= count
        return gone

    def miss(self, keys: Iterable[bytes]) -> None:
        """Blocks with these keys will be computed, and are not there."""
        for key in keys if self._ghosts else ():
            if key in self._ghosts:
                del self._ghosts[key]
                self.num_missed += 1

    def find(self, key: bytes) -> int | None:
        return self._by_key.get(key)

    def watch(self, key: bytes, watcher: Callable[[bool], None]) -> None:
        """Have ``watcher(is_there)`` called when ``key`` comes to be found, and when it does no more."""
        self._watchers.setdefault(key, []).append(watcher)

    def unwatch(self, key: bytes, watcher: Callable[[bool], None]) -> None:
        watchers = self._watchers[key]
        watchers.remove(watcher)
        if not watchers:
            del self._watchers[key]

    def count_unused(self, blocks: Iterable[int]) -> int:
        """How many of ``blocks`` count as free or revocable now and would not after ``acquire``."""
        unused = (block for block in blocks if block in self._idle or block in self._revocable)
        return sum(block not in self._locked for block in unused)

    def acquire(self, blocks: Iterable[int]) -> None:
        """One more reference to each READY block: its content is used again."""
        now = self.now
        for block in blocks:
            self._reuse_gap.observe(now - self._used[block])
            self._used[block] = now
            self._refer(block)
            self._revocable.discard(block)

    def lease(self, blocks: Iterable[int]) -> None:
        """A revocable reference to each READY block."""
        for block in blocks:
            self._refer(block)
            self._leases[block] = self._leases.get(block, 0) + 1
            if self._refs[block] == self._leases[block]:
                self._revocable.add(block)

    def is_leased(self, block: int) -> bool:
        return block in self._leases

    def has_revocable(self, blocks: Iterable[int]) -> bool:
        return not self._revocable.isdisjoint(blocks)

    def end_lease(self, blocks: Sequence[int]) -> None:
        """Give the reference of one lease back."""
        for block in blocks:
            self._leases[block] -= 1
            if not self._leases[block]:
                del self._leases[block]
                self._revocable.discard(block)
        self.release(blocks)

    def hold(self, blocks: Sequence[int]) -> None:
        """One more reference to each READY block, which counts as no use of its content."""
        for block in blocks:
            self._refer(block)
            self._revocable.discard(block)

    def lock(self, blocks: Iterable[int]) -> None:
        """READY blocks are being read until ``unlock``; they keep their places in the order of eviction."""
        for block in blocks:
            assert self._states[block] == READY, f"block {block} is {self.state(block).name}, not READY"
            self._locked.add(block)

    def unlock(self, blocks: Iterable[int]) -> None:
        self._locked.difference_update(blocks)
        orphans, self._orphans = self._orphans, []
        for block in orphans:
            if block in self._locked:
                self._orphans.append(block)
            else:
                self._free_up(block)

    def demote(self, blocks: Sequence[int]) -> None:
        """Of these the idle ones are evicted before all others, the last of them first."""
        for block in blocks:
            if block in self._idle:
                self._idle.demote(block)

    def release(self, blocks: Sequence[int]) -> None:
        """Give one reference to each block back.

        The last block of a table is the first to be evicted: a chain is of no use without its beginning.
        """
        for block in reversed(blocks):
            self._refs[block] -= 1
            if self._refs[block] == 0:
                self._rest(block)
            elif self._leases and self._refs[block] == self._leases.get(block):
                self._revocable.add(block)

    def withdraw(self, blocks: Iterable[int]) -> None:
        """No new reader for these referenced blocks: their content is not to be trusted."""
        for block in blocks:
            assert self._refs[block] > 0, f"block {block} has no reference"
            self._forget(block)

    def retire(self, blocks: list[int], lane: str) -> None:
        """Release ``blocks`` once the step in flight on ``lane`` is over."""
        self._limbo.setdefault(lane, []).append(blocks)

    def settle(self, lane: str) -> None:
        """The step in flight on ``lane`` is over: release what waited for it."""
        for blocks in self._limbo.pop(lane, ()):
            self.release(blocks)

    def times(self) -> BlockTimes:
        return BlockTimes(self._lifetime.read(), self._idle_time.read(), self._reuse_gap.read())

    def check_integrity(self, tables: Iterable[Sequence[int]], leased: Iterable[Sequence[int]] = ()) -> None:
        """Prove that every block is accounted for once.

        ``tables`` are those of all live requests, ``leased`` those of all leases.
        """
        leases: Counter[int] = Counter()
        for table in leased:
            leases.update(table)
        assert dict(leases) == self._leases, "leases and leased blocks differ"
        assert self._revocable == {block for block, count in leases.items() if count == self._refs[block]}
        expected = leases.copy()
        for table in tables:
            expected.update(table)
        for retired in self._limbo.values():
            for table in retired:
                expected.update(table)
        assert sum(expected.values()) == sum(self._refs), "references and tables differ in number"
        assert all(self._refs[block] == count for block, count in expected.items()), (
            "references and tables differ"
        )
        unused = [*self._free, *self._away]
        assert len(unused) == self._states.count(FREE), "the free list and the FREE blocks differ"
        assert len(expected) + len(self._free) + len(self._idle) + len(self._orphans) == self.num_blocks, (
            "a block is lost or counted twice"
        )
        assert len(self._away) == self.most_blocks - self.num_blocks, "a block that is away is lost"
        assert all(self._states[b] == FREE and self._keys[b] is None for b in unused), "dirty free block"
        assert all(self._states[b] == READY and self._keys[b] is not None for b in self._idle), (
            "bad idle block"
        )
        assert all(self._keys[b] == key and self._states[b] == READY for key, b in self._by_key.items())
        assert self.most_blocks - self._keys.count(None) == len(self._by_key), "a key is lost"
        shared = (block for block, count in expected.items() if count > 1)
        assert all(self._states[block] == READY for block in shared), "a block that is not READY is shared"

    def _evict(self) -> None:
        block = self._next_idle()
        self.num_evicted += 1
        self._lifetime.observe(self.now - self._granted[block])
        self._idle_time.observe(self.now - self._used[block])
        self._remember(self._keys[block])
        self._forget(block)
        self._states[block] = FREE
        self._free.append(block)

    def _remember(self, key: bytes | None) -> None:
        if key is None or not self.num_remembered:
            return
        self._ghosts.pop(key, None)
        self._ghosts[key] = None
        while len(self._ghosts) > self.num_remembered:
            del self._ghosts[next(iter(self._ghosts))]

    def _next_idle(self) -> int:
        """Take the idle block that goes first and is not locked; those before it stay where they are."""
        block = self._idle.pop(self.now)
        passed: list[int] = []
        while block in self._locked:
            passed.append(block)
            block = self._idle.pop(self.now)
        for other in reversed(passed):
            key = self._keys[other]
            assert key is not None, "an idle block has no key"
            self._idle.put_back(other, key)
        return block

    def _refer(self, block: int) -> None:
        assert self._states[block] == READY, f"block {block} is {self.state(block).name}, not READY"
        if self._refs[block] == 0:
            self._idle.discard(block)
        self._refs[block] += 1

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._by_key[key]
            self._keys[block] = None
            self._tell(key, False)

    def _tell(self, key: bytes, is_there: bool) -> None:
        for watcher in self._watchers.get(key, ()):
            watcher(is_there)

    def _rest(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            self._used[block] = self.now
            self._idle.add(block, key)
        elif block in self._locked:
            self._orphans.append(block)
        else:
            self._free_up(block)

    def _free_up(self, block: int) -> None:
        self._states[block] = FREE
        self._free.append(block)
