"""What experts cost, learnt from samples: the prior first, the first samples not believed, outliers little."""

from __future__ import annotations

import pytest

from braid.policy.experts.policy import ExpertTimes
from braid.policy.experts.times import BELIEVED, WARMING, LearntTimes, prior_times

PRIOR = ExpertTimes(
    link_s=1.0, link_busy_s=1.5, fast_s=0.1, fast_row_s=0.01, slow_s=0.5, slow_row_s=0.05, slow_first_s=0.2
)


def test_the_prior_holds_until_something_is_measured() -> None:
    learnt = LearntTimes(PRIOR)
    assert learnt.times == PRIOR
    for _ in range(WARMING):
        learnt.fast(1e3, 1, 1)
        learnt.slow(1e3, 1, 1)
    assert learnt.times == PRIOR, "the first layers load code"


def test_what_a_larger_record_costs() -> None:
    small, large = prior_times(1 << 20), prior_times(1 << 24)
    assert all(less < more for less, more in zip(small[:-1], large[:-1], strict=True))
    assert all(seconds > 0 for seconds in small)


def test_the_link_takes_what_it_usually_takes() -> None:
    learnt = LearntTimes(PRIOR)
    learnt.fetched(100.0, is_busy=False)
    assert learnt.times.link_s == 1.0, "one fetch says nothing"
    for _ in range(BELIEVED + 2):
        learnt.fetched(0.2, is_busy=False)
        learnt.fetched(0.3, is_busy=True)
    assert (learnt.times.link_s, learnt.times.link_busy_s) == (0.2, 0.3)
    for _ in range(40):
        learnt.fetched(0.6, is_busy=False)
    assert learnt.times.link_busy_s == learnt.times.link_s == 0.6, "it is never faster beside the CPU"


def test_both_sides_are_told_apart_into_experts_and_rows() -> None:
    learnt = LearntTimes(PRIOR)
    for step in range(300):
        experts, rows = 1 + step % 7, (1 + step % 7) * (1 + step % 5)
        learnt.fast(experts * 0.02 + rows * 0.001, experts, rows)
        learnt.slow(0.4 + experts * 0.3 + rows * 0.2, experts, rows)
    times = learnt.times
    for experts, rows in ((1, 1), (2, 2), (7, 7), (5, 25), (1, 5)):
        slow_s = times.slow_first_s + experts * times.slow_s + rows * times.slow_row_s
        assert slow_s == pytest.approx(0.4 + experts * 0.3 + rows * 0.2, rel=0.05)
        fast_s = experts * times.fast_s + rows * times.fast_row_s
        assert fast_s == pytest.approx(experts * 0.02 + rows * 0.001, rel=0.05)
