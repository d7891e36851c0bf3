from __future__ import annotations

from statistics import correlation

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.policy.agents.gaps import Memoryfulness, Samples, SlidingMean, ToolGaps


@given(st.lists(st.floats(0, 100), max_size=40), st.integers(1, 10))
def test_samples_are_the_latest_in_order(values: list[float], limit: int) -> None:
    samples = Samples(limit)
    for value in values:
        samples.add(value)
    assert samples.sorted == sorted(values[-limit:])
    assert samples.mean == pytest.approx(sum(values[-limit:]) / max(1, len(values[-limit:])))


def test_tools_that_were_not_seen_for_longest_are_forgotten() -> None:
    gaps = ToolGaps(max_tools=2)
    for tool in ("bash", "edit", "bash", "search"):
        gaps.add(tool, 1.0)
    assert (gaps.of("bash"), gaps.of("edit"), gaps.of("search")) == ([1.0, 1.0], (), [1.0])
    assert len(gaps.all) == 4


def test_a_sliding_mean_forgets() -> None:
    mean = SlidingMean(2)
    assert mean.value == 0.0
    for value in (10.0, 1.0, 3.0):
        mean.add(value)
    assert mean.value == 2.0


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 8))
def test_memoryfulness_is_the_negative_correlation(lengths: list[int], limit: int) -> None:
    memory = Memoryfulness(limit)
    for length in lengths:
        memory.add(length)
    pairs = [(k, n - k) for n in lengths[-limit:] for k in range(1, n)]
    done, left = [k for k, _ in pairs], [k for _, k in pairs]
    if len(set(done)) < 2:
        assert memory.value == 0.0
    else:
        assert memory.value == pytest.approx(-correlation(done, left))


def test_memoryfulness_is_one_for_one_length_and_negative_for_two_extremes() -> None:
    same, mixed = Memoryfulness(), Memoryfulness()
    for _ in range(5):
        same.add(11)
        mixed.add(2)
        mixed.add(60)
    assert same.value == pytest.approx(1.0)
    geometric_like = Memoryfulness()
    for length, count in ((2, 40), (3, 20), (4, 10), (5, 5), (20, 5)):
        for _ in range(count):
            geometric_like.add(length)
    assert geometric_like.value < 0.6
