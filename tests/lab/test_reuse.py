from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from braid.lab.blocks import BlockWriter
from braid.lab.compare import Part, compare
from braid.lab.fit.profile import Profile
from braid.lab.fit.reuse import fit_reuse, hit_rate, seen_blocks, with_cached
from braid.lab.fit.trace import fit_trace
from braid.lab.generate import Plan, generate_trace, info
from braid.lab.readers import read_trace
from braid.lab.split import split_programs
from braid.lab.table import Trace, TraceInfo, conform


def blocks(*rows: list[int] | None) -> pl.Series:
    return pl.Series(rows, dtype=pl.List(pl.Int64))


def test_what_earlier_requests_held() -> None:
    seen, num, last = seen_blocks(blocks([1, 2, 3], [1, 2, 4], None, [5], [1, 2, 4, 6], [7, 2], []))
    assert seen.tolist() == [0, 2, 0, 0, 3, 0, 0]
    assert num.tolist() == [3, 3, 0, 1, 4, 2, 0]
    assert last.tolist() == [-1, 0, -1, -1, 1, -1, -1]


def test_hits_of_blocks_and_of_tokens() -> None:
    frame = conform(pl.DataFrame({"in_tok": [20, 25], "cached_tok": [0, 18]}))
    assert hit_rate(frame) == 18 / 45
    assert hit_rate(frame.with_columns(pl.lit(None, pl.Int64).alias("cached_tok"))) is None
    told = conform(pl.DataFrame({"in_tok": [20, 25], "block_ids": blocks([1, 2], [1, 2, 3])}))
    assert hit_rate(told) == 2 / 5
    assert with_cached(told, 10)["cached_tok"].to_list() == [0, 20]
    assert with_cached(told, None)["cached_tok"].null_count() == 2


@pytest.fixture(scope="module")
def conversations() -> Trace:
    """Chats of one popular system prompt, every turn one block longer, and lone prompts of their own."""
    rng = np.random.default_rng(0)
    rows, fresh = [], 10
    for chat in range(300):
        start, ids = float(rng.uniform(0, 3000)), [chat % 3]
        for turn in range(int(rng.geometric(0.3))):
            ids = [*ids, *range(fresh, fresh + 3)]
            fresh += 3
            rows.append((start + 40.0 * turn + rng.uniform(0, 5), ids))
        rows.append((float(rng.uniform(0, 3000)), list(range(fresh, fresh + 4))))
        fresh += 4
    frame = pl.DataFrame(rows, schema={"t_s": pl.Float64, "block_ids": pl.List(pl.Int64)}, orient="row")
    frame = frame.with_columns(
        (pl.col("block_ids").list.len() * 16 - 3).alias("in_tok"), pl.lit(9).alias("out_tok")
    )
    return Trace(conform(frame), TraceInfo(source="made for a test", block_size=16))


@pytest.fixture(scope="module")
def profile(conversations: Trace) -> Profile:
    return fit_trace(conversations, candidates=("poisson",), laws=False)


def test_generated_requests_share_as_much(profile: Profile, conversations: Trace) -> None:
    plan = Plan(span_s=12_000.0, seed=3)
    made = generate_trace(profile, plan)
    assert made.info.block_size == 16
    assert (made.frame["block_ids"].list.len() == (made.frame["in_tok"] / 16).ceil()).all()
    assert hit_rate(made.frame) == pytest.approx(hit_rate(conversations.frame), abs=0.02)
    (row,) = (row for row in compare(Part(trace=conversations), Part(trace=made)) if "hit" in row.name)
    assert row.passed
    bare = generate_trace(profile, Plan(span_s=12_000.0, seed=3, blocks=False))
    assert bare.frame["block_ids"].null_count() == bare.num_requests
    assert info(profile, Plan(span_s=1.0, blocks=False)).block_size is None


def test_a_copy_without_reuse_fails(profile: Profile, conversations: Trace) -> None:
    made = generate_trace(profile, Plan(span_s=6000.0, blocks=False))
    (row,) = (row for row in compare(Part(trace=conversations), Part(trace=made)) if "hit" in row.name)
    assert not row.passed


def test_blocks_go_on_from_call_to_call(conversations: Trace) -> None:
    law = fit_reuse(conversations.frame, 16)
    assert law is not None
    assert law.hit_rate == hit_rate(conversations.frame)
    rng = np.random.default_rng(0)
    t, lengths = np.sort(rng.uniform(0, 9000, 3000)), rng.integers(1, 200, 3000).astype(float)
    writer = BlockWriter(law, rng)
    ids = pl.concat([writer.write(t[i : i + 100], lengths[i : i + 100]) for i in range(0, 3000, 100)])
    seen, num, _ = seen_blocks(ids)
    # Every prefix was seen as far as it was to be and no further: blocks are new for good, or shared from the start.
    known: set[int] = set()
    for row, leading in zip(ids.to_list(), seen.tolist(), strict=True):
        assert known.issuperset(row[:leading])
        assert known.isdisjoint(row[leading:])
        known.update(row)
    assert 0.1 < seen.sum() / num.sum() < 0.9


def test_no_block_ids_no_law(conversations: Trace) -> None:
    assert fit_reuse(conversations.frame, None) is None
    assert (
        fit_reuse(conversations.frame.with_columns(pl.lit(None, pl.List(pl.Int64)).alias("block_ids")), 16)
        is None
    )
    assert fit_reuse(conform(pl.DataFrame({"t_s": [0.0, 1.0], "block_ids": blocks([1], [2])})), 16) is None


def test_mooncakes_hit_rate_is_met(shared_data: Path) -> None:
    trace = read_trace(shared_data / "traces/mooncake/conversation_trace.jsonl")
    profile = fit_trace(trace, candidates=("poisson",), laws=False)
    made = generate_trace(profile, Plan(span_s=2 * trace.span_s, seed=5))
    assert hit_rate(trace.frame) == pytest.approx(0.366, abs=0.001)
    assert hit_rate(made.frame) == pytest.approx(0.366, abs=0.02)
    assert "every 3 s" in made.info.notes[-1]
    assert any("every 3 s" in note for note in profile.notes)


@pytest.mark.parametrize("seed", [3, 5])
def test_agents_prompts_turns_and_reuse_hold_on_other_agents(seed: int, shared_data: Path) -> None:
    train, test = split_programs(read_trace(shared_data / "agents/weka_requests.csv.gz"), 0.5, seed)
    profile = fit_trace(train, laws=False)
    made = generate_trace(profile, Plan(span_s=3600.0, rate=40.0))
    rows = compare(Part(trace=test), Part(trace=made), Part(trace=train))
    assert {row.name for row in rows} >= {"KS input tokens", "KS turns per program", "prefix hit rate apart"}
    assert [row for row in rows if row.judged and not row.passed] == []
    below = made.frame.filter(pl.col("parent_id").is_not_null())
    assert set(below["parent_id"]) <= set(made.frame["program_id"])


def test_raw_sessions_keep_their_reuse(shared_data: Path) -> None:
    trace = read_trace(shared_data / "agents/weka_raw")
    made = generate_trace(fit_trace(trace, laws=False), Plan(span_s=3600.0, rate=20.0))
    assert hit_rate(made.frame) == pytest.approx(hit_rate(trace.frame), abs=0.02)
