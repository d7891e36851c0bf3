"""Leases hold blocks within quotas, in the order of their ends, and give way to whoever needs the blocks."""

from __future__ import annotations

import pytest

from braid.policy.agents.program import ProgramId
from braid.sched.block_pool import BlockPool
from braid.sched.leases import Leases


def cached(pool: BlockPool, count: int, name: str) -> list[int]:
    """``count`` idle cached blocks."""
    blocks = pool.allocate(count)
    for index, block in enumerate(blocks):
        pool.fill(block)
        pool.publish(block, f"{name}{index}".encode())
    pool.release(blocks)
    return blocks


@pytest.fixture
def pool() -> BlockPool:
    return BlockPool(16)


@pytest.fixture
def leases(pool: BlockPool) -> Leases:
    return Leases(pool)


def check(pool: BlockPool, leases: Leases) -> None:
    leases.check_integrity()
    pool.check_integrity([], [lease.blocks for lease in leases])


A, B = ProgramId("a", "p"), ProgramId("b", "p")


def test_leased_blocks_are_not_free_but_revocable(pool: BlockPool, leases: Leases) -> None:
    blocks = cached(pool, 4, "x")
    assert leases.grant(A, blocks, 10.0) == 4
    assert (pool.num_free, pool.num_revocable, pool.num_leased) == (12, 4, 4)
    check(pool, leases)
    leases.expire(9.9)
    assert leases.next_end == 10.0
    leases.expire(10.0)
    assert (pool.num_free, pool.num_revocable, len(leases), leases.next_end) == (16, 0, 0, None)
    check(pool, leases)


def test_half_of_the_pool_may_be_leased_and_owners_share_it(pool: BlockPool, leases: Leases) -> None:
    first, second = cached(pool, 6, "x"), cached(pool, 6, "y")
    assert leases.grant(A, first, 10.0) == 6
    assert leases.grant(B, second, 10.0) == 2, "half of the pool is 8 blocks, and 6 are taken"
    assert leases.grant(A, first, 10.0) == 4, "each of two owners has a right to 4"
    assert leases.grant(B, second, 10.0) == 4
    check(pool, leases)


def test_blocks_that_two_leases_share_count_once(pool: BlockPool, leases: Leases) -> None:
    blocks = cached(pool, 8, "x")
    assert leases.grant(A, blocks[:7], 10.0) == 7
    assert leases.grant(ProgramId("a", "q"), blocks, 20.0) == 8
    assert pool.num_leased == pool.num_revocable == 8
    check(pool, leases)
    leases.expire(10.0)
    assert pool.num_leased == 8
    check(pool, leases)


def test_the_first_to_end_is_revoked_first_and_only_if_that_helps(pool: BlockPool, leases: Leases) -> None:
    late, early = cached(pool, 3, "x"), cached(pool, 3, "y")
    leases.grant(A, late, 20.0)
    leases.grant(B, early, 10.0)
    taken = pool.allocate(10)
    assert not leases.make_room(7)
    assert len(leases) == 2
    assert leases.make_room(2)
    assert [lease.holder for lease in leases] == [A]
    assert leases.make_room(6)
    assert (len(leases), leases.num_revoked) == (0, 2)
    pool.release(taken)
    check(pool, leases)


def test_a_lease_on_blocks_in_use_is_left_alone(pool: BlockPool, leases: Leases) -> None:
    used, idle = cached(pool, 3, "x"), cached(pool, 3, "y")
    leases.grant(A, used, 10.0)
    leases.grant(B, idle, 20.0)
    pool.acquire(used)
    taken = pool.allocate(10)
    assert pool.num_revocable == 3
    assert leases.make_room(1)
    assert [lease.holder for lease in leases] == [A]
    pool.release(taken)
    pool.release(used)
    assert pool.num_revocable == 3
    check(pool, leases)


def test_withdrawn_blocks_are_given_back_with_the_lease(pool: BlockPool, leases: Leases) -> None:
    blocks = cached(pool, 3, "x")
    leases.grant(A, blocks, 10.0)
    pool.acquire(blocks)
    pool.withdraw(blocks)
    pool.release(blocks)
    check(pool, leases)
    leases.end(A)
    assert pool.num_free == 16
    assert pool.num_cached == 0
    check(pool, leases)
