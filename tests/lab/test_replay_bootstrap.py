from __future__ import annotations

import numpy as np
import pytest

from braid.core.metrics import percentile
from braid.lab.versus.bootstrap import (
    BINS,
    Drawn,
    correlation_length,
    cut,
    interval,
    noise,
    point,
    quotient,
    statistics,
    together,
    weights,
)


def bursty(rng: np.random.Generator, num: int, memory: float = 0.9) -> np.ndarray:
    """A level that stays for a while: neighbours share their burst."""
    steps = rng.normal(0, np.sqrt(1 - memory**2), num)
    level = np.zeros(num)
    for number in range(1, num):
        level[number] = memory * level[number - 1] + steps[number]
    return level


def test_the_interval_of_a_known_ratio_holds_it() -> None:
    """Pairs of 600 requests in bursts that both runs meet; B is 0.7 of A. Inside in at least 90 of 100 seeds."""
    inside = dict.fromkeys(("p50", "p90", "p99", "mean"), 0)
    for seed in range(100):
        rng = np.random.default_rng(seed)
        level = 0.5 * bursty(rng, 600)
        a = np.exp(level + rng.normal(0, 0.4, 600))
        b = 0.7 * np.exp(level + rng.normal(0, 0.4, 600))
        found = cut(600, [np.log(a), np.log(b)])
        blocks = np.arange(600) // found.size
        drawn = weights([found.num], rng, 250)
        sides = [statistics(values, blocks, drawn) for values in (a, b)]
        for name in inside:
            one, other = (side[name] for side in sides)
            change = Drawn(np.log(other.value / one.value), np.log(other.draws / one.draws))
            bounds = interval(change, noise(change, found.num, []))
            assert bounds is not None
            inside[name] += bounds.low <= np.log(0.7) <= bounds.high
    assert min(inside.values()) >= 90, inside


def test_pairs_of_runs_that_differ_widen_the_interval() -> None:
    """Each of three pairs has a luck of its own that no draw of its requests knows."""
    inside = narrow = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        values = [rng.normal(1.0 + rng.normal(0, 0.2), 1.0, 200) for _ in range(3)]
        drawn = weights([40] * 3, rng, 100)
        found = statistics(np.concatenate(values), np.arange(600) // 5, drawn)["mean"]
        with_pairs = interval(found, noise(found, 120, [point(one, "mean") for one in values]))
        without = interval(found, noise(found, 120, []))
        assert with_pairs is not None
        assert without is not None
        inside += with_pairs.low <= 1.0 <= with_pairs.high
        narrow += without.low <= 1.0 <= without.high
    assert inside >= 88
    assert narrow < 75


def test_statistics_are_those_of_the_core() -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(0, 1, 700)
    drawn = weights([70], rng, 20)
    found = statistics(values, np.arange(700) // 10, drawn)
    for name, q in (("p50", 50), ("p90", 90), ("p99", 99)):
        assert found[name].value == pytest.approx(percentile(values, q))
        for number in (0, 7):
            counts = drawn[number].astype(int).repeat(10)
            assert found[name].draws[number] == pytest.approx(percentile(values.repeat(counts), q))
    assert found["mean"].draws[3] == pytest.approx(np.average(values, weights=drawn[3].repeat(10)))
    assert list(statistics(values[:100], np.arange(100) % 70, drawn)) == ["mean", "p50", "p90"]
    assert statistics(values[:0], np.arange(0), drawn) == {}


def test_many_values_are_binned_finely() -> None:
    rng = np.random.default_rng(0)
    values = rng.lognormal(0, 1, 20 * BINS)
    blocks = np.arange(values.size) % 50
    drawn = weights([50], rng, 3)
    found = statistics(values, blocks, drawn)
    for name, q in (("p50", 50), ("p99", 99)):
        drawn_values = values.repeat(drawn[0].astype(int)[blocks])
        assert found[name].draws[0] == pytest.approx(np.percentile(drawn_values, q), rel=2e-3)


def test_blocks_are_as_long_as_bursts() -> None:
    rng = np.random.default_rng(0)
    quiet = rng.normal(0, 1, 4000)
    assert correlation_length(quiet) <= 2
    assert cut(4000, [quiet]) == (4000, 16, 250, False)
    long = bursty(rng, 4000, 0.97)
    assert 40 <= correlation_length(long) <= 200
    assert cut(4000, [quiet, long]).size >= 80
    drift = np.linspace(0, 1, 400) + 0.01 * rng.normal(0, 1, 400)
    assert cut(400, [drift]) == (400, 20, 20, True)
    assert cut(12, [drift[:12]]) == (12, 1, 12, False)
    assert correlation_length(np.ones(100)) == 0
    assert correlation_length(np.full(100, np.nan)) == 0


def test_a_quotient_of_sums_and_what_cannot_be_said() -> None:
    drawn = weights([4], np.random.default_rng(0), 10)
    found = quotient(np.array([1.0, 0, 0, 1]), np.full(4, 5.0), drawn)
    assert found is not None
    assert found.value == pytest.approx(0.1)
    assert found.draws == pytest.approx((drawn[:, 0] + drawn[:, 3]) / 20)
    assert quotient(np.zeros(4), np.zeros(4), drawn) is None
    empty = Drawn(1.0, np.full(10, np.nan))
    assert interval(empty, noise(empty, 12, [])) is None


def test_many_comparisons_widen() -> None:
    rng = np.random.default_rng(0)
    rows = [Drawn(0.0, rng.normal(0, 1, 2000)) for _ in range(20)]
    assert 1.4 < together(rows) < 1.75
    assert together(rows[:1]) == pytest.approx(1.0, abs=0.05)
    assert together([rows[0]] * 20) == pytest.approx(together(rows[:1]))
    assert together([Drawn(1.0, np.ones(5))]) == 1.0
