from __future__ import annotations

import numpy as np
import pytest

from braid.lab.fit.lengths import Sampler, fit_mixture, fit_zeta, length_laws, quantile_table, table
from braid.lab.fit.outcomes import failure_shares, fit_outcomes, wilson

MIXTURE = {"mean_log_0": 2.5, "sd_log_0": 0.5, "weight_0": 0.4, "mean_log_1": 5.5, "sd_log_1": 0.7}


def zeta_hit(seed: int) -> bool:
    draws = np.random.default_rng([seed, 1]).zipf(1.9, 3000).astype(float)
    low, high = fit_zeta(draws).intervals["exponent"]
    return low <= 1.9 <= high


def mixture_hits(seed: int) -> dict[str, bool]:
    rng = np.random.default_rng([seed, 2])
    first = rng.random(3000) < 0.4
    values = np.rint(np.exp(np.where(first, rng.normal(2.5, 0.5, 3000), rng.normal(5.5, 0.7, 3000))))
    found = fit_mixture(values, 2).intervals
    return {name: found[name][0] <= true <= found[name][1] for name, true in MIXTURE.items()}


def test_zeta_comes_back() -> None:
    assert sum(zeta_hit(seed) for seed in range(12)) >= 10


def test_mixture_comes_back() -> None:
    hits = [mixture_hits(seed) for seed in range(10)]
    assert all(sum(h[name] for h in hits) >= 8 for name in MIXTURE)


@pytest.mark.slow
def test_zeta_is_inside_in_90_of_100_seeds() -> None:
    assert sum(zeta_hit(seed) for seed in range(100)) >= 90


@pytest.mark.slow
def test_each_mixture_parameter_is_inside_in_90_of_100_seeds() -> None:
    hits = [mixture_hits(seed) for seed in range(100)]
    for name in MIXTURE:
        assert sum(h[name] for h in hits) >= 90, name


def test_two_components_win_where_there_are_two() -> None:
    rng = np.random.default_rng(0)
    values = np.rint(
        np.exp(np.where(rng.random(3000) < 0.5, rng.normal(3, 0.4, 3000), rng.normal(6, 0.4, 3000)))
    )
    laws = {law.family: law for law in length_laws(values)}
    assert laws["lognormal-mixture-2"].bic < laws["lognormal-mixture-1"].bic < laws["zeta"].bic
    assert laws["lognormal-mixture-2"].ks < 0.03


def test_outputs_that_do_not_rise_with_the_input_are_kept() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.uniform(0, 4000, 20_000)
    level = np.array([100.0, 110.0, 400.0, 90.0])[(inputs // 1000).astype(int)]
    outputs = level * rng.uniform(0.8, 1.2, inputs.size)
    drawn = Sampler(table(inputs, outputs)).draw(inputs, inputs.size, rng)
    for quarter in range(4):
        inside = inputs // 1000 == quarter
        assert np.median(drawn[inside]) == pytest.approx(np.median(outputs[inside]), rel=0.05)


def test_a_table_keeps_extremes_and_common_values() -> None:
    values = np.r_[np.full(500, 7.0), np.arange(500) + 10.0, 125_591.0]
    drawn = np.rint(Sampler(quantile_table(values)).draw(None, 100_000, np.random.default_rng(0)))
    assert (drawn == 7).mean() == pytest.approx(0.5, abs=0.02)
    assert drawn.max() <= 125_591


def test_failures_follow_the_load() -> None:
    rng = np.random.default_rng(0)
    calm, busy = np.sort(rng.uniform(0, 6000, 1000)), np.sort(rng.uniform(6000, 7200, 4000))
    times = np.r_[calm, busy]
    failed = rng.random(5000) < np.where(np.arange(5000) < 1000, 0.01, 0.2)
    outcomes = fit_outcomes(times, failed, np.zeros(5000, bool))
    shares = failure_shares(outcomes, np.array([5.0, 250.0]), outcomes.mean_load)
    assert shares[0] < 0.05
    assert shares[1] > 0.12
    for row in outcomes.failures:
        assert row.interval[0] <= row.share <= row.interval[1]


def test_wilson() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(5, 100)
    assert (round(low, 4), round(high, 4)) == (0.0215, 0.1118)


def test_no_lengths_are_named() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        fit_zeta(np.zeros(5))
    with pytest.raises(ValueError, match="at least 20 lengths"):
        fit_mixture(np.ones(5), 2)
    assert length_laws(np.ones(3)) == ()
