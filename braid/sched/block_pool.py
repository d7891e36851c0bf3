"""The one writer of KV blocks' states. Integers only: what a block holds is the executor's business.

Rules:
    1. ``FREE -> RESERVED -> FILLING -> READY -> FREE``; RESERVED and FILLING may also go back to FREE.
    2. Only READY blocks are shared or found by key, and only READY blocks may have more than one reference.
    3. A READY block without references keeps its content until the block is needed: it counts as free, and
       the least recently used goes first. Without a key it is of no use to anyone and becomes FREE at once.
    4. What an in-flight step may still read or write waits in limbo, references held, until the step's
       lane settles.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from enum import IntEnum


class BlockState(IntEnum):
    FREE = 0
    RESERVED = 1
    FILLING = 2
    READY = 3


FREE, RESERVED, FILLING, READY = (int(state) for state in BlockState)


class BlockPool:
    """``num_blocks`` blocks, named ``0 .. num_blocks - 1``."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._states = bytearray(num_blocks)
        self._refs = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._by_key: dict[bytes, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()
        """READY blocks without references, least recently used first."""
        self._limbo: dict[str, list[list[int]]] = {}

    @property
    def num_free(self) -> int:
        """Blocks that can be granted now, idle cached ones included."""
        return len(self._free) + len(self._idle)

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
        for block in blocks:
            self._states[block] = RESERVED
            self._refs[block] = 1
        return blocks

    def fill(self, block: int) -> None:
        """A step begins to write. RESERVED -> FILLING."""
        assert self._states[block] == RESERVED, f"block {block} is {self.state(block).name}, not RESERVED"
        self._states[block] = FILLING

    def publish(self, block: int, key: bytes) -> None:
        """The block is full and final. FILLING -> READY; found by ``key`` unless another block already is."""
        assert self._states[block] == FILLING, f"block {block} is {self.state(block).name}, not FILLING"
        self._states[block] = READY
        if key not in self._by_key:
            self._by_key[key] = block
            self._keys[block] = key

    def find(self, key: bytes) -> int | None:
        return self._by_key.get(key)

    def count_idle(self, blocks: Iterable[int]) -> int:
        """How many of ``blocks`` count as free now and would not after ``acquire``."""
        return sum(1 for block in blocks if block in self._idle)

    def acquire(self, blocks: Iterable[int]) -> None:
        """One more reference to each READY block."""
        for block in blocks:
            assert self._states[block] == READY, f"block {block} is {self.state(block).name}, not READY"
            if self._refs[block] == 0:
                del self._idle[block]
            self._refs[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Give one reference to each block back.

        The last block of a table is the first to be evicted: a chain is of no use without its beginning.
        """
        for block in reversed(blocks):
            self._refs[block] -= 1
            if self._refs[block] == 0:
                self._rest(block)

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

    def check_integrity(self, tables: Iterable[Sequence[int]]) -> None:
        """Prove that every block is accounted for once. ``tables`` are those of all live requests."""
        expected: Counter[int] = Counter()
        for table in tables:
            expected.update(table)
        for retired in self._limbo.values():
            for table in retired:
                expected.update(table)
        assert sum(expected.values()) == sum(self._refs), "references and tables differ in number"
        assert all(self._refs[block] == count for block, count in expected.items()), (
            "references and tables differ"
        )
        assert len(self._free) == self._states.count(FREE), "the free list and the FREE blocks differ"
        assert len(expected) + self.num_free == self.num_blocks, "a block is lost or counted twice"
        assert all(self._states[b] == FREE and self._keys[b] is None for b in self._free), "dirty free block"
        assert all(self._states[b] == READY and self._keys[b] is not None for b in self._idle), (
            "bad idle block"
        )
        assert all(self._keys[b] == key and self._states[b] == READY for key, b in self._by_key.items())
        assert self.num_blocks - self._keys.count(None) == len(self._by_key), "a key is lost"
        shared = (block for block, count in expected.items() if count > 1)
        assert all(self._states[block] == READY for block in shared), "a block that is not READY is shared"

    def _evict(self) -> None:
        block, _ = self._idle.popitem(last=False)
        self._forget(block)
        self._states[block] = FREE
        self._free.append(block)

    def _forget(self, block: int) -> None:
        key = self._keys[block]
        if key is not None:
            del self._by_key[key]
            self._keys[block] = None

    def _rest(self, block: int) -> None:
        if self._keys[block] is not None:
            self._idle[block] = None
        else:
            self._states[block] = FREE
            self._free.append(block)
