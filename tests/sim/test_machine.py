from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from braid.core.errors import InvalidParameterError
from braid.policy.calibration import cost_to_data
from braid.sim.machine import MachineError, load_machine
from braid.sim.platform import measured_platform, roofline_platform

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


def test_a_measured_machine_is_a_platform(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(data(model="HuggingFaceTB/SmolLM2-135M-Instruct")))
    platform = measured_platform(path, None)
    assert (platform.kv_tokens, platform.context) == (CONFIG.num_blocks * CONFIG.block_size, 1024)
    assert (platform.max_num_seqs, platform.max_num_batched_tokens) == (16, 256)
    # float32: twice the bytes of bfloat16.
    assert platform.kv_bytes_per_token == 2 * 23_040
    assert platform.tiers(16, 2e9).disk == pytest.approx(16 * 46_080 / 2e9)
    with pytest.raises(InvalidParameterError, match=r"not with 'llama-3.1-8b'"):
        measured_platform(path, "llama-3.1-8b")
    assert measured_platform(path, "smollm2") == platform


def test_a_measured_model_of_unknown_size_has_no_tiers(tmp_path: Path) -> None:
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(data()))
    with pytest.raises(InvalidParameterError, match="size of a token's KV is not known"):
        measured_platform(path, None).tiers(16, 2e9)


def test_a_gpu_is_a_platform() -> None:
    platform = roofline_platform("h100", "llama-3.1-8b", "bfloat16")
    assert platform.tiers(256, 2e9).host == pytest.approx(256 * 131_072 / (64e9 * 0.8))
    assert "never checked" in platform.words
    with pytest.raises(InvalidParameterError, match="must be above 0, got -1"):
        platform.tiers(256, -1.0)
