"""The pool against a model of it: in whatever order, no block is lost, shared wrongly or reused early."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from braid.sched.block_pool import BlockPool, BlockState

NUM_BLOCKS = 7
LANES = ("a", "b")


def test_blocks_walk_through_their_states() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    assert pool.state(block) is BlockState.RESERVED
    pool.fill(block)
    assert pool.state(block) is BlockState.FILLING
    pool.publish(block, b"key")
    assert pool.state(block) is BlockState.READY
    assert pool.find(b"key") == block
    pool.release([block])
    assert pool.state(block) is BlockState.READY, "an idle cached block keeps its content"
    assert pool.num_free == 2
    assert set(pool.allocate(2)) == {0, 1}
    assert pool.find(b"key") is None, "evicted under pressure"


def test_the_least_recently_used_chain_loses_its_end_first() -> None:
    pool = BlockPool(4)
    for name in ("old", "new"):
        blocks = pool.allocate(2)
        for index, block in enumerate(blocks):
            pool.fill(block)
            pool.publish(block, f"{name}{index}".encode())
        pool.release(blocks)
    evicted = []
    for _ in range(4):
        before = {key for key in (b"old0", b"old1", b"new0", b"new1") if pool.find(key) is not None}
        pool.allocate(1)
        evicted += [key for key in before if pool.find(key) is None]
    assert evicted == [b"old1", b"old0", b"new1", b"new0"]


def test_limbo_holds_blocks_until_the_lane_settles() -> None:
    pool = BlockPool(2)
    pool.retire(pool.allocate(2), "a")
    assert pool.num_free == 0
    pool.settle("b")
    assert pool.num_free == 0
    pool.settle("a")
    assert pool.num_free == 2
    pool.check_integrity([])


def test_withdrawn_blocks_are_not_found_and_not_kept() -> None:
    pool = BlockPool(1)
    blocks = pool.allocate(1)
    pool.fill(blocks[0])
    pool.publish(blocks[0], b"key")
    pool.withdraw(blocks)
    assert pool.find(b"key") is None
    pool.release(blocks)
    assert pool.state(blocks[0]) is BlockState.FREE


def test_the_check_finds_a_lost_block() -> None:
    pool = BlockPool(2)
    pool.allocate(1)
    with pytest.raises(AssertionError, match="references and tables"):
        pool.check_integrity([])


def test_a_leased_block_that_is_being_read_cannot_be_revoked_yet() -> None:
    pool = BlockPool(2)
    (block,) = pool.allocate(1)
    pool.fill(block)
    pool.publish(block, b"x")
    pool.lease([block])
    pool.release([block])
    assert (pool.num_free, pool.num_revocable) == (1, 1)
    pool.lock([block])
    assert (pool.num_free, pool.num_revocable, pool.count_unused([block])) == (1, 0, 0)
    pool.end_lease([block])
    assert (pool.num_free, pool.count_unused([block])) == (1, 0)
    pool.unlock([block])
    assert (pool.num_free, pool.count_unused([block])) == (2, 1)


class PoolMachine(RuleBasedStateMachine):
    """Tables come and go; the model knows each block's holders and content."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS, least=2, most=NUM_BLOCKS + 4)
        self.tables: list[list[int]] = []
        self.leases: list[list[int]] = []
        self.limbo: dict[str, list[list[int]]] = {lane: [] for lane in LANES}
        self.locked: set[int] = set()
        self.content: dict[int, bytes] = {}
        """What was published to a block and not overwritten since."""

    def _held(self) -> list[int]:
        limbo = [table for tables in self.limbo.values() for table in tables]
        return [block for table in [*self.tables, *limbo, *self.leases] for block in table]

    @rule(count=st.integers(2, NUM_BLOCKS + 4))
    def resize(self, count: int) -> None:
        before, num_free, held = self.pool.num_blocks, self.pool.num_free, set(self._held())
        gone = self.pool.resize(count)
        assert self.pool.num_blocks == max(count, before - num_free), "as few as can be"
        assert len(gone) == max(0, before - self.pool.num_blocks)
        assert not set(gone) & (held | self.locked), "a block in use was put away"
        for block in gone:
            self.content.pop(block, None)
        self.content = {block: key for block, key in self.content.items() if self.pool.find(key) == block}

    @rule(count=st.integers(1, NUM_BLOCKS))
    def allocate(self, count: int) -> None:
        if count > self.pool.num_free:
            return
        held = set(self._held())
        blocks = self.pool.allocate(count)
        assert not held & set(blocks), "a block in use was granted again"
        assert not self.locked & set(blocks), "a locked block was granted"
        for block in blocks:
            self.content.pop(block, None)
        self.tables.append(blocks)

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), key=st.integers(0, 5))
    def fill_and_publish(self, data: st.DataObject, key: int) -> None:
        table = data.draw(st.sampled_from(self.tables))
        for block in table:
            if self.pool.state(block) is BlockState.RESERVED:
                self.pool.fill(block)
            elif self.pool.state(block) is BlockState.FILLING:
                name = bytes([key])
                fresh = self.pool.find(name) is None
                self.pool.publish(block, name)
                if fresh:
                    self.content[block] = name
                return

    @rule(key=st.integers(0, 5))
    def share(self, key: int) -> None:
        block = self.pool.find(bytes([key]))
        if block is None:
            return
        assert self.content[block] == bytes([key]), "found a block that holds something else"
        assert self.pool.state(block) is BlockState.READY
        self.pool.acquire([block])
        self.tables.append([block])

    @rule(keys=st.sets(st.integers(0, 5), min_size=1))
    def lease(self, keys: set[int]) -> None:
        found = [block for key in keys if (block := self.pool.find(bytes([key]))) is not None]
        self.pool.lease(found)
        self.leases.append(found)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def end_lease(self, data: st.DataObject) -> None:
        self.pool.end_lease(self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1))))

    @rule(keys=st.sets(st.integers(0, 5), min_size=1))
    def lock(self, keys: set[int]) -> None:
        found = [block for key in keys if (block := self.pool.find(bytes([key]))) is not None]
        self.pool.lock(found)
        self.locked |= set(found)

    @rule()
    def unlock(self) -> None:
        self.pool.unlock(self.locked)
        self.locked.clear()

    @rule(keys=st.lists(st.integers(0, 5)))
    def demote(self, keys: list[int]) -> None:
        found = [block for key in keys if (block := self.pool.find(bytes([key]))) is not None]
        self.pool.demote(found)

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.pool.release(self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1))))

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), lane=st.sampled_from(LANES))
    def retire(self, data: st.DataObject, lane: str) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.retire(table, lane)
        self.limbo[lane].append(table)

    @rule(lane=st.sampled_from(LANES))
    def settle(self, lane: str) -> None:
        self.pool.settle(lane)
        self.limbo[lane].clear()

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        self.pool.withdraw(table)
        for block in table:
            self.content.pop(block, None)

    @invariant()
    def conserves_blocks(self) -> None:
        self.pool.check_integrity(self.tables, self.leases)
        assert self.pool.num_free + len(set(self._held()) | self.locked) == self.pool.num_blocks
        leased = {block for lease in self.leases for block in lease}
        limbo = [table for tables in self.limbo.values() for table in tables]
        used = {block for table in [*self.tables, *limbo] for block in table}
        revocable = leased - used - self.locked
        assert (self.pool.num_leased, self.pool.num_revocable) == (len(leased), len(revocable))
        held, blocks = set(self._held()), set(self.content)
        assert self.pool.count_unused(blocks) == len((blocks - held) - self.locked | (revocable & blocks))

    def teardown(self) -> None:
        for table in self.tables:
            self.pool.release(table)
        for lease in self.leases:
            self.pool.end_lease(lease)
        for lane in LANES:
            self.pool.settle(lane)
        self.pool.unlock(self.locked)
        assert self.pool.num_free == self.pool.num_blocks
        self.pool.resize(NUM_BLOCKS)
        assert sorted(self.pool.allocate(NUM_BLOCKS)) == list(range(NUM_BLOCKS)), "the lowest come back first"


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_times_of_cached_blocks_are_counted_when_something_becomes_of_them() -> None:
    pool = BlockPool(2)
    pool.now = 1.0
    (block,) = pool.allocate(1)
    pool.fill(block)
    pool.now = 4.0
    pool.publish(block, b"x")
    pool.now = 6.0
    pool.release([block])
    pool.now = 16.0
    pool.acquire([block])
    pool.now = 20.0
    pool.release([block])
    assert [sum(histogram.counts) for histogram in pool.times()] == [0, 0, 1]
    pool.now = 50.0
    pool.allocate(2)
    lifetime, idle, gap = pool.times()
    assert (lifetime.total, idle.total, gap.total) == (49.0, 30.0, 10.0)
    assert [bound for bound, count in zip(idle.bounds, idle.counts, strict=False) if count] == [30]


def test_what_more_blocks_would_have_kept_is_counted() -> None:
    """Blocks computed again soon after they were evicted, as far back as is remembered."""
    pool = BlockPool(1)
    pool.num_remembered = 1
    for key in (b"x", b"y", b"x", b"z", b"w", b"x"):
        pool.miss([key])
        (block,) = pool.allocate(1)
        pool.fill(block)
        pool.publish(block, key)
        pool.release([block])
    assert pool.num_missed == 1, "the first x; the second went two blocks ago"
