"""The index of a tier below the device."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.sched.tiers import LowerTier


def key(number: int) -> bytes:
    return number.to_bytes(16, "little")


def stored(tier: LowerTier, *numbers: int) -> list[int]:
    slots = []
    for number in numbers:
        slot = tier.reserve(key(number))
        assert slot is not None
        slots.append(slot)
        tier.publish(key(number))
    tier.check_integrity()
    return slots


def test_only_what_has_been_written_is_found() -> None:
    tier = LowerTier("disk", 2)
    slot = tier.reserve(key(1))
    assert key(1) in tier
    assert tier.find(key(1)) is None
    tier.publish(key(1))
    assert tier.find(key(1)) == slot
    tier.reserve(key(2))
    tier.cancel(key(2))
    assert key(2) not in tier
    assert tier.counts() == {"slots": 2, "used": 1, "stored": 1, "loaded": 0, "failed": 1, "evicted": 0}


def test_the_least_recently_used_goes_and_of_a_chain_its_end() -> None:
    tier = LowerTier("disk", 4)
    stored(tier, 1, 2, 3, 4)
    tier.touch((key(1), key(2), key(3)))
    stored(tier, 5, 6)
    assert [tier.find(key(n)) is not None for n in range(1, 7)] == [True, True, False, False, True, True]
    assert tier.num_evicted == 2


def test_what_nobody_asks_for_goes_first_its_end_before_all() -> None:
    tier = LowerTier("disk", 4)
    stored(tier, 1, 2, 3, 4)
    tier.demote((key(3), key(4)))
    stored(tier, 5)
    assert tier.find(key(4)) is None
    assert tier.find(key(3)) is not None


def test_nothing_is_written_over_what_is_read_or_written() -> None:
    tier = LowerTier("disk", 2)
    (first,) = stored(tier, 1)
    assert tier.acquire(key(1)) == first
    assert tier.reserve(key(2)) is not None
    assert tier.reserve(key(3)) is None
    tier.release(key(1), is_good=True)
    assert tier.reserve(key(3)) == first


def test_what_is_withdrawn_is_found_no_more_and_its_slot_waits_for_readers() -> None:
    tier = LowerTier("disk", 2)
    stored(tier, 1, 2)
    tier.acquire(key(1))
    tier.withdraw([key(1), key(2), key(3)])
    tier.check_integrity()
    assert tier.find(key(1)) is tier.find(key(2)) is None
    assert tier.reserve(key(1)) is not None
    assert tier.reserve(key(4)) is None
    tier.publish(key(1))
    tier.release(key(1), is_good=True)
    tier.check_integrity()
    assert tier.reserve(key(4)) is not None
    assert tier.find(key(1)) is not None


def test_what_is_not_what_it_should_be_is_found_no_more() -> None:
    tier = LowerTier("disk", 2)
    stored(tier, 1)
    tier.acquire(key(1))
    tier.release(key(1), is_good=False)
    tier.check_integrity()
    assert tier.find(key(1)) is None
    assert tier.counts()["failed"] == 1


def test_what_was_kept_is_found_and_its_oldest_goes_first() -> None:
    tier = LowerTier("disk", 3, [(2, key(1)), (0, key(2))])
    assert (tier.find(key(1)), tier.find(key(2))) == (2, 0)
    stored(tier, 3, 4)
    assert tier.find(key(1)) is None
    assert tier.find(key(2)) == 0


def test_a_closed_tier_takes_and_gives_nothing() -> None:
    tier = LowerTier("disk", 3)
    stored(tier, 1)
    tier.acquire(key(1))
    tier.reserve(key(2))
    tier.close()
    tier.release(key(1), is_good=True)
    tier.publish(key(2))
    tier.cancel(key(2))
    assert tier.reserve(key(3)) is None
    assert len(tier) == 0
    tier.check_integrity()


@settings(max_examples=150, deadline=None)
@given(
    num_slots=st.integers(1, 6),
    steps=st.lists(
        st.tuples(
            st.sampled_from(
                ["reserve", "publish", "cancel", "acquire", "good", "bad", "touch", "demote", "withdraw"]
            ),
            st.integers(0, 2),
        ),
        min_size=40,
        max_size=80,
    ),
)
def test_no_slot_is_ever_lost_or_used_twice(num_slots: int, steps: list[tuple[str, int]]) -> None:
    tier = LowerTier("disk", num_slots)
    writing: dict[int, int] = {}
    reading: dict[int, int] = {}
    lasting: set[int] = set()
    """Being read, and not withdrawn since."""
    for verb, number in steps:
        name = key(number)
        if verb == "reserve" and name not in tier:
            slot = tier.reserve(name)
            if slot is not None:
                assert slot not in writing.values()
                assert slot not in reading.values()
                writing[number] = slot
        elif verb in ("publish", "cancel") and number in writing:
            getattr(tier, verb)(name)
            slot = writing.pop(number)
            assert tier.find(name) == (slot if verb == "publish" else None)
        elif verb == "acquire" and tier.find(name) is not None and number not in reading:
            reading[number] = tier.acquire(name)
            lasting.add(number)
        elif verb in ("good", "bad") and number in reading:
            del reading[number]
            tier.release(name, is_good=verb == "good")
            assert verb == "good" or tier.find(name) is None
            assert verb == "bad" or number not in lasting or tier.find(name) is not None
            lasting.discard(number)
        elif verb == "withdraw":
            tier.withdraw([name])
            assert tier.find(name) is None
            lasting.discard(number)
        elif verb == "touch":
            tier.touch((name, key(number + 1)))
        elif verb == "demote":
            tier.demote((name,))
        tier.check_integrity()
        assert all(tier.find(key(n)) == reading[n] for n in lasting)


def test_a_kept_slot_beyond_the_tier_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        LowerTier("disk", 1, [(1, key(1))])
