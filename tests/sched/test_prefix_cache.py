from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from braid.sched.block_pool import BlockPool
from braid.sched.prefix_cache import Fillings, extend_keys, match_prefix, root_key


def keys_of(tokens: list[int], salt: str = "", size: int = 2) -> list[bytes]:
    keys: list[bytes] = []
    extend_keys(keys, root_key(salt), tokens, size, len(tokens) // size)
    return keys


@given(st.lists(st.integers(0, 3), max_size=12), st.lists(st.integers(0, 3), max_size=12))
def test_keys_are_equal_exactly_where_all_tokens_before_are(a: list[int], b: list[int]) -> None:
    for index, (left, right) in enumerate(zip(keys_of(a), keys_of(b), strict=False)):
        end = 2 * (index + 1)
        assert (left == right) == (a[:end] == b[:end])


def test_keys_differ_by_salt_and_survive_odd_text() -> None:
    salts = ["", "a", "b", "\ud800"]
    assert len({keys_of([1, 2], salt)[0] for salt in salts}) == len(salts)


def test_keys_are_extended_and_never_recomputed() -> None:
    keys = keys_of([1, 2, 3, 4])
    whole = list(keys)
    extend_keys(whole, b"not used, as the chain goes on", [1, 2, 3, 4, 5, 6], 2, 3)
    assert whole == keys_of([1, 2, 3, 4, 5, 6])


def test_the_match_ends_at_the_first_gap_and_at_the_limit() -> None:
    pool = BlockPool(4)
    keys = keys_of([1, 2, 3, 4, 5, 6, 7, 8])
    blocks = pool.allocate(4)
    for block, key in zip(blocks, keys, strict=True):
        pool.fill(block)
        pool.publish(block, key)
    assert match_prefix(pool, keys, 4) == blocks
    assert match_prefix(pool, keys, 3) == blocks[:3]
    pool.withdraw(blocks[1:2])
    assert match_prefix(pool, keys, 4) == blocks[:1]


def test_waiters_come_back_when_the_filler_is_done_or_gone() -> None:
    fillings: Fillings[str] = Fillings()
    fillings.announce("first", [b"x", b"y"])
    fillings.announce("second", [b"y", b"z"])
    fillings.park("third", b"y")
    fillings.park("fourth", b"y")
    assert fillings.waiting() == [("third", "first"), ("fourth", "first")]
    assert fillings.resolve("second", b"y") == [], "only the filler decides"
    fillings.unpark("fourth", b"y")
    assert fillings.resolve("first", b"y") == ["third"]
    assert fillings.filler(b"y") is None
    assert fillings.filler(b"z") == "second"
