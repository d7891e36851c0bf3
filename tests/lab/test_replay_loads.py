from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from braid.lab.replay.planning.plan import PlanOptions, build_plan
from braid.lab.sweep.loads import (
    at_factor,
    num_programs,
    plan_at_factor,
    plan_at_rate,
    requests_within,
    until,
)
from braid.lab.table import Trace, TraceError, TraceInfo, conform


def made(num: int = 300, programs: int | None = 60, span_s: float = 300.0, seed: int = 0) -> Trace:
    """Programs of a few turns, and as many lone requests; without programs all are lone."""
    rng = np.random.default_rng(seed)
    at = np.sort(rng.uniform(0, span_s, num))
    names = [None] * num if programs is None else [
        f"p{rng.integers(programs)}+1" if number % 2 else None for number in range(num)
    ]  # fmt: skip
    frame = pl.DataFrame(
        {
            "t_s": at,
            "program_id": names,
            "in_tok": rng.integers(5, 50, num),
            "out_tok": rng.integers(2, 20, num),
        },
        schema_overrides={"program_id": pl.String},
    )
    return Trace(conform(frame), TraceInfo(source="made", format="test"))


def keys(trace: Trace) -> set[tuple[str, float]]:
    return set(zip(trace.frame["program_id"], trace.frame["t_s"], strict=True))


@pytest.mark.parametrize("programs", [60, None])
def test_loads_are_nested_and_the_first_copy_is_the_trace(programs: int | None) -> None:
    trace = made(programs=programs)
    factors = (0.3, 0.7, 1.0, 1.4, 2.0, 2.1, 3.9)
    grown = [at_factor(trace, factor, seed=5) for factor in factors]
    for lower, higher in pairwise(grown):
        assert keys(lower) < keys(higher)
    for factor, one in zip(factors, grown, strict=True):
        assert one.num_requests == pytest.approx(factor * 300, rel=0.3)
        assert len(keys(one)) == one.num_requests, "no row twice"
    assert grown[2].frame["t_s"].equals(trace.frame["t_s"])
    assert keys(at_factor(trace, 0.3, seed=6)) != keys(grown[0])
    assert "Load 1.4: 1 whole copies" in grown[3].info.notes[-1]
    with pytest.raises(TraceError, match="above 0, got 0"):
        at_factor(trace, 0.0, seed=0)


def test_programs_stay_whole_with_their_gaps() -> None:
    trace = made()
    gaps = {
        name[0]: tuple(np.diff(times["t_s"].to_numpy()).round(6))
        for name, times in trace.frame.drop_nulls("program_id").group_by("program_id")
    }
    grown = at_factor(trace, 1.6, seed=1).frame
    for (name,), times in grown.group_by("program_id"):
        assert isinstance(name, str)
        if name.startswith("p"):
            original = name if name in gaps else name.removesuffix("+1")
            assert tuple(np.diff(np.sort(times["t_s"].to_numpy())).round(6)) == gaps[original]


def test_a_plan_ends_with_its_stretch() -> None:
    trace = made()
    plan = plan_at_factor(trace, 2.0, PlanOptions(start_s=50), 60.0, seed=3)
    starts = plan.frame["start_s"].to_numpy()
    assert starts.max() <= 60
    assert plan.frame["request"].to_list() == list(range(plan.num_requests))
    assert requests_within(plan, (10.0, 60.0)) == ((starts >= 10) & (starts <= 60)).sum()
    whole = build_plan(at_factor(trace, 2.0, 3), PlanOptions(start_s=50, span_s=60.0))
    left = whole.num_requests - plan.num_requests
    assert left > 0
    assert plan.sha256 != whole.sha256
    assert plan.notes[-1].startswith(f"{left} requests that the trace has more than 60 s after the start")
    assert until(plan, 60.0) is plan


def test_a_rate_takes_programs_in_order() -> None:
    trace = made()
    plan = plan_at_rate(trace, 1.5, PlanOptions(seed=2), 60.0)
    first = plan.frame.group_by("group").agg(pl.col("start_s").min())
    assert first.height == pytest.approx(90, abs=30)
    assert plan.frame["start_s"].max() <= 60
    assert num_programs(trace) == 150 + trace.num_programs
