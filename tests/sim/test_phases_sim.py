from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.core.errors import InvalidParameterError
from braid.core.metrics import RequestTimes
from braid.core.request import Slo
from braid.core.step import Work
from braid.policy.agents.costs import attended_pairs
from braid.policy.cost import Estimate
from braid.policy.phases.curves import CORES, SMS
from braid.sched.config import SchedulerConfig
from braid.sim.phases import PhasesRun, PhasesSetup, burst, keeps, run_phases, summary_of
from braid.sim.platform import roofline_platform
from braid.sim.run import Arrival

MODES = ("mixed", "mixed:32", "layered:1", "prefill-first", "static:50/50", "static:100/100", "split", "auto")


@dataclass(frozen=True)
class Cores:
    """Like a small model on two cores."""

    token_s: float = 2e-3
    step_s: float = 10e-3

    def step(self, works: Iterable[Work]) -> Estimate:
        seconds = self.step_s
        for work in works:
            count = len(work.token_ids)
            seconds += self.token_s * count + 3e-7 * attended_pairs(count, work.start)
        return Estimate(seconds)


def setup(num_units: int = 2, num_blocks: int = 2000, max_num_seqs: int = 16) -> PhasesSetup:
    config = SchedulerConfig(
        num_blocks=num_blocks,
        max_num_seqs=max_num_seqs,
        max_model_len=8192,
        num_units=num_units,
        num_layers=16,
    )
    return PhasesSetup(cost=Cores(), config=config, curves=CORES, machine="made up")


def beside(run: PhasesRun) -> dict[str, float]:
    found = summary_of(run)["tbt_beside_prompts_ms"]
    assert isinstance(found, dict)
    return found


def test_a_long_prompt_freezes_nobody_where_lanes_are_allowed() -> None:
    load = burst(4, 400, 3000, 2, 6.0)
    runs = {name: run_phases(load, setup(), name, Slo(tbt_s=0.08)) for name in MODES}
    worst = {name: beside(run)["p99"] for name, run in runs.items()}
    assert worst["auto"] < 80
    assert worst["auto"] < worst["mixed:32"] < worst["mixed"] < worst["prefill-first"]
    assert worst["auto"] < worst["layered:1"] < worst["mixed"], (
        "a layer of a long chunk, and never a whole one"
    )
    assert worst["auto"] == pytest.approx(worst["static:50/50"], rel=0.1)
    ends = {name: run.report.seconds for name, run in runs.items()}
    assert ends["auto"] < 1.05 * min(ends.values()), "and all of it is done as early"


def test_layers_that_nobody_counted_are_an_error() -> None:
    place = setup()
    unknown = replace(place, config=replace(place.config, num_layers=1))
    with pytest.raises(InvalidParameterError, match="braid calibrate"):
        run_phases(burst(1, 8, 100, 1, 1.0), unknown, "layered:2", Slo())


def test_a_loose_wish_leaves_large_chunks_and_early_first_tokens() -> None:
    load = burst(4, 200, 3000, 1, 2.0)
    slo = Slo(9.0, 1.5)
    mixed, auto = (run_phases(load, setup(), name, slo) for name in ("mixed", "auto"))
    assert summary_of(auto)["attainment"]["tbt"] == 1.0
    assert summary_of(auto)["divisions"][-1]["units"] == 0
    assert auto.report.requests[-1].ttft < 1.1 * mixed.report.requests[-1].ttft


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    mode=st.sampled_from(MODES),
    num_units=st.sampled_from((2, 5)),
    num_blocks=st.sampled_from((514, 2000)),
    slo=st.sampled_from((Slo(), Slo(0.5, 0.05), Slo(1e-9, 1e-9), Slo(inf, 2.0))),
)
def test_every_way_serves_everything(seed: int, mode: str, num_units: int, num_blocks: int, slo: Slo) -> None:
    """Memory for one request of the longest kind, too."""
    draw = random.Random(seed)
    load = [
        Arrival(draw.uniform(0, 10), draw.choice((1, 20, 300, 3000)), draw.choice((1, 2, 30, 90)))
        for _ in range(draw.randint(1, 14))
    ]
    run = run_phases(load, setup(num_units, num_blocks, 6), mode, slo)
    assert not run.report.refused
    assert [times.num_output_tokens for times in run.report.requests] == [
        each.num_output_tokens for each in load
    ]
    assert run.report.stats.num_free_blocks == num_blocks
    times = [change.time for change in run.watched.changes]
    assert len(times) <= 3 + 0.5 * run.report.seconds
    assert times == sorted(times)


