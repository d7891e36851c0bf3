from __future__ import annotations

import random

import pytest

from braid.core.metrics import summary
from braid.core.program import ProgramRef
from braid.policy.agents.program import Finish, ProgramId
from braid.policy.cost import Grid, Line, StepCost
from braid.sched.config import SchedulerConfig
from braid.sched.observer import TurnStart, TurnStop
from braid.sim.executor import FixedTime
from braid.sim.run import Arrival, simulate

CONFIG = SchedulerConfig(
    num_blocks=400, block_size=16, max_num_seqs=16, max_num_batched_tokens=256, max_model_len=1024
)
COST = StepCost(
    profile="made up for tests",
    dense=Line((1, 64, 256), (0.01, 0.012, 0.04)),
    head=Line((1, 16), (0.001, 0.002)),
    prefill=Grid((1, 256), (0, 1024), ((0.0001, 0.001), (0.004, 0.02))),
    decode=Grid((1, 16), (1, 1024), ((0.0001, 0.002), (0.001, 0.02))),
)


def trace(count: int, seed: int = 0) -> list[Arrival]:
    rng = random.Random(seed)
    time = 0.0
    arrivals = []
    for _ in range(count):
        time += rng.expovariate(20.0)
        arrivals.append(Arrival(time, rng.randrange(1, 500), rng.randrange(1, 60)))
    return arrivals


def test_one_request_by_hand() -> None:
    report = simulate([Arrival(5.0, 300, 3)], CONFIG, FixedTime(1.0))
    (times,) = report.requests
    assert (times.ttft, times.tpot, times.e2e, times.queueing_delay) == (2.0, 1.0, 4.0, 0.0)
    assert list(times.token_times) == [7.0, 8.0, 9.0]
    assert report.seconds == 9.0


def test_a_thousand_requests_twice_are_equal_byte_for_byte() -> None:
    first, second = (simulate(trace(1000), CONFIG, COST) for _ in range(2))
    assert repr(first) == repr(second)
    assert [times.num_output_tokens for times in first.requests] == [a.num_output_tokens for a in trace(1000)]
    assert first.stats.num_free_blocks == CONFIG.num_blocks
    assert first.num_extrapolated == 0
    assert summary(times.ttft for times in first.requests).p99 > 0


def test_shared_prompts_hit_the_cache_and_lengths_do_not() -> None:
    shared = [Arrival(float(i), range(100), 2) for i in range(4)]
    assert simulate(shared, CONFIG, FixedTime(0.1)).stats.prefix_hits == 3 * 96
    assert simulate(trace(50), CONFIG, FixedTime(0.1)).stats.prefix_hits == 0


def test_refused_requests_are_reported() -> None:
    report = simulate([Arrival(0.0, 5000, 3), Arrival(0.0, 5, 3)], CONFIG, FixedTime())
    assert len(report.requests) == 1
    assert "5000 tokens" in report.refused["0"]


@pytest.mark.parametrize("num_blocks", [64, 80])
def test_pressure_preempts_and_loses_nothing(num_blocks: int) -> None:
    config = SchedulerConfig(
        num_blocks=num_blocks, max_num_seqs=16, max_num_batched_tokens=256, max_model_len=1024
    )
    arrivals = [Arrival(0.0, 60, 200) for _ in range(20)]
    report = simulate(arrivals, config, COST)
    assert report.stats.num_preemptions > 0
    assert all(times.num_output_tokens == 200 for times in report.requests)


def test_a_turn_waits_for_the_end_of_what_it_follows_and_its_gap() -> None:
    turns = [Arrival(1.0, 10, 3), Arrival(0.0, 10, 2), Arrival(99.0, 10, 1, after=(0, 1), delay=5.0)]
    first, second, last = simulate(turns, CONFIG, FixedTime(1.0)).requests
    assert last.arrival == max(first.token_times[-1], second.token_times[-1]) + 5.0


def test_a_turn_arrives_though_what_it_follows_was_refused() -> None:
    report = simulate([Arrival(2.0, 5000, 3), Arrival(0.0, 5, 1, after=(0,), delay=1.0)], CONFIG, FixedTime())
    assert [times.arrival for times in report.requests] == [3.0]


def test_the_next_turn_finds_prompt_and_reply_in_the_cache() -> None:
    prompt, reply = list(range(100)), list(range(200, 228))
    later = Arrival(0.0, lambda: [*prompt, *reply, 7, 8, 9], 1, after=(0,))
    report = simulate([Arrival(0.0, prompt, 28, reply=reply), later], CONFIG, FixedTime())
    # The last token's KV is not computed, so its block is not full.
    assert report.stats.prefix_hits == 112
    assert report.stats.generation_tokens == 29


def test_an_answer_with_an_ending_stops_and_its_program_is_told() -> None:
    told: list[tuple[ProgramId, Finish, float]] = []

    class Listener:
        num_dropped = 0

        def started(self, turn: TurnStart) -> None: ...

        def stopped(self, turn: TurnStop) -> None:
            assert turn.reason == "stop"

        def told(self, program: ProgramId, finish: Finish, now: float) -> None:
            told.append((program, finish, now))

    turn = Arrival(0.0, 10, 3, program=ProgramRef(owner="", program="p"), ending=(Finish.TOOL, "bash"))
    report = simulate([turn], CONFIG, FixedTime(1.0), observer=Listener())
    assert list(report.requests[0].token_times) == [1.0, 2.0, 3.0]
    assert told == [(ProgramId("", "p"), Finish.TOOL, 3.0)]


def test_a_request_that_waits_for_a_later_one_is_an_error() -> None:
    with pytest.raises(ValueError, match="request 0 waits for 1"):
        simulate([Arrival(0.0, 5, 1, after=(1,)), Arrival(0.0, 5, 1)], CONFIG, FixedTime())
