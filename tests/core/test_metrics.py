from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.core.metrics import (
    EMPTY_HISTOGRAM,
    SLO,
    Histogram,
    HistogramCounter,
    RequestTimes,
    goodput,
    percentile,
    slo_attainment,
    summary,
)

FAST = RequestTimes(request_id="f", arrival=1.0, first_scheduled=1.5, token_times=(2.0, 3.0, 5.0))
SINGLE = RequestTimes(request_id="s", arrival=2.0, first_scheduled=4.0, token_times=(6.0,))


def test_formulas() -> None:
    assert (FAST.queueing_delay, FAST.ttft, FAST.e2e, FAST.tpot) == (0.5, 1.0, 4.0, 1.5)
    assert FAST.tbts == [1.0, 2.0]
    assert (SINGLE.tpot, SINGLE.tbts, SINGLE.num_output_tokens) == (None, [], 1)


@pytest.mark.parametrize(("q", "value"), [(0, 1.0), (25, 1.75), (50, 2.5), (99, 3.97), (100, 4.0)])
def test_percentiles_are_linear_between_ranks(q: float, value: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], q) == pytest.approx(value)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2))
def test_percentiles_agree_with_the_standard_library(values: list[float]) -> None:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    assert [percentile(values, q) for q in range(1, 100)] == pytest.approx(cuts, abs=1e-6)


def test_summary() -> None:
    assert summary([1.0, 2.0, 3.0]) == pytest.approx((3, 2.0, 2.0, 2.8, 2.98, 3.0))


@pytest.mark.parametrize(
    ("slo", "share"),
    [
        (SLO(), 1.0),
        (SLO(ttft=1.0), 0.5),
        (SLO(tpot=1.0), 0.5),
        (SLO(ttft=4.0, e2e=4.0), 1.0),
        (SLO(e2e=0.1), 0.0),
    ],
)
def test_attainment_and_goodput(slo: SLO, share: float) -> None:
    assert slo_attainment([FAST, SINGLE], slo) == share
    assert goodput([FAST, SINGLE], slo) == pytest.approx(2 * share / 5.0)


def test_refused_requests_miss_their_limits() -> None:
    assert slo_attainment([FAST], SLO(), num_refused=3) == 0.25


def test_nothing_has_no_metric() -> None:
    for call in (
        lambda: percentile([], 50),
        lambda: percentile([1.0], 101),
        lambda: slo_attainment([], SLO()),
        lambda: goodput([], SLO()),
    ):
        with pytest.raises(ValueError):
            call()


def test_a_histogram_counts_values_up_to_each_bound() -> None:
    counter = HistogramCounter((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5, 100.0):
        counter.observe(value)
    assert counter.read() == Histogram((1.0, 2.0), (2, 2, 2), 107.5)
    assert Histogram((), (0,), 0.0) == EMPTY_HISTOGRAM
