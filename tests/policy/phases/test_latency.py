from __future__ import annotations

import random

import pytest

from braid.policy.phases.curves import CORES, SMS, Curves
from braid.policy.phases.latency import Latency, Load, Prompts
from braid.policy.phases.policy import StepSeen

UNITS = 4
FACTORS = {"prefill": {1: 3.6, 2: 1.9}, "decode": {1: 2.0, 2: 1.3}}


def truth(lane: str, units: int, load: Load, *, is_shared: bool, speed: float) -> float:
    """A machine that the prior knows nothing of."""
    dense = 4e-3 + 9e-4 * load.num_prefill + 2e-7 * load.num_pairs
    seconds = dense + 3e-3 * load.num_decodes + 1e-6 * load.num_context
    factor = FACTORS[lane].get(units, 1.0) if lane in FACTORS else 1.0
    return speed * seconds * factor * (1.15 if is_shared else 1.0)


def steps(count: int, speed: float, seed: int, *, shared: bool = True) -> list[StepSeen]:
    draw = random.Random(seed)
    seen = []
    for _ in range(count):
        lane = draw.choice(("mixed", "prefill", "decode"))
        units = UNITS if lane == "mixed" or not shared else 2
        is_shared = units < UNITS
        prefill = 0 if lane == "decode" else draw.choice((16, 64, 200))
        decodes = 0 if lane == "prefill" else draw.randint(1, 8)
        load = Load(prefill, prefill * (prefill + 900) / 2, decodes, decodes * 300)
        seconds = truth(lane, units, load, is_shared=is_shared, speed=speed)
        seen.append(StepSeen(lane, units, *load, seconds, is_shared))
    return seen


LOAD = {"prefill": Load(128, 70_000.0), "decode": Load(0, 0.0, 5, 1500), "mixed": Load(48, 30_000.0, 4, 1200)}


@pytest.mark.parametrize("speed", [0.01, 1.0, 50.0])
def test_machines_of_any_speed_are_learnt(speed: float) -> None:
    latency = Latency()
    for step in [*steps(20, speed, 1, shared=False), *steps(60, speed, 2)]:
        latency.seen(step, UNITS)
    for lane, load in LOAD.items():
        units = UNITS if lane == "mixed" else 2
        expected = truth(lane, units, load, is_shared=units < UNITS, speed=speed)
        found = latency.step_s(lane, units, UNITS, load, is_shared=units < UNITS)
        assert found == pytest.approx(expected, rel=0.15), lane


def test_a_step_whose_units_changed_tells_nothing() -> None:
    latency = Latency()
    for step in steps(20, 1.0, 1, shared=False):
        latency.seen(step, UNITS)
    before = [latency.step_s(lane, 2, UNITS, LOAD[lane], is_shared=True) for lane in ("prefill", "decode")]
    for step in steps(20, 9.0, 2):
        latency.seen(step._replace(is_reshared=True), UNITS)
    assert before == [
        latency.step_s(lane, 2, UNITS, LOAD[lane], is_shared=True) for lane in ("prefill", "decode")
    ]


@pytest.mark.parametrize("with_prompts", [True, False])
def test_nearly_every_step_keeps_the_overrun(with_prompts: bool) -> None:
    latency, lot = Latency(), random.Random(1)
    step = StepSeen("mixed", UNITS, 64 * with_prompts, 3e4 * with_prompts, 4, 1200, 0.1, False)
    over = 0
    for number in range(2000):
        expected = latency.step_s("mixed", UNITS, UNITS, Load(*step[2:6]))
        seconds = 0.1 * lot.lognormvariate(0, 0.2)
        over += number >= 500 and seconds > expected * latency.overrun(with_prompts=with_prompts)
        latency.seen(step._replace(seconds=seconds), UNITS)
    assert 0.005 <= over / 1500 <= 0.05
    assert 1.2 < latency.overrun(with_prompts=with_prompts) < 2.0
    assert latency.overrun(with_prompts=not with_prompts) == pytest.approx(1.25), "not seen yet"


def test_before_the_first_step_more_work_and_fewer_units_take_longer() -> None:
    latency = Latency()
    for lane in ("prefill", "decode"):
        times = [latency.step_s(lane, units, UNITS, LOAD[lane], is_shared=True) for units in (1, 2, 3, 4)]
        assert times == sorted(times, reverse=True)
        assert times[-1] > 0
    few, many = (latency.step_s("mixed", UNITS, UNITS, Load(num, 0.0, 4, 100)) for num in (8, 80))
    assert few < many


