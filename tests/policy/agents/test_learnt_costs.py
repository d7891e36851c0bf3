"""Least squares over steps: exact laws are found, outliers and slow changes survived, nothing negative."""

from __future__ import annotations

import random
from math import inf, isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.policy.agents.costs import CostPrior, LearntCosts, attended_pairs
from braid.policy.agents.least_squares import LeastSquares


def step(rng: random.Random) -> tuple[int, float, int]:
    num_tokens, start = rng.choice([0, 64, 200, 512]), rng.choice([0, 1000, 20_000])
    return num_tokens, attended_pairs(num_tokens, start), rng.randint(0, 16)


def true_s(num_tokens: int, attended: float, num_decodes: int) -> float:
    return 0.02 + 2e-3 * num_tokens + 5e-8 * attended + 1e-3 * num_decodes


def taught(num: int, factor: float = 1.0, costs: LearntCosts | None = None) -> LearntCosts:
    rng = random.Random(0)
    costs = costs or LearntCosts()
    for _ in range(num):
        seen = step(rng)
        costs.observe_step(*seen, seconds=true_s(*seen) * factor * rng.uniform(0.95, 1.05))
    return costs


def test_pairs() -> None:
    assert attended_pairs(3, 0) == 6
    assert attended_pairs(2, 10) == 23


def test_the_prior_holds_until_there_are_samples() -> None:
    costs = LearntCosts(CostPrior(step_s=1.0, token_s=0.5, pair_s=0.25), has_lower=True)
    assert costs.prefill_s(2) == 1.0 + 1.0 + 0.25 * 3
    assert costs.prefill_s(0) == 0.0
    assert costs.reload_s(0) == 0.0


def test_the_law_of_steps_is_found() -> None:
    costs = taught(600)
    for count, start in ((100, 0), (512, 0), (500, 20_000), (4000, 0)):
        expected = true_s(count, attended_pairs(count, start), 0)
        assert costs.prefill_s(count, start) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("factor", [0.01, 1.0, 20.0, 1000.0])
def test_the_first_steps_tell_how_fast_the_machine_is(factor: float) -> None:
    """The prior is of a large GPU; this is one with other proportions, and so many times as slow."""
    expected = factor * true_s(1000, attended_pairs(1000, 0), 0)
    assert taught(1, factor).prefill_s(1000) == pytest.approx(expected, rel=0.5)
    assert taught(8, factor).prefill_s(1000) == pytest.approx(expected, rel=0.25)


def test_outliers_hardly_count() -> None:
    costs = taught(600)
    before = costs.prefill_s(512)
    for _ in range(10):
        costs.observe_step(512, attended_pairs(512, 0), 0, 300.0)
    assert costs.prefill_s(512) == pytest.approx(before, rel=0.25)


def test_a_machine_that_has_become_slower_is_believed() -> None:
    costs = taught(600)
    taught(3000, 3.0, costs)
    expected = 3 * true_s(512, attended_pairs(512, 0), 0)
    assert costs.prefill_s(512) == pytest.approx(expected, rel=0.35)


def test_exact_samples_do_not_freeze_it() -> None:
    fit = LeastSquares((1.0, 1.0))
    for number in range(200):
        fit.add((1.0, number % 7), 2.0 + 3.0 * (number % 7))
    assert fit.coefficients == pytest.approx((2.0, 3.0), rel=0.1)


def test_without_a_tier_copying_never_ends() -> None:
    assert LearntCosts().reload_s(1) == inf
    costs = LearntCosts(has_lower=True)
    for number in range(1, 300):
        costs.observe_reload(number % 50 + 1, 0.01 + 0.002 * (number % 50 + 1))
    assert costs.reload_s(100) == pytest.approx(0.21, rel=0.1)


@given(
    st.lists(
        st.tuples(st.integers(0, 4096), st.integers(0, 10**5), st.integers(0, 64), st.floats(0, 1e4)),
        max_size=60,
    ),
    st.integers(1, 5000),
    st.integers(0, 10**5),
)
def test_never_negative_and_rising(
    seen: list[tuple[int, int, int, float]], num_tokens: int, start: int
) -> None:
    costs = LearntCosts(has_lower=True)
    for tokens, before, decodes, seconds in seen:
        costs.observe_step(tokens, attended_pairs(tokens, before), decodes, seconds)
        costs.observe_reload(decodes, seconds)
    value = costs.prefill_s(num_tokens, start)
    assert isfinite(value)
    assert 0 <= value <= costs.prefill_s(num_tokens + 1, start) * (1 + 1e-12)
    assert value <= costs.prefill_s(num_tokens, start + 1) * (1 + 1e-12)
    assert 0 <= costs.reload_s(3) <= costs.reload_s(4) * (1 + 1e-12)
