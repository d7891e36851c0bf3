from __future__ import annotations

import numpy as np
import pytest

from braid.lab.fit.arrivals import fit_arrivals
from braid.lab.fit.laws import POISSON, UnitLaw
from braid.lab.fit.mmpp import fit_mmpp
from braid.lab.fit.observed import Observed, alternate, dequantise, halves, observed
from braid.lab.fit.processes import (
    Constant,
    Cox,
    Mmpp,
    OnOff,
    Windowed,
    arrivals,
    arrivals_until,
    mean_rate,
    stationary,
)
from braid.lab.fit.rates import fit_cox, fit_onoff, fit_windowed, window_table

TWO = Mmpp(rates=(1.0, 8.0), switch=((0.0, 0.02), (0.05, 0.0)))
TRUE = {"rate_0": 1.0, "rate_1": 8.0, "switch_0_1": 0.02, "switch_1_0": 0.05}


def mmpp_hits(seed: int, quantum_s: float, span_s: float) -> dict[str, bool]:
    times = arrivals_until(TWO, POISSON, np.random.default_rng([seed, 3]), span_s)
    if quantum_s:
        times = np.floor(times / quantum_s) * quantum_s
    data = Observed(times, ((0.0, span_s),), quantum_s)
    found = fit_mmpp(data, 2).intervals
    return {name: found[name][0] <= true <= found[name][1] for name, true in TRUE.items()}


@pytest.mark.parametrize("quantum_s", [0.0, 1.0, 3.0])
def test_mmpp_parameters_come_back(quantum_s: float) -> None:
    hits = [mmpp_hits(seed, quantum_s, 1500.0) for seed in range(3)]
    assert sum(all(h.values()) for h in hits) >= 2 or sum(sum(h.values()) for h in hits) >= 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("quantum_s", [0.0, 1.0, 3.0])
def test_each_mmpp_parameter_is_inside_in_90_of_100_seeds(quantum_s: float) -> None:
    hits = [mmpp_hits(seed, quantum_s, 1500.0) for seed in range(100)]
    for name in TRUE:
        assert sum(h[name] for h in hits) >= 90, name


def test_three_states_fit_no_worse_than_two() -> None:
    times = arrivals_until(TWO, POISSON, np.random.default_rng(1), 200.0)
    data = Observed(times, ((0.0, 200.0),))
    assert fit_mmpp(data, 3).log_likelihood >= fit_mmpp(data, 2).log_likelihood - 1.0


@pytest.mark.parametrize(
    "process",
    [
        Constant(rate=4.0),
        TWO,
        Windowed(window_s=30.0, log_mean=1.0, sd=0.5, phi=0.6),
        OnOff(threshold_s=1.0, on_log=1.0, on_sd=0.5, off_log=1.5, off_sd=0.5, rate_log=2.0, rate_slope=0.1,
              rate_sd=0.2),
        Cox(rate=5.0, taus_s=(1.0, 60.0), variances=(0.3, 0.2)),
    ],
)  # fmt: skip
def test_paths_keep_their_mean_rate_and_order(process: Constant) -> None:
    times = arrivals_until(process, POISSON, np.random.default_rng(2), 40_000.0)
    assert (np.diff(times) >= 0).all()
    assert times.size / 40_000 == pytest.approx(mean_rate(process), rel=0.12)


