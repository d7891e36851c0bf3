"""Steps out of recordings and out of nothing, and predictions of them."""

from __future__ import annotations

from itertools import pairwise

import pytest

from braid.core.errors import InvalidParameterError
from braid.core.experts import ExpertShape
from braid.policy.experts.policy import Routed
from braid.sim.experts.foretelling import LESS_PER_LAYER, PRECISION, Oracle
from braid.sim.experts.machines import costs_of
from braid.sim.experts.routes import Route, Routes
from braid.sim.experts.steps import recorded
from braid.sim.experts.study import BASELINE, recorded_load, simulate, synthetic_load
from braid.sim.experts.synthetic import Habits, Synthetic
from braid.sim.sizes import model_named

SHAPE = ExpertShape(layers=2, per_layer=8, top_k=2)


def test_a_recorded_prompt_is_one_step_and_every_later_token_another() -> None:
    routes = (
        Route(0, 0, 0, True, (0, 1), (0.75, 0.25)),
        Route(0, 1, 0, True, (1, 2), (0.5, 0.5)),
        Route(0, 1, 1, True, (8, 9), (0.5, 0.5)),  # the last layer computed only the last position
        Route(0, 2, 0, False, (3, 4), (0.5, 0.5)),
        Route(0, 2, 1, False, (9, 8), (0.5, 0.5)),
        Route(1, 0, 0, True, (5, 6), ()),
    )
    first, second, third = recorded(Routes(shape=SHAPE, routes=routes))
    assert (first.rows, first.is_prefill) == (2, True)
    assert first.layers[0].loads == {0: 1, 1: 2, 2: 1}
    assert first.layers[0].scores == {0: 0.375, 1: 0.375, 2: 0.25}
    assert first.layers[1].loads == {8: 1, 9: 1}
    assert (second.rows, second.is_prefill, list(second.layers[1].loads)) == (1, False, [9, 8])
    assert (third.is_prefill, dict(third.layers[0].scores)) == (True, {})


def test_synthetic_routing_is_skewed_and_alike_from_token_to_token() -> None:
    """Both as much as it is told to be."""
    shape = ExpertShape(layers=1, per_layer=32, top_k=4)

    def repeated(habits: Habits) -> float:
        sets = [set(step.layers[0].loads) for step in Synthetic(shape, habits, seed=3).decodes(150)]
        return sum(len(a & b) for a, b in pairwise(sets)) / (4 * len(sets))

    none = repeated(Habits(popularity=0, text=0))
    assert none == pytest.approx(4 / 32, abs=0.04)
    assert repeated(Habits(popularity=0, text=0.8, persistence=0.98)) > 0.4
    assert repeated(Habits(popularity=0.8, text=0)) > 0.4
    with pytest.raises(ValueError, match="parts of one"):
        Habits(popularity=0.8, text=0.3)


def test_a_synthetic_prompt_has_all_of_its_rows_and_scores_of_more_than_it_uses() -> None:
    text = Synthetic(SHAPE, Habits(popularity=0.1, text=0.2))
    step = text.prompt(20)
    assert (step.rows, step.is_prefill) == (20, True)
    for routed in step.layers:
        assert sum(routed.loads.values()) == 40
        assert set(routed.loads) <= set(routed.scores)
        assert all(SHAPE.layer_of(expert) == routed.layer for expert in routed.scores)
        assert 0 < sum(routed.scores.values()) <= 1
    (decode,) = text.decodes(1)
    assert [len(routed.scores) for routed in decode.layers] == [4, 4]
    assert Synthetic(SHAPE, Habits(popularity=0.1, text=0.2)).prompt(20) == step


@pytest.mark.parametrize("distance", [1, 3])
def test_predictions_are_right_as_often_as_was_published(distance: int) -> None:
    shape = ExpertShape(layers=4, per_layer=64, top_k=8)
    oracle = Oracle(shape)
    right = total = 0
    routed = Routed(2, dict.fromkeys(range(130, 138), 1))
    for _ in range(300):
        found = oracle.foretell(routed, distance)
        assert sum(found.values()) == 8
        assert all(shape.layer_of(expert) == 2 for expert in found)
        right += len(found.keys() & routed.loads.keys())
        total += 8
    assert right / total == pytest.approx(PRECISION - LESS_PER_LAYER * (distance - 1), abs=0.03)
    heavy = Routed(1, {64: 100, 65: 3}, {}, is_prefill=True)
    assert sum(oracle.foretell(heavy, 1).values()) == 103


def test_another_models_recording_is_refused() -> None:
    routes = Routes(shape=SHAPE, routes=(Route(0, 0, 0, False, (0, 1), ()),))
    with pytest.raises(
        InvalidParameterError, match="has 2 layers of 8 experts, but mixtral-8x7b has 32 of 8"
    ):
        recorded_load(model_named("mixtral-8x7b"), routes, "made.csv")


def test_a_fraction_that_cannot_be_is_refused() -> None:
    model = model_named("mixtral-8x7b")
    load = synthetic_load(model, prompt=0, decodes=1)
    costs = costs_of("a6000-xeon10", model, "int4")
    for fraction in (0.0, 1.5, 0.0001):
        with pytest.raises(InvalidParameterError, match="fraction"):
            simulate(load, costs, fraction, BASELINE)
