from __future__ import annotations

import math

import numpy as np
import pytest

from braid.lab.synthetic.laws import Counts, counts, counts_of_memory, log_normal, memory_of
from braid.lab.table import TraceError
from braid.policy.agents.gaps import Memoryfulness


@pytest.mark.parametrize(("mean", "sd"), [(0.925, 3.55), (1.923, 2.133), (70_126, 19_732), (1.0, 6.0)])
def test_a_log_normal_law_has_the_wanted_moments_though_it_is_cut(mean: float, sd: float) -> None:
    law = log_normal(mean, sd)
    assert law.mean == pytest.approx(mean, rel=1e-3)
    assert law.sd == pytest.approx(sd, rel=2e-3)
    drawn = law.draw(200_000, np.random.default_rng(0))
    assert drawn.max() <= mean + 20 * sd
    assert drawn.mean() == pytest.approx(mean, rel=0.02)
    assert drawn.std() == pytest.approx(sd, rel=0.03)


def test_no_deviation_is_a_constant() -> None:
    assert log_normal(2.0, 0.0).draw(3, np.random.default_rng(0)).tolist() == pytest.approx([2.0, 2.0, 2.0])


@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (-1.0, 1.0), (1.0, -1.0), (math.nan, 1.0), (1.0, 50.0)])
def test_moments_that_no_law_has(mean: float, sd: float) -> None:
    with pytest.raises(TraceError, match="deviation"):
        log_normal(mean, sd)


@pytest.mark.parametrize(("mean", "sd"), [(10.9, 2.1), (6.3, 2.3), (1.5, 0.7), (20.0, 30.0)])
def test_counts_have_the_wanted_moments(mean: float, sd: float) -> None:
    law = counts(mean, sd)
    assert law.mean == pytest.approx(mean, rel=1e-3)
    assert law.sd == pytest.approx(sd, rel=2e-3)
    drawn = law.draw(50_000, np.random.default_rng(1))
    assert drawn.min() >= 1
    assert drawn.mean() == pytest.approx(mean, rel=0.02)
    assert drawn.std() == pytest.approx(sd, rel=0.03)


def test_counts_without_a_deviation_are_all_alike() -> None:
    assert set(counts(10.9, 0.0).draw(9, np.random.default_rng(0)).tolist()) == {11}


@pytest.mark.parametrize(("mean", "sd"), [(0.5, 1.0), (10.0, 0.1), (10.0, 40.0)])
def test_counts_that_cannot_be(mean: float, sd: float) -> None:
    with pytest.raises(TraceError, match="turn"):
        counts(mean, sd)


def by_hand(turns: list[int]) -> float:
    """Minus the correlation of turns done and turns left, one pair after another."""
    pairs = np.array([(k, n - k) for n in turns for k in range(1, n)])
    return float(-np.corrcoef(pairs.T)[0, 1])


@pytest.mark.parametrize("turns", [[3, 5], [2, 2, 9, 4], [1, 7, 7, 30]])
def test_memory_by_hand(turns: list[int]) -> None:
    assert memory_of(np.array(turns)) == pytest.approx(by_hand(turns))


def test_memory_is_what_the_policy_learns() -> None:
    turns = counts(10.9, 2.1).draw(200, np.random.default_rng(2))
    learner = Memoryfulness()
    for num in turns.tolist():
        learner.add(num)
    assert memory_of(turns) == pytest.approx(learner.value)


def test_memory_of_the_known_laws() -> None:
    assert memory_of(np.full(4, 11)) == 1.0
    geometric = Counts(0.1 * 0.9 ** np.arange(2000.0))
    assert geometric.eta == pytest.approx(0.0, abs=1e-6)
    assert memory_of(np.array([1, 1, 2])) == 0.0
    assert memory_of(np.array([], np.int64)) == 0.0


@pytest.mark.parametrize("eta", [-0.1, 0.0, 0.5, 0.8, 0.95, 1.0])
def test_turns_of_a_wanted_memory(eta: float) -> None:
    law = counts_of_memory(10.9, eta)
    assert law.eta == pytest.approx(eta, abs=2e-3)
    assert law.mean == pytest.approx(11.0 if eta == 1.0 else 10.9, rel=1e-3)
    assert memory_of(law.draw(20_000, np.random.default_rng(3))) == pytest.approx(eta, abs=0.05)


@pytest.mark.parametrize("eta", [-0.9, 0.999, 1.5, math.nan])
def test_a_memory_that_no_law_has_names_those_that_are(eta: float) -> None:
    with pytest.raises(TraceError, match=r"eta is 1 or -0\.14 \.\. 0\.98"):
        counts_of_memory(10.9, eta)