def test_chunks_make_one_renewal_process() -> None:
    law = UnitLaw(family="gamma", shape=0.5)
    source = arrivals(Constant(rate=2.0), law, np.random.default_rng(0), 7.0)
    times = np.concatenate([next(source) for _ in range(3000)])
    gaps = np.diff(times)
    assert (gaps >= 0).all()
    assert gaps.mean() == pytest.approx(0.5, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(2**0.5, rel=0.05)


def test_stationary_shares() -> None:
    assert stationary(np.array(TWO.switch)) == pytest.approx([5 / 7, 2 / 7])


def test_cox_meets_the_index_it_was_fitted_to() -> None:
    true = Cox(rate=10.0, taus_s=(2.0, 60.0), variances=(0.2, 0.2))
    span = 20_000.0
    data = Observed(arrivals_until(true, POISSON, np.random.default_rng(4), span), ((0.0, span),))
    found = fit_cox(data)
    assert found is not None
    again = Observed(arrivals_until(found.process, POISSON, np.random.default_rng(5), span), ((0.0, span),))
    for window in (1.0, 10.0, 60.0):
        assert again.idc(window) == pytest.approx(data.idc(window), rel=0.3)


def test_onoff_finds_phases_and_keeps_the_rate() -> None:
    true = OnOff(
        threshold_s=3.0,
        on_log=2.0,
        on_sd=0.6,
        off_log=2.5,
        off_sd=0.5,
        rate_log=2.0,
        rate_slope=0.0,
        rate_sd=0.0,
    )
    span = 20_000.0
    data = Observed(arrivals_until(true, POISSON, np.random.default_rng(4), span), ((0.0, span),))
    found = fit_onoff(data, 3.0, free_rate=False)
    assert found is not None
    assert mean_rate(found.process) == pytest.approx(data.rate, rel=0.1)
    assert isinstance(found.process, OnOff)
    assert found.process.off_log == pytest.approx(2.5, abs=0.25)
    assert found.process.on_sd == pytest.approx(0.6, abs=0.2)


def test_windowed_rates() -> None:
    true = Windowed(window_s=60.0, log_mean=1.0, sd=0.6, phi=0.7)
    span = 60_000.0
    data = Observed(arrivals_until(true, POISSON, np.random.default_rng(9), span), ((0.0, span),))
    process = fit_windowed(data, 60.0).process
    assert isinstance(process, Windowed)
    assert process.sd == pytest.approx(0.6, rel=0.15)
    assert process.phi == pytest.approx(0.7, abs=0.12)
    rows = window_table(data)
    assert len(rows) == 50
    assert sum(row.num for row in rows) == data.times.size


def test_a_poisson_trace_is_not_mistaken_for_bursts_and_bursts_not_for_poisson() -> None:
    names = ("poisson", "gamma", "cox", "onoff-4", "drift-gamma")
    span = 2000.0
    calm = observed(arrivals_until(Constant(rate=3.0), POISSON, np.random.default_rng(0), span))
    bursty = observed(arrivals_until(TWO, POISSON, np.random.default_rng(0), span))
    calm_scores = {s.name: s for s in fit_arrivals(calm, names).scores}
    assert calm_scores["poisson"].idc_error < 0.25
    found = fit_arrivals(bursty, names)
    scores = {s.name: s for s in found.scores}
    assert found.chosen.name not in ("poisson", "gamma")
    assert scores["poisson"].idc_error > 1.0
    assert sum(s.chosen for s in found.scores) == 1
    assert {model.name for model in found.baselines} == {"poisson", "gamma"}


def test_splits_cover_the_time_once() -> None:
    spans = ((0.0, 1000.0),)
    parts = [alternate(spans, 180.0, part) for part in (0, 1)]
    assert sorted(parts[0] + parts[1])[0] == (0.0, 180.0)
    assert sum(b - a for part in parts for a, b in part) == 1000.0
    assert halves(spans, 0) == ((0.0, 500.0),)
    assert halves(spans, 1) == ((500.0, 1000.0),)
    again = [alternate(parts[0], 360.0, part) for part in (0, 1)]
    assert sorted(again[0] + again[1]) == sorted(parts[0])


def test_dequantising_stays_inside_the_quantum_and_keeps_order() -> None:
    times = np.repeat(np.arange(50) * 3.0, 4) + np.tile([0.0, 0.002, -0.003, 0.001], 50)
    times.sort()
    moved = dequantise(times, 3.0, np.random.default_rng(0))
    assert (np.diff(moved) >= 0).all()
    assert np.array_equal(np.floor(moved / 3.0), np.round(times / 3.0))
    assert np.array_equal(moved, dequantise(times, 3.0, np.random.default_rng(0)))
    assert np.array_equal(dequantise(times, 0.0, np.random.default_rng(0)), times)


def test_too_few_arrivals_are_named() -> None:
    with pytest.raises(ValueError, match="fewer than two times"):
        observed(np.array([1.0, 1.0]))
