"""The real runner takes the golden schedule step for step, as the simulator does."""

from __future__ import annotations

from pathlib import Path

import torch

from braid.checkpoint.open import open_checkpoint
from braid.checkpoint.resolve import resolve
from braid.checkpoint.weights import iter_weights
from braid.models.loading import load_weights
from braid.models.registry import build_model
from braid.runner.kv_store import KVStore
from braid.runner.runner import Runner
from braid.sim.scenario import drive, load_plans, load_scenario

GOLDEN = Path(__file__).parent.parent / "sched" / "golden"


def test_the_runner_gives_the_golden_schedule(tiny_llama: Path) -> None:
    scenario = load_scenario(GOLDEN / "scenario.json")
    checkpoint = open_checkpoint(resolve(str(tiny_llama)))
    cpu = torch.device("cpu")
    model = build_model(checkpoint.config, dtype=torch.float32, device=cpu)
    load_weights(model, iter_weights(checkpoint, torch.float32))
    config = scenario.config
    kv = KVStore(
        model.kv_shapes,
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        dtype=torch.float32,
        device=cpu,
    )
    runner = Runner(model, kv, device=cpu)
    try:
        run = drive(scenario, runner)
    finally:
        runner.close()
    assert run.plans == load_plans(GOLDEN / "expected.json")
    assert all(delta.error is None for delta in run.deltas)
