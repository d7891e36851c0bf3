"""The chain from a trace to a run without a server: what is planned is what arrives, and what is shared is found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from braid.lab.measures.measure import measure
from braid.lab.readers import read_trace
from braid.lab.replay.planning.content import planned_hit_rate
from braid.lab.replay.planning.plan import PlanOptions, build_plan
from braid.lab.replay.simulated import arrivals_of, simulate_plan
from braid.lab.table import Trace, TraceError, TraceInfo, conform
from braid.policy.cost import Grid, Line, StepCost
from braid.sched.config import SchedulerConfig
from braid.sim.machine import Machine

FLAT = Grid((1, 100), (0, 1000), ((0.0, 0.0), (0.0, 0.0)))
COST = StepCost(
    profile="a second a step",
    dense=Line((0.5, 1000), (1.0, 1.0)),
    head=Line((0.5, 1000), (0.0, 0.0)),
    prefill=FLAT,
    decode=FLAT,
)
CONFIG = SchedulerConfig(
    num_blocks=400, block_size=16, max_num_seqs=16, max_num_batched_tokens=256, max_model_len=1024
)
MACHINE = Machine(COST, CONFIG, "tiny", "float32", {})


def plan_of(rows: list[dict[str, Any]], **options: Any):
    info = TraceInfo(source="made.csv", input_scope="full")
    return build_plan(Trace(conform(pl.DataFrame(rows)), info), PlanOptions(**options))


def lone(t: float, inputs: int, outputs: int, **more: Any) -> dict[str, Any]:
    return {"t_s": t, "kind": "api", "in_tok": inputs, "out_tok": outputs, "status": "ok", **more}


def test_times_are_those_of_the_clock_and_the_steps() -> None:
    run = simulate_plan(plan_of([lone(10.0, 100, 3), lone(20.0, 100, 1)]), MACHINE)
    first, second = run.frame.iter_rows(named=True)
    assert (first["scheduled_s"], first["chunk_times_s"]) == (0.0, [1.0, 2.0, 3.0])
    assert (second["scheduled_s"], second["end_s"], second["status"]) == (10.0, 11.0, "ok")
    assert run.head.plan_sha256
    assert measure(run).outcomes["ok"] == 2


def test_requests_belong_to_their_programs() -> None:
    shared = {"kind": "agent", "status": "ok", "in_tok": 32, "out_tok": 2, "e2e_s": 1.0}
    rows = [
        {"program_id": "a", "t_s": 0.0, "turn": 0, **shared},
        {"program_id": "a.sub", "parent_id": "a", "t_s": 5.0, "turn": 0, **shared},
        {"program_id": "a", "t_s": 9.0, "turn": 1, **shared},
        {"t_s": 9.5, **shared},
    ]
    refs = [arrival.program for arrival in arrivals_of(plan_of(rows))]
    assert [ref and (ref.program, ref.parent, ref.final) for ref in refs] == [
        ("a", None, False),
        ("a.sub", "a", True),
        ("a", None, True),
        None,
    ]


def turns(gap: float = 5.0) -> list[dict[str, Any]]:
    shared = {"program_id": "p", "kind": "agent", "status": "ok"}
    return [
        {"t_s": 0.0, "turn": 0, "in_tok": 100, "out_tok": 28, "e2e_s": 1.0, **shared},
        {"t_s": 6.0, "turn": 1, "in_tok": 160, "out_tok": 2, "e2e_s": 1.0, "gap_before_s": gap, **shared},
    ]


def test_the_next_turn_comes_after_the_simulated_end_and_finds_prompt_and_reply() -> None:
    first, second = simulate_plan(plan_of(turns()), MACHINE).frame.iter_rows(named=True)
    assert second["scheduled_s"] == first["end_s"] + 5.0
    # 128 tokens are shared; the last reply token's KV was never computed.
    assert (first["cached_tokens"], second["cached_tokens"]) == (0, 112)


def test_the_same_plan_gives_the_same_run() -> None:
    plan = plan_of([lone(t, 50 + t, 3) for t in range(20)])
    first, second = (simulate_plan(plan, MACHINE).frame for _ in range(2))
    assert first.equals(second)


def test_cancelled_rows_end_early_and_say_so() -> None:
    run = simulate_plan(plan_of([lone(0.0, 100, 4, status="cancelled"), lone(0.0, 90, 2)]), MACHINE)
    by_length = {row["in_tok"]: row for row in run.frame.iter_rows(named=True)}
    assert (by_length[100]["status"], len(by_length[100]["chunk_times_s"])) == ("cancelled", 4)
    assert by_length[90]["status"] == "ok"


def test_what_the_engine_would_refuse_is_an_error_row() -> None:
    run = simulate_plan(plan_of([lone(0.0, 5000, 4), lone(0.0, 90, 2)]), MACHINE)
    assert sorted(run.frame["status"].cast(pl.String)) == ["error", "ok"]
    assert "context is 1024" in run.frame.filter(pl.col("status") == "error")["reason"][0]


def test_concurrency_has_no_start_times() -> None:
    with pytest.raises(TraceError, match="needs start times"):
        simulate_plan(plan_of(turns(), arrivals="concurrency", concurrency=1), MACHINE)


@pytest.mark.slow
def test_ample_cache_finds_in_a_real_trace_what_the_plan_says(shared_data: Path) -> None:
    """Mooncake's conversations at a 32nd of their lengths, so that its blocks of 512 tokens are the engine's of 16."""
    trace = read_trace(shared_data / "traces/mooncake/conversation_trace.jsonl")
    plan = build_plan(trace, PlanOptions(length_factor=1 / 32))
    config = SchedulerConfig(
        num_blocks=400_000, max_num_seqs=256, max_num_batched_tokens=8192, max_model_len=8192
    )
    frame = simulate_plan(plan, Machine(COST, config, "tiny", "float32", {})).frame
    found = (frame["cached_tokens"] // 16).sum() / (-(-frame["in_tok"] // 16)).sum()
    assert frame["status"].cast(pl.String).unique().to_list() == ["ok"]
    assert planned_hit_rate(plan, 16) == pytest.approx(0.366, abs=0.001)
    assert found == pytest.approx(0.366, abs=0.01)
