"""The committed golden schedule.

``dump_plans(drive(scenario, executor).plans)`` writes it anew; only for a change of policy that is meant.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from braid.core.request import FinishReason
from braid.sim.executor import FixedTime, SimExecutor
from braid.sim.scenario import Scenario, drive, dump_plans, load_plans, load_scenario

GOLDEN = Path(__file__).parent.parent / "sched" / "golden"


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario(GOLDEN / "scenario.json")


def test_the_simulator_gives_the_golden_schedule(scenario) -> None:
    run = drive(scenario, SimExecutor(FixedTime(1.0)))
    assert run.plans == load_plans(GOLDEN / "expected.json")
    assert dump_plans(run.plans) == (GOLDEN / "expected.json").read_text()


def test_the_schedule_depends_neither_on_time_nor_on_tokens(scenario) -> None:
    run = drive(scenario, SimExecutor(FixedTime(0.003), token=lambda spec: 255 - len(spec.token_ids) % 2))
    assert run.plans == load_plans(GOLDEN / "expected.json")


def test_the_scenario_covers_what_it_is_for(scenario) -> None:
    run = drive(scenario, SimExecutor(FixedTime(1.0)))
    stats = run.scheduler.stats()
    assert stats.num_preemptions > 0
    assert stats.prefix_hits > 0
    assert stats.num_free_blocks == stats.num_blocks
    added = {event.add["request_id"]: event.add for event in scenario.events if event.add}
    aborted = {event.abort for event in scenario.events if event.abort}
    assert aborted
    for name, add in added.items():
        count = sum(len(delta.token_ids) for delta in run.deltas if delta.request_id == name)
        assert (count < add["max_tokens"]) if name in aborted else (count == add["max_tokens"])
    ended = [delta.request_id for delta in run.deltas if delta.finish_reason is FinishReason.LENGTH]
    assert sorted(ended) == sorted(set(added) - aborted)
    assert any(len(plan.works) > 1 and plan.works[-1][2] > 1 and plan.works[0][2] == 1 for plan in run.plans)