@pytest.mark.parametrize("at", [0, 1, 5, 40])
def test_a_stall_is_forgotten_within_a_few_steps(at: int) -> None:
    """One step, the first one or another, took a hundred times too long."""
    latency, seen = Latency(), [*steps(12, 1.0, 3, shared=False), *steps(60, 1.0, 4)]
    for number, step in enumerate(seen):
        stalled = step._replace(seconds=step.seconds * 100) if number == at else step
        latency.seen(stalled, UNITS)
        if number == at + 20:
            done = Load(step.num_prefill, step.num_pairs, step.num_decodes, step.num_context)
            found = latency.step_s(step.lane, step.units, UNITS, done, is_shared=step.is_shared)
            assert found == pytest.approx(step.seconds, rel=0.5)
    load = LOAD["decode"]
    found = latency.step_s("decode", 2, UNITS, load, is_shared=True)
    assert found == pytest.approx(truth("decode", 2, load, is_shared=True, speed=1.0), rel=0.15)


def test_a_machine_that_becomes_slower_is_followed_within_a_dozen_steps() -> None:
    latency = Latency()
    for step in [*steps(200, 1.0, 5, shared=False), *steps(30, 1.0, 6)]:
        latency.seen(step, UNITS)
    for step in steps(40, 3.0, 7):
        latency.seen(step, UNITS)
    for lane, units in (("decode", 2), ("prefill", 2), ("mixed", UNITS)):
        shared = units < UNITS
        expected = truth(lane, units, LOAD[lane], is_shared=shared, speed=3.0)
        assert latency.step_s(lane, units, UNITS, LOAD[lane], is_shared=shared) == pytest.approx(
            expected, rel=0.3
        )


def test_sizes_never_seen_are_corrected_as_their_neighbours() -> None:
    latency = Latency()
    prior = latency.factor("decode", 1, UNITS, is_shared=True)
    for step in [*steps(20, 1.0, 8, shared=False), *steps(60, 1.0, 9)]:
        latency.seen(step, UNITS)
    seen = latency.factor("decode", 2, UNITS, is_shared=True)
    begun = Latency().factor("decode", 2, UNITS, is_shared=True)
    assert latency.factor("decode", 1, UNITS, is_shared=True) == pytest.approx(prior * seen / begun)


def test_nothing_makes_a_time_that_is_not_positive() -> None:
    latency, draw = Latency(), random.Random(10)
    for _ in range(300):
        load = (
            draw.choice((0, 1, 500)),
            draw.choice((0.0, 1e9)),
            draw.choice((0, 3)),
            draw.choice((0, 10**6)),
        )
        latency.seen(
            StepSeen(
                "decode", draw.choice((0, 1, 9)), *load, draw.choice((0.0, 1e-9, 1e6)), draw.random() < 0.5
            ),
            UNITS,
        )
        assert latency.step_s("prefill", 3, UNITS, Load(draw.randint(1, 99)), is_shared=True) > 0


@pytest.mark.parametrize("curves", [CORES, SMS])
def test_curves_begin_at_one_and_rise_as_units_fall(curves: Curves) -> None:
    for curve in (curves.prefill, curves.decode):
        factors = [curve.factor(units, 16) for units in (0.5, 1, 2, 4, 8, 12, 16)]
        assert factors == sorted(factors, reverse=True)
        assert factors[-1] == 1.0
    assert CORES.decode.factor(1, 2) == pytest.approx(1.5, rel=0.01)
    assert CORES.prefill.factor(1, 2) == pytest.approx(1.85, rel=0.01)
    assert SMS.prefill.factor(64, 132) == pytest.approx(1.92)


@pytest.mark.parametrize("limit", [0.02, 0.1, 0.7, 5.0])
def test_the_largest_chunk_of_a_prompt_is_found(limit: float) -> None:
    latency, prompts, decodes = Latency(), Prompts(3000, 700, 3000), Load(0, 0.0, 3, 900)
    for step in [*steps(20, 1.0, 11, shared=False), *steps(40, 1.0, 12)]:
        latency.seen(step, UNITS)
    found = latency.chunk("mixed", UNITS, UNITS, prompts, decodes, limit)
    times = [
        latency.step_s("mixed", UNITS, UNITS, decodes._replace(num_prefill=num, num_pairs=prompts.pairs(num)))
        for num in (max(1, found), found + 1)
    ]
    assert found == 3000 or times[1] > limit
    assert found == 0 or times[0] <= limit * 1.001


def test_chunks_that_reach_beyond_a_prompt_weigh_the_others_as_new() -> None:
    prompts = Prompts(1000, 0, 100)
    assert prompts.pairs(100) == 5050
    assert prompts.pairs(1000) == pytest.approx(10 * 5050, rel=0.02)
    found = Latency().chunk("prefill", 2, UNITS, prompts, Load(), 1.0, is_shared=True)
    whole = Latency().chunk("prefill", 2, UNITS, Prompts(1000, 0, 1000), Load(), 1.0, is_shared=True)
    assert 100 < whole < found < 1000
