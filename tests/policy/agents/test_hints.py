"""What clients say of their return: a law of it, and how far it is believed."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.core.program import RetainIntent
from braid.policy.agents.gap_model import NEVER, PRIOR, Gaps, bin_of
from braid.policy.agents.hints import MOST_ODDS, HintTrust, hinted_shares


def shares(median: float | None = None, p90: float | None = None) -> list[float]:
    found = hinted_shares(RetainIntent(return_s=median, return_p90_s=p90))
    assert found is not None
    return found


def test_the_law_has_the_named_quantiles() -> None:
    law = Gaps(shares(10.0, 100.0))
    assert law.returns_within(10.0, 0.0) == pytest.approx(0.5, abs=0.03)
    assert law.returns_within(100.0, 0.0) == pytest.approx(0.9, abs=0.02)
    assert Gaps(shares(None, 40.0)).returns_within(10.0, 0.0) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    "intent",
    [
        None,
        RetainIntent(),
        RetainIntent(return_s=-1.0),
        RetainIntent(return_s=0.0),
        RetainIntent(return_s=inf),
        RetainIntent(return_p90_s=float("nan")),
    ],
)
def test_useless_hints_are_none(intent: RetainIntent | None) -> None:
    assert hinted_shares(intent) is None


@given(st.floats(1e-6, 1e9), st.floats(1e-6, 1e9))
def test_shares_add_up(median: float, p90: float) -> None:
    for found in (shares(median), shares(median, p90), shares(None, p90)):
        assert sum(found) == pytest.approx(1.0)
        assert min(found) >= 0


def test_true_hints_gain_weight_and_wrong_ones_lose_it() -> None:
    trust, learnt = HintTrust(), list(PRIOR)
    assert trust.weight("a") == 0.5
    for _ in range(10):
        trust.learn("a", 10.0, shares(10.0), learnt)
        trust.learn("b", 5000.0, shares(0.1), learnt)
    assert trust.weight("a") > 0.9
    assert trust.weight("b") < 0.1
    assert trust.weight("c") == 0.5
    assert trust.weight("b") >= 1 / (1 + MOST_ODDS)
    for _ in range(10):
        trust.learn("b", 10.0, shares(10.0), learnt)
    assert trust.weight("b") > 0.8


def test_blends_are_laws_and_leave_the_chance_of_never_alone() -> None:
    learnt = [share / 2 for share in PRIOR]
    learnt[NEVER] += 0.5
    blend = HintTrust().blend("a", shares(10.0), learnt)
    assert sum(blend) == pytest.approx(1.0)
    assert blend[NEVER] == learnt[NEVER]
    assert blend[bin_of(10.0)] > learnt[bin_of(10.0)]
