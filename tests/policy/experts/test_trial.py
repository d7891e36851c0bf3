"""Trials: what makes steps shorter stays on, what makes them longer goes off, and both are looked at again."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from braid.core.errors import InvalidParameterError
from braid.policy.experts.trial import CHECK_AFTER, PAIRS, RETRY_AFTER, WINDOW, Trial

TRIAL = 2 * PAIRS * WINDOW
"""Steps."""


def play(trial: Trial, steps: int, seconds: Callable[[bool, int], float], rows: int = 1) -> list[bool]:
    """Whether it was on in each step."""
    was_on = []
    for step in range(steps):
        was_on.append(trial.is_on)
        trial.step_took(seconds(trial.is_on, step), rows)
    return was_on


@pytest.mark.parametrize(("ratio", "state"), [(0.9, "on"), (1.1, "off"), (1.0, "off")])
def test_a_trial_ends_with_what_it_showed(ratio: float, state: str) -> None:
    rng = random.Random(0)
    trial = Trial()
    was_on = play(trial, TRIAL, lambda on, _: (ratio if on else 1.0) * rng.uniform(0.99, 1.01))
    assert sum(was_on) == TRIAL // 2
    assert (trial.state, trial.is_on) == (state, state == "on")
    assert "of the time without it" in trial.why


def test_drift_and_other_batches_are_not_taken_for_an_effect() -> None:
    """Steps become slower, and half of them have eight rows; what is tried makes them a tenth shorter."""
    rng = random.Random(1)
    trial = Trial()
    for step in range(TRIAL):
        rows = rng.choice((1, 8))
        trial.step_took((0.9 if trial.is_on else 1.0) * rows * (1 + step / TRIAL), rows)
    assert trial.state == "on"


def test_a_loss_while_it_is_on_begins_a_new_trial() -> None:
    trial = Trial()
    play(trial, TRIAL, lambda on, _: 0.8 if on else 1.0)
    assert trial.state == "on"
    play(trial, CHECK_AFTER + 2 * WINDOW, lambda on, _: 1.3 if on else 1.0)
    assert trial.state == "trial"
    play(trial, TRIAL, lambda on, _: 1.3 if on else 1.0)
    assert (trial.state, trial.is_on) == ("off", False)


def test_while_it_is_off_it_is_tried_again_ever_more_seldom() -> None:
    trial = Trial()
    was_on = play(trial, 2 * TRIAL + 3 * RETRY_AFTER, lambda on, _: 1.3 if on else 1.0)
    assert not any(was_on[TRIAL : TRIAL + RETRY_AFTER])
    assert any(was_on[TRIAL + RETRY_AFTER : 2 * TRIAL + RETRY_AFTER])
    assert not any(was_on[2 * TRIAL + RETRY_AFTER :])


def test_what_is_asked_for_holds() -> None:
    for mode in ("on", "off"):
        trial = Trial(mode)
        play(trial, 3 * TRIAL, lambda on, _: 2.0 if on else 1.0)
        assert (trial.state, trial.is_on) == (mode, mode == "on")
    with pytest.raises(InvalidParameterError, match="auto, on, off, got 'maybe'"):
        Trial("maybe")
