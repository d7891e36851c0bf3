"""Costs of named machines: by hand from data sheets, and where one number was fitted, that it fits."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path

import pytest

from braid.core.errors import InvalidParameterError
from braid.sim.experts.machines import MACHINES, costs_of
from braid.sim.sizes import model_named

QWEN2 = model_named("qwen2-57b-a14b")


def test_costs_by_hand() -> None:
    costs = costs_of("a6000-xeon10", QWEN2, "int4")
    weights = 3 * 3584 * 2560
    size = weights * 0.5 * (1 + 4 / 128)
    assert costs.expert_bytes == size
    assert costs.times.link_s == pytest.approx(size / (32e9 * 0.8) + 10e-6)
    assert costs.times.fast_s == pytest.approx(size / (768e9 * 0.8) + 20e-6)
    assert costs.times.slow_s == pytest.approx(size / (6 * 8 * 2666e6 * 0.6))
    assert costs.times.slow_row_s == pytest.approx(2 * weights / (10 * 2.2e9 * 128 * 0.25))
    assert "nothing measured" in costs.words


def test_the_fitted_machine_takes_as_long_as_was_published() -> None:
    """A placement by frequency holds 36.5 % of what synthetic routing asks for: ``benchmarks/expert_timeline.py``."""
    costs = costs_of("a6000-xeon10-fitted", QWEN2, "int4")
    missing = 8 * (1 - 0.365)
    times = costs.times
    below_s = times.slow_first_s + missing * (times.slow_s + times.slow_row_s)
    assert 28 * (costs.dense_s + costs.dense_row_s + below_s) == pytest.approx(0.21, rel=0.03)
    assert "fitted" in costs.words


def test_times_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    path.write_text(json.dumps({"link_s": 0.002, "fast_s": 0.001, "slow_s": None, "dense_s": 0.003}))
    costs = costs_of(str(path), QWEN2, "int8")
    assert costs.times.slow_s == inf
    assert (costs.times.link_busy_s, costs.times.fast_row_s, costs.dense_s) == (0.002, 0.0, 0.003)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "holds no times of experts"),
        ("[]", "holds no times"),
        ('{"link_s": 0, "fast_s": 1, "slow_s": 1}', "above 0"),
    ],
)
def test_a_file_without_times_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "times.json"
    path.write_text(text)
    with pytest.raises(InvalidParameterError, match=message):
        costs_of(str(path), QWEN2, "int4")


def test_names_that_are_not_known_are_refused() -> None:
    with pytest.raises(InvalidParameterError, match=f"choices: {', '.join(MACHINES)}"):
        costs_of("abacus", QWEN2, "int4")
    with pytest.raises(InvalidParameterError, match="has no experts"):
        costs_of("a6000-xeon10", model_named("llama-3.1-8b"), "int4")
    with pytest.raises(InvalidParameterError, match="got 'int3'"):
        costs_of("a6000-xeon10", QWEN2, "int3")
