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
    jct,
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


def test_an_answer_may_end_after_its_last_token() -> None:
    seen = RequestTimes(request_id="c", arrival=1.0, first_scheduled=1.0, token_times=(2.0, 3.0), end=3.5)
    assert (seen.ttft, seen.tpot, seen.e2e, seen.finished) == (1.0, 1.0, 2.5, 3.5)
    assert FAST.finished == 5.0


def test_jct_is_from_the_first_arrival_to_the_last_end_of_a_program() -> None:
    assert jct([SINGLE, FAST]) == 5.0
    assert jct([FAST]) == FAST.e2e
    assert SLO(jct=5.0).is_met_by_program([FAST, SINGLE])
    assert not SLO(jct=4.9).is_met_by_program([FAST, SINGLE])
    assert SLO().is_met_by_program([FAST, SINGLE])
    assert SLO(jct=0.1).is_met(FAST)


def test_goodput_over_a_window() -> None:
    assert goodput([FAST, SINGLE], SLO(tpot=1.0), duration=10.0) == 0.1
    assert goodput([], SLO(), duration=10.0) == 0.0


def test_refused_requests_miss_their_limits() -> None:
    assert slo_attainment([FAST], SLO(), num_refused=3) == 0.25


def test_nothing_has_no_metric() -> None:
    for call in (
        lambda: percentile([], 50),
        lambda: percentile([1.0], 101),
        lambda: slo_attainment([], SLO()),
        lambda: goodput([], SLO()),
        lambda: goodput([FAST], SLO(), duration=0.0),
        lambda: jct([]),
    ):
        with pytest.raises(ValueError):
            call()


def test_a_histogram_counts_values_up_to_each_bound() -> None:
    counter = HistogramCounter((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5, 100.0):
        counter.observe(value)
    assert counter.read() == Histogram((1.0, 2.0), (2, 2, 2), 107.5)
    assert Histogram((), (0,), 0.0) == EMPTY_HISTOGRAM
