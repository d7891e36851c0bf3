from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.policy.agents.gap_model import EDGES, NUM_BINS, PRIOR, GapHistogram, GapModel, Gaps, bin_of


@given(st.floats(0, 1e7))
def test_every_gap_has_its_bin(seconds: float) -> None:
    place = bin_of(seconds)
    assert EDGES[place] <= seconds
    assert place == NUM_BINS - 1 or seconds < EDGES[place + 1]


@given(st.lists(st.floats(0, 1e6), max_size=60), st.floats(0.1, 100))
def test_shares_add_up(gaps: list[float], weight: float) -> None:
    histogram = GapHistogram()
    for gap in gaps:
        histogram.add(gap)
    assert sum(histogram.shrunk_to(PRIOR, weight)) == pytest.approx(1.0)


def test_old_samples_fade_and_numbers_stay_small() -> None:
    histogram = GapHistogram()
    for _ in range(30_000):
        histogram.add(1.0)
    for _ in range(2_000):
        histogram.add(100.0)
    shares = histogram.shrunk_to(PRIOR, 1.0)
    assert shares[bin_of(100.0)] > 0.98


def test_without_data_the_rank_is_that_of_the_least_recently_used() -> None:
    gaps = GapModel().gaps("tool", None, "p")
    indices = [gaps.index(idle) for idle in (0.1, 1.0, 10.0, 100.0, 1000.0)]
    assert indices == sorted(indices, reverse=True)


def test_a_level_with_data_outweighs_the_one_above() -> None:
    model = GapModel()
    for number in range(200):
        model.add(1.0, "tool", "bash", f"other-{number}")
    fast = model.gaps("tool", "bash", "mine").returns_within(3.0, 0.0)
    for _ in range(60):
        model.add(600.0, "tool", "bash", "mine")
    slow = model.gaps("tool", "bash", "mine").returns_within(3.0, 0.0)
    assert fast > 0.9
    assert slow < 0.2
    assert model.gaps("tool", "bash", "another").returns_within(3.0, 0.0) > 0.6


def test_kinds_are_told_apart() -> None:
    model = GapModel()
    for number in range(100):
        model.add(2.0, "tool", None, f"a-{number}")
        model.add(300.0, "stop", None, f"b-{number}")
    assert model.gaps("tool", None, "new").index(0.0) > 10 * model.gaps("stop", None, "new").index(0.0)


def test_gaps_that_are_alike_make_waiting_worth_while() -> None:
    model = GapModel()
    for number in range(300):
        model.add(60.0, "tool", "tests", f"p-{number}")
    gaps = model.gaps("tool", "tests", "new")
    assert gaps.index(50.0) > gaps.index(0.0)
    assert gaps.index(500.0) < gaps.index(50.0)


def test_the_index_of_an_exponential_law_is_its_rate_at_every_age() -> None:
    rng = random.Random(0)
    model = GapModel(weight=0.001)
    histogram = model._all
    for _ in range(20_000):
        histogram.add(rng.expovariate(0.1))
    gaps = Gaps(histogram.shrunk_to(PRIOR, 0.001))
    for idle in (0.5, 5.0, 15.0):
        assert gaps.index(idle) == pytest.approx(0.1, rel=0.6)


@given(
    st.lists(st.floats(0, 1e5), min_size=1, max_size=30),
    st.floats(0, 1e5),
    st.floats(0, 1e5),
    st.floats(0, 1e4),
)
def test_chances_are_chances_and_grow(gaps: list[float], idle: float, first: float, more: float) -> None:
    model = GapModel()
    for gap in gaps:
        model.add(gap, "tool", None, "p")
    law = model.gaps("tool", None, "p")
    assert (
        -1e-9 <= law.returns_within(first, idle) <= law.returns_within(first + more, idle) + 1e-9 <= 1 + 2e-9
    )


def test_what_is_remembered_is_bounded() -> None:
    model = GapModel(max_keys=10)
    for number in range(1000):
        model.add(1.0, "tool", f"tool-{number}", f"program-{number}")
    assert len(model._levels) == 10


def plain_index(shares: list[float], idle_s: float) -> float:
    """The definition, bin by bin: from the middle of the bin, over holds to the ends of all later ones."""
    later = [sum(shares[place:]) for place in range(NUM_BINS + 1)]
    place = bin_of(idle_s)
    idle = (EDGES[place] + EDGES[place + 1]) / 2
    still = before = (later[place] + later[place + 1]) / 2
    best, held, start = 0.0, 0.0, idle
    for end, after in zip(EDGES[place + 1 :], later[place + 1 :], strict=True):
        held += (before + after) / 2 * (end - start)
        best = max(best, (still - after) / held)
        before, start = after, end
    return best


@given(
    st.lists(st.integers(0, 1000), min_size=NUM_BINS + 1, max_size=NUM_BINS + 1).filter(any),
    st.floats(0.001, 100),
    st.lists(st.floats(0, 1e6), max_size=8),
)
def test_the_index_is_that_of_the_definition(counts: list[int], weight: float, idle: list[float]) -> None:
    total = sum(counts) + weight
    shares = [(count + weight * share) / total for count, share in zip(counts, PRIOR, strict=True)]
    gaps = Gaps(shares)
    for idle_s in (*idle, 0.0, 1.0, 1e5):
        assert gaps.index(idle_s) == pytest.approx(plain_index(shares, idle_s), rel=1e-9)