def test_prompts_do_not_starve_beside_decodes_that_want_more_than_there_is() -> None:
    streams = [Arrival(0.0, 32, 300) for _ in range(12)]
    for num_units in (2, 16):
        load = [*streams, Arrival(1.0, 1000, 2)]
        run = run_phases(load, setup(num_units), "auto", Slo(1.0, 1e-3))
        alone = run_phases(load[-1:], setup(num_units), "auto", Slo(1.0, 1e-3))
        assert run.report.requests[-1].ttft < 12 * alone.report.requests[-1].ttft


def test_prompts_that_nobody_decodes_beside_take_no_longer() -> None:
    """Light load."""
    load = [Arrival(20.0 * number, 2000, 1) for number in range(4)]
    mixed, auto, split = (run_phases(load, setup(), name, Slo()) for name in ("mixed", "auto", "split"))
    for run in (auto, split):
        for one, other in zip(run.report.requests, mixed.report.requests, strict=True):
            assert one.ttft == pytest.approx(other.ttft, rel=0.02)


def test_under_a_steady_load_it_changes_less_than_once_a_second() -> None:
    load = [Arrival(0.4 * number, 150, 60) for number in range(150)]
    for slo in (Slo(), Slo(2.0, 0.06), Slo(2.0, 0.3)):
        run = run_phases(load, setup(), "auto", slo)
        times = [change.time for change in run.watched.changes]
        assert len(times) < run.report.seconds
        assert not any(c - a < 1 for a, c in zip(times[3:], times[5:], strict=False))


def test_on_a_gpu_lanes_that_follow_wishes_serve_more_than_fixed_ones_and_those_more_than_chunks() -> None:
    """The direction of semi-PD's figures (arXiv 2504.19867): dynamic above 100/100 above chunked prefill."""
    platform = roofline_platform("a100-80g", "llama-3.1-8b", "bfloat16")
    config = SchedulerConfig(
        num_blocks=platform.kv_tokens // 256,
        block_size=256,
        max_num_seqs=128,
        max_num_batched_tokens=2048,
        max_model_len=16384,
        num_units=platform.num_units,
    )
    place = PhasesSetup(
        cost=platform.cost, config=config, curves=SMS, machine="", prefill_part=platform.prefill_part
    )
    draw, now, load = random.Random(1), 0.0, []
    for _ in range(80):
        now += draw.expovariate(3.0)
        length, output = draw.lognormvariate(7.6, 0.7), draw.lognormvariate(5, 0.6)
        load.append(Arrival(now, int(min(12_000, length)), int(min(500, 1 + output))))
    slo = Slo(1.5, 0.05)
    names = ("auto", "static:100/100", "mixed:1024")
    goodput = [summary_of(run_phases(load, place, name, slo))["goodput"] for name in names]
    assert goodput == sorted(goodput, reverse=True)
    assert goodput[0] > 1.05 * goodput[1] > 1.05 * goodput[2], goodput


def test_a_request_is_judged_by_its_first_token_and_nearly_all_gaps() -> None:
    times = RequestTimes(
        request_id="a", arrival=0.0, first_scheduled=0.0, token_times=[1.0 + 0.1 * n for n in range(201)]
    )
    assert keeps(times, Slo(1.0, 0.11))
    assert not keeps(times, Slo(0.9, 0.11))
    assert not keeps(times, Slo(1.0, 0.09))
    assert keeps(times, Slo())


def test_gaps_beside_prompts_are_those_that_overlap_one() -> None:
    run = run_phases(burst(1, 100, 500, 1, 0.5), setup(), "mixed", Slo())
    stream, prompt = run.report.requests
    overlapping = [
        after - before
        for before, after in pairwise(stream.token_times)
        if before < prompt.token_times[0] and after > prompt.first_scheduled
    ]
    assert beside(run)["max"] == pytest.approx(1000 * max(overlapping))
    assert beside(run)["num"] >= len(overlapping)
