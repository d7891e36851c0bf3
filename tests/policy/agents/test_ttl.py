"""Cases by hand of the published formulas."""

from __future__ import annotations

from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.policy.agents.gaps import ToolGaps
from braid.policy.agents.ttl import COLD_SAMPLES, ContinuumTTL, Hold, best_ttl, exponential_ttl, fixed_hold


@pytest.mark.parametrize(
    ("gaps", "benefit", "seconds"),
    [
        ([], 10.0, 0.0),
        ([1.0], 2.0, 1.0),  # 1 * 2 - 1 = 1 > 0
        ([1.0], 1.0, 0.0),  # a tie with not holding
        ([1.0], 0.5, 0.0),
        ([1.0, 5.0], 4.0, 1.0),  # 0.5 * 4 - 1 = 1, 4 - 5 = -1
        ([1.0, 5.0], 10.0, 5.0),  # 4, 5
        ([1.0, 5.0], 8.0, 1.0),  # a tie of 3 and 3 goes to the smaller
        ([2.0, 2.0, 2.0, 9.0], 4.0, 2.0),  # three of four at once: 0.75 * 4 - 2 = 1
        ([0.0, 0.0, 50.0], 3.0, 0.0),  # holding for no time gains 2 s, and is not holding
    ],
)
def test_the_best_hold(gaps: list[float], benefit: float, seconds: float) -> None:
    assert best_ttl(gaps, benefit) == seconds


@given(st.lists(st.floats(0, 60), max_size=30), st.floats(0, 100))
def test_no_candidate_is_better(gaps: list[float], benefit: float) -> None:
    gaps.sort()

    def utility(hold: float) -> float:
        return sum(gap <= hold for gap in gaps) / max(1, len(gaps)) * benefit - hold

    best = max(utility(hold) for hold in (0.0, *gaps))
    assert utility(best_ttl(gaps, benefit)) >= best - 1e-9


@pytest.mark.parametrize(("benefit", "seconds"), [(0.5, 0.0), (1.0, 0.0), (2.0, log(2.0)), (10.0, log(10.0))])
def test_the_assumed_law(benefit: float, seconds: float) -> None:
    assert exponential_ttl(benefit) == seconds


def test_the_ladder_and_its_limits() -> None:
    policy = ContinuumTTL()
    policy.waits.add(3.0)
    for _ in range(COLD_SAMPLES):
        policy.gaps.add("bash", 1.0)
    # Exactly a hundred samples are still cold, and eta counts as 1 there.
    assert policy.hold("bash", 2.0) == Hold(log(5.0), "cold")
    policy.gaps.add("edit", 9.0)
    # eta is 0 without ended programs, so B = R = 2; a hundred of 101 gaps are 1 s.
    assert policy.hold("bash", 2.0) == Hold(1.0, "global")
    policy.gaps.add("bash", 4.0)
    assert policy.hold("bash", 2.0) == Hold(1.0, "tool")
    assert policy.hold("edit", 0.5) == Hold(0.0, "global")


def test_memoryfulness_weighs_the_wait() -> None:
    policy = ContinuumTTL()
    for _ in range(COLD_SAMPLES + 1):
        policy.gaps.add("bash", 5.0)
    policy.waits.add(10.0)
    assert policy.hold("bash", 1.0).seconds == 0.0  # eta 0: B = 1 < 5
    for _ in range(3):
        policy.lengths.add(11)
    assert policy.hold("bash", 1.0).seconds == 5.0  # eta 1: B = 11


def test_what_was_released() -> None:
    gaps = ToolGaps()
    assert fixed_hold(gaps, None).seconds == 0.0
    assert fixed_hold(gaps, "never seen") == Hold(2.0, "cold")
    gaps.add("slow", 2.5)
    gaps.add("fast", 2.0)
    assert (fixed_hold(gaps, "slow").seconds, fixed_hold(gaps, "fast").seconds) == (0.0, 2.0)
