from __future__ import annotations

import pytest

from braid.core.step import StepPlan, Work
from braid.policy.phases.curves import CORES, SMS
from braid.sim.executor import FixedTime, SimExecutor
from braid.sim.lanes import LaneTime

LANES = LaneTime(num_units=2, curves=CORES)
PREFILL, DECODE = 1.85, 1.5
"""Seconds on one core per second on both."""


def plan(lane: str, units: int, step_id: int = 0) -> StepPlan:
    return StepPlan(step_id, lane, (Work("a", [1, 2], 0, [0], None),), units=units)


def ends(executor: SimExecutor) -> list[tuple[str, float, float]]:
    found = []
    while executor.has_events:
        found += [(result.lane, executor.now(), result.duration) for result in executor.wait(None)]
    return found


def test_a_lane_alone_takes_what_its_units_make_of_a_step() -> None:
    for lane, units, seconds in (
        ("mixed", 2, 1.0),
        ("decode", 2, 1.0),
        ("decode", 1, DECODE),
        ("prefill", 1, PREFILL),
    ):
        executor = SimExecutor(FixedTime(1.0), lanes=LANES)
        executor.submit(plan(lane, units))
        ((found, *times),) = ends(executor)
        assert found == lane
        assert times == pytest.approx([seconds, seconds], rel=0.01)


def test_two_lanes_overlap_and_disturb_each_other_a_little() -> None:
    executor = SimExecutor(FixedTime(1.0), lanes=LANES)
    executor.submit(plan("prefill", 1))
    executor.submit(plan("decode", 1, 1))
    (first, decode, _), (second, prefill, _) = ends(executor)
    assert (first, second) == ("decode", "prefill")
    assert decode == pytest.approx(DECODE * CORES.decode_shared, rel=0.01)
    left = PREFILL - decode / CORES.prefill_shared
    assert prefill == pytest.approx(decode + left, rel=0.01), "undisturbed once the other has ended"
    assert prefill < PREFILL * CORES.prefill_shared


def test_company_that_comes_in_the_middle_slows_only_the_rest() -> None:
    executor = SimExecutor(FixedTime(1.0), lanes=LANES)
    executor.submit(plan("prefill", 2))
    assert executor.wait(0.5) == []
    executor.submit(plan("decode", 2, 1))
    both = {lane: (now, seconds) for lane, now, seconds in ends(executor)}
    slow = PREFILL * CORES.prefill_shared
    assert both["prefill"][0] == pytest.approx(0.5 + 0.5 * slow, rel=0.01), "what both were given is halved"
    assert both["prefill"][0] == pytest.approx(both["prefill"][1]), "it began at 0"
    done = (both["prefill"][0] - 0.5) / (DECODE * CORES.decode_shared)
    assert both["decode"][0] == pytest.approx(both["prefill"][0] + (1 - done), rel=0.01)


def test_units_that_a_step_is_given_later_speed_up_only_the_rest() -> None:
    executor = SimExecutor(FixedTime(1.0), lanes=LANES)
    executor.submit(plan("prefill", 1))
    assert executor.wait(PREFILL / 2) == []
    executor.reshare("prefill", 2)
    ((_, now, seconds),) = ends(executor)
    assert now == seconds == pytest.approx(PREFILL / 2 + 0.5, rel=0.01)


def test_what_both_were_given_goes_to_prompts_as_far_as_the_machine_says() -> None:
    lanes = LaneTime(num_units=16, curves=SMS, prefill_part=0.75)
    alone = lanes.slowness("prefill", {"prefill": 12})
    assert lanes.slowness("prefill", {"prefill": 16, "decode": 16}) == pytest.approx(
        alone * SMS.prefill_shared
    )
    assert lanes.slowness("decode", {"prefill": 16, "decode": 16}) == pytest.approx(
        lanes.slowness("decode", {"prefill": 12, "decode": 4})
    )
    assert lanes.slowness("decode", {"decode": 16}) == 1.0


def test_without_lanes_there_is_one() -> None:
    assert SimExecutor(FixedTime()).lanes == ("mixed",)
    assert SimExecutor(FixedTime(), lanes=LANES).lanes == ("mixed", "prefill", "decode")
