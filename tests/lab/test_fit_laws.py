from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from braid.lab.fit.laws import FAMILIES, UnitLaw, distribution, draw_unit, fit_law, ks_law, tabulate

SHAPES = {"gamma": 0.5, "weibull": 0.7, "lognormal": 1.2}
SHORT = 12
LONG = 100


def inside(low_high: tuple[float, float], true: float) -> bool:
    return low_high[0] <= true <= low_high[1]


def covered(fit: Callable[[int], bool], seeds: int) -> int:
    return sum(fit(seed) for seed in range(seeds))


def recovers(family: str, quantum_s: float, num: int) -> Callable[[int], bool]:
    def fit(seed: int) -> bool:
        rng = np.random.default_rng([seed, 77])
        gaps = 2.5 * draw_unit(UnitLaw(family=family, shape=SHAPES[family]), num, rng)
        if quantum_s:
            times = np.floor((rng.random() * quantum_s + np.cumsum(gaps)) / quantum_s) * quantum_s
            gaps = np.diff(times)
        law = fit_law(gaps, family, quantum_s)
        return inside(law.shape_interval, SHAPES[family]) and inside(law.mean_interval, 2.5)

    return fit


# Both parameters at once lie inside their 95 % intervals in about 90 to 95 of 100 seeds.
@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("quantum_s", [0.0, 1.0, 3.0])
def test_true_parameters_lie_inside_their_intervals(family: str, quantum_s: float) -> None:
    assert covered(recovers(family, quantum_s, 1500), SHORT) >= SHORT - 3


@pytest.mark.slow
@pytest.mark.parametrize("family", SHAPES)
@pytest.mark.parametrize("quantum_s", [0.0, 1.0, 3.0])
def test_each_true_parameter_is_inside_in_90_of_100_seeds(family: str, quantum_s: float) -> None:
    shape = mean = 0
    for seed in range(LONG):
        rng = np.random.default_rng([seed, 78])
        gaps = 2.5 * draw_unit(UnitLaw(family=family, shape=SHAPES[family]), 2000, rng)
        if quantum_s:
            times = np.floor((rng.random() * quantum_s + np.cumsum(gaps)) / quantum_s) * quantum_s
            gaps = np.diff(times)
        law = fit_law(gaps, family, quantum_s)
        shape += inside(law.shape_interval, SHAPES[family])
        mean += inside(law.mean_interval, 2.5)
    assert shape >= 90
    assert mean >= 90


def test_a_density_on_a_coarse_clock_goes_wrong_where_the_ticks_likelihood_does_not() -> None:
    rng = np.random.default_rng(5)
    gaps = 0.3 * draw_unit(UnitLaw(family="gamma", shape=0.5), 20_000, rng)
    ticks = np.diff(np.floor(np.cumsum(gaps) / 3.0) * 3.0)
    right = fit_law(ticks, "gamma", 3.0)
    wrong = fit_law(ticks, "gamma")
    assert right.mean == pytest.approx(0.3, rel=0.05)
    assert not inside(wrong.shape_interval, 0.5)


@pytest.mark.parametrize("family", FAMILIES)
def test_unit_laws_have_mean_one_and_their_distribution(family: str) -> None:
    shape = SHAPES.get(family, 1.0)
    draws = draw_unit(UnitLaw(family=family, shape=shape), 200_000, np.random.default_rng(1))
    assert draws.mean() == pytest.approx(1.0, rel=0.02)
    law = fit_law(draws[:5000], family)
    assert ks_law(draws, law) < 0.02
    assert distribution(law, np.array([-1.0, 0.0, 1e9])).tolist() == pytest.approx([0, 0, 1])


def test_a_table_keeps_the_sample() -> None:
    sample = np.random.default_rng(0).pareto(3.0, 5000) + 0.1
    draws = draw_unit(tabulate(sample), 100_000, np.random.default_rng(1))
    scaled = sample / sample.mean()
    assert np.quantile(draws, [0.1, 0.5, 0.9]) == pytest.approx(
        np.quantile(scaled, [0.1, 0.5, 0.9]), rel=0.05
    )


@pytest.mark.parametrize(
    ("gaps", "family"), [([1.0, 2.0], "cauchy"), ([0.0, 0.0, 0.0], "gamma"), ([], "gamma")]
)
def test_bad_input_is_named(gaps: list[float], family: str) -> None:
    with pytest.raises(ValueError, match=r"family|at least two"):
        fit_law(np.array(gaps), family)
