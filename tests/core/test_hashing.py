from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from braid.core.hashing import LOG_BLOCK_SIZE, Hasher

SALT = b"salt"
Ids = st.lists(st.integers(0, 5), max_size=70)


@given(Ids, Ids)
def test_equal_as_far_as_the_prefixes_are(one: list[int], two: list[int]) -> None:
    hasher = Hasher(SALT)
    first, second = hasher.prefix_ids(one, ""), hasher.prefix_ids(two, "")
    assert len(first) == -(-len(one) // LOG_BLOCK_SIZE)
    for at, (left, right) in enumerate(zip(first, second, strict=False)):
        end = (at + 1) * LOG_BLOCK_SIZE
        assert (left == right) == (one[:end] == two[:end])


def test_salts_keep_apart() -> None:
    ids = list(range(40))
    assert Hasher(SALT).prefix_ids(ids, "") == Hasher(SALT).prefix_ids(ids, "")
    assert set(Hasher(SALT).prefix_ids(ids, "")).isdisjoint(Hasher(SALT).prefix_ids(ids, "tenant"))
    assert set(Hasher().prefix_ids(ids, "")).isdisjoint(Hasher().prefix_ids(ids, ""))


def test_numbers_are_exact_in_json_readers() -> None:
    assert all(0 <= number < 2**53 for number in Hasher().prefix_ids(list(range(1000)), ""))


def test_names() -> None:
    hasher = Hasher(SALT)
    assert hasher.name("a", "bc") == hasher.name("a", "bc") != hasher.name("ab", "c")
    assert len(hasher.name("x")) == 16
    assert hasher.scope != Hasher().scope
