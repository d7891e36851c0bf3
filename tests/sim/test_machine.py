from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from braid.policy.calibration import cost_to_data
from braid.sim.machine import MachineError, load_machine

from .test_run import CONFIG, COST


def data(**changed: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "machine": {},
        "model": "tiny",
        "dtype": "float32",
        "scheduler": asdict(CONFIG),
        "held_out_error": {"decode": 0.05},
        "cost": cost_to_data(COST),
    } | changed


def test_what_was_measured_is_read(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(data()))
    machine = load_machine(path)
    assert (machine.cost, machine.config, machine.model, machine.dtype) == (COST, CONFIG, "tiny", "float32")
    assert machine.words == "made up for tests (median error of step times: decode 5.0%)"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[]", "not written by braid calibrate"),
        ("{", "holds no machine"),
        (json.dumps(data(version=7)), "not written by braid calibrate"),
        (json.dumps(data(cost={})), "holds no machine"),
        (json.dumps(data(scheduler={"num_blocks": 4})), "holds no machine"),
        (json.dumps(data(held_out_error=3)), "holds no machine"),
    ],
)
def test_what_is_no_machine_is_refused(text: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text(text)
    with pytest.raises(MachineError, match=why):
        load_machine(path)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="cannot read"):
        load_machine(tmp_path / "none.json")
