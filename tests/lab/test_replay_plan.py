from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.lab.readers import read_trace
from braid.lab.replay.planning.content import planned_hit_rate
from braid.lab.replay.planning.numbered import plan_hash
from braid.lab.replay.planning.plan import PLAN_SCHEMA, Arrivals, PlanOptions, ReplayPlan, build_plan
from braid.lab.table import Trace, TraceError, TraceInfo, conform

Row = dict[str, Any]


def _trace(*rows: Row, **info: Any) -> Trace:
    usual = {"in_tok": 100, "out_tok": 10, "status": "ok"}
    frame = pl.DataFrame([{**usual, **row} for row in rows], infer_schema_length=None)
    return Trace(conform(frame), TraceInfo(source="made.csv", **info))


def _plan(*rows: Row, options: PlanOptions | None = None, **info: Any) -> ReplayPlan:
    return build_plan(_trace(*rows, **info), options or PlanOptions())


def _lone(t: float, **more: Any) -> Row:
    return {"t_s": t, **more}


def _turns(program: str, *times: float, **more: Any) -> list[Row]:
    return [{"program_id": program, "turn": k, "t_s": t, "e2e_s": 1.0, **more} for k, t in enumerate(times)]


def _text(plan: ReplayPlan, request: int) -> list[tuple[int, int]]:
    row = plan.frame.row(request, named=True)
    return list(zip(row["segment_keys"], row["segment_toks"], strict=True))


def _common(plan: ReplayPlan, one: int, other: int) -> int:
    """Tokens that two prompts begin with together."""
    total = 0
    for (key, tok), (other_key, other_tok) in zip(_text(plan, one), _text(plan, other), strict=False):
        if key != other_key:
            return total
        total += min(tok, other_tok)
        if tok != other_tok:
            return total
    return total


def test_lone_requests_start_by_the_clock_from_the_first() -> None:
    plan = _plan(_lone(50.0, in_tok=30_000, out_tok=7_315), _lone(50.25), _lone(61.0, in_tok=1, out_tok=1))
    frame = plan.frame
    assert dict(frame.schema) == dict(pl.Schema(PLAN_SCHEMA))
    assert frame["start_s"].to_list() == [0, 0.25, 11]
    assert frame["in_tok"].to_list() == [30_000, 100, 1]
    assert frame["out_tok"].to_list() == [7_315, 10, 1]
    assert (
        frame["group"].to_list() == frame["request"].to_list() == frame["source_row"].to_list() == [0, 1, 2]
    )
    assert frame["after"].to_list() == [[], [], []]
    assert frame["cancel_after_tok"].null_count() == 3
    assert frame["program"].to_list() == ["row 0", "row 1", "row 2"]
    assert frame["segment_toks"].to_list() == [[30_000], [100], [1]]
    assert frame["segment_keys"].explode().n_unique() == 3
    assert plan.notes == ()


def test_turns_wait_and_keep_their_names() -> None:
    plan = _plan(*_turns("a", 0, 6), _lone(2.0), *_turns("b", 1, 40, 50))
    frame = plan.frame
    assert (
        frame["program"].to_list() == ["a", "b", "row 1", "a", "b", "b"] or frame["program"].n_unique() == 3
    )
    waits = frame.filter(pl.col("after").list.len() > 0).select(
        "program", "turn", "after", "delay_s", "start_s"
    )
    assert waits.rows() == [("a", 1, [0], 5.0, 6.0), ("b", 1, [1], 38.0, 40.0), ("b", 2, [4], 9.0, 50.0)]
    assert frame["group"].to_list() == [0, 1, 2, 0, 1, 1]


def test_a_stretch_takes_programs_that_start_in_it_whole() -> None:
    rows = [*_turns("early", 0, 15), *_turns("in", 10, 500), _lone(12.0), _lone(20.0)]
    plan = _plan(*rows, options=PlanOptions(start_s=10, span_s=10))
    assert plan.frame["program"].unique(maintain_order=True).to_list() == ["in", "row 2"]
    assert plan.frame["start_s"].to_list() == [0, 2, 490]
    few = _plan(*rows, options=PlanOptions(max_programs=2))
    assert few.frame["program"].unique(maintain_order=True).to_list() == ["early", "in"]
    with pytest.raises(TraceError, match="no program starts within 900 s to 950 s"):
        _plan(*rows, options=PlanOptions(start_s=900, span_s=50))


def test_times_on_a_grid_are_spread_inside_its_steps_in_order() -> None:
    rows = [_lone(3.0 * (k // 50) + 0.003 * (k % 2)) for k in range(200)]
    trace = _trace(*rows, t_quantum_s=3.0)
    plan = build_plan(trace, PlanOptions(seed=4))
    starts = plan.frame["start_s"].to_numpy()
    assert plan.frame["source_row"].to_list() == list(range(200))
    assert np.unique(starts).size == 200
    assert 9 < starts[-1] <= 12
    counts = np.histogram(starts, np.arange(0, 13, 3.0))[0]
    assert abs(counts - 50).max() <= 2
    assert "grid of 3 s" in plan.notes[0]
    assert "seed 4" in plan.notes[0]
    assert build_plan(trace, PlanOptions(seed=5)).frame["start_s"].to_list() != starts.tolist()


def test_a_program_on_a_grid_moves_as_one() -> None:
    plan = _plan(*_turns("a", 0, 7), *_turns("b", 0, 9), t_quantum_s=1.0)
    starts = plan.frame.group_by("program", maintain_order=True).agg(pl.col("start_s").diff().last())[
        "start_s"
    ]
    assert sorted(starts.to_list()) == pytest.approx([7, 9])
    assert sorted(plan.frame["delay_s"].to_list()) == [0, 0, 6, 8]


def test_ten_times_the_load_leaves_the_gaps_alone() -> None:
    rows = [row for k in range(300) for row in _turns(f"p{k}", k * 10.0, k * 10.0 + 31, k * 10.0 + 90)]
    own = _plan(*rows)
    fast = _plan(*rows, options=PlanOptions(arrivals="rate", rate=1.0))
    by_turn = [plan.frame.sort("program", "turn")["delay_s"] for plan in (own, fast)]
    assert by_turn[0].equals(by_turn[1])
    first = [plan.frame.filter(pl.col("turn") == 0)["start_s"] for plan in (own, fast)]
    assert first[0].max() == 2990
    assert 240 < float(first[1].max()) < 360  # type: ignore[arg-type]
    assert fast.frame.filter(pl.col("turn") == 0)["program"].to_list() == [f"p{k}" for k in range(300)]
    assert "1 per second" in fast.notes[0]


@pytest.mark.parametrize("cv", [0.0, 0.5, 1.0, 2.0])
def test_rates_have_their_gaps(cv: float) -> None:
    rows = [_lone(float(k)) for k in range(4000)]
    starts = _plan(*rows, options=PlanOptions(arrivals="rate", rate=20.0, cv=cv)).frame["start_s"].to_numpy()
    gaps = np.diff(starts)
    assert starts[0] == 0
    assert gaps.mean() == pytest.approx(1 / 20, rel=0.1)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1, abs=1e-9)


def test_slots_have_no_starts() -> None:
    plan = _plan(
        *_turns("a", 0, 6), *_turns("b", 1, 4), options=PlanOptions(arrivals="concurrency", concurrency=1)
    )
    assert plan.frame["program"].to_list() == ["a", "a", "b", "b"]
    assert plan.frame["start_s"].to_list() == [None, 6, None, 3]
    assert plan.frame["delay_s"].to_list() == [0, 5, 0, 2]
    assert plan.frame["after"].to_list() == [[], [0], [], [2]]


def test_timestamps_wait_for_nothing() -> None:
    rows = [*_turns("a", 0, 6), *_turns("b", 1, 4)]
    plan = _plan(*rows, options=PlanOptions(turns="timestamp"))
    assert plan.frame["start_s"].to_list() == [0, 1, 4, 6]
    assert plan.frame["after"].list.len().to_list() == [0, 0, 0, 0]
    assert plan.frame["delay_s"].to_list() == [0, 0, 0, 0]
    rated = _plan(*rows, options=PlanOptions(turns="timestamp", arrivals="rate", rate=0.01))
    assert rated.frame.filter(program="a")["start_s"].to_list() == [0, 6]


def _gaps(*gaps: float, name: str = "a") -> list[Row]:
    return [{"program_id": name, "turn": k, "gap_before_s": gap, "t_s": None} for k, gap in enumerate(gaps)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (PlanOptions(), "no arrival time in this trace: use arrivals by rate or by concurrency"),
        (PlanOptions(arrivals="rate", rate=1, turns="timestamp"), "no recorded times"),
        (PlanOptions(arrivals="rate", rate=1, start_s=5), "has no arrival times: start_s and span_s"),
    ],
)
def test_without_a_clock_only_rate_and_slots_work(options: PlanOptions, words: str) -> None:
    with pytest.raises(TraceError, match=words):
        _plan(*_gaps(0, 2, 3), options=options)


def test_programs_without_a_clock_keep_their_gaps() -> None:
    rows = [*_gaps(0.7, 2, 3), *_gaps(0, 5, name="b")]
    plan = _plan(*rows, options=PlanOptions(arrivals="concurrency", concurrency=2))
    assert plan.frame["delay_s"].to_list() == [0, 2, 3, 0, 5]
    assert plan.frame["after"].to_list() == [[], [0], [1], [], [3]]
    rated = _plan(*rows, options=PlanOptions(arrivals="rate", rate=2.0))
    assert sorted(rated.frame["delay_s"].to_list()) == [0, 0, 2, 3, 5]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"arrivals": "rate"}, "arrivals by rate need a rate"),
        ({"arrivals": "concurrency"}, "arrivals by concurrency need a concurrency"),
        ({"rate": 2.0}, "a rate needs arrivals by rate, not by trace"),
        ({"concurrency": 2}, "a concurrency needs arrivals by concurrency"),
        ({"arrivals": "rate", "rate": 0.0}, "rate must be above 0, got 0"),
        ({"arrivals": "rate", "rate": float("nan")}, "rate must be above 0, got nan"),
        ({"arrivals": "burst"}, "arrivals must be one of trace, rate, concurrency, got 'burst'"),
        ({"failed": "drop"}, "failed must be one of send, skip, cancel"),
        ({"length_factor": 0.0}, "length_factor must be above 0"),
        ({"max_gap_s": -1.0}, "max_gap_s must be 0 or above"),
        ({"seed": -1}, "seed must be 0 or above"),
        ({"turns": "timestamp", "max_gap_s": 1.0}, "max_gap_s caps what turns wait"),
        ({"turns": "timestamp", "arrivals": "concurrency", "concurrency": 1}, "have no place in a slot"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], words: str) -> None:
    with pytest.raises(TraceError, match=words):
        _plan(_lone(0.0), options=PlanOptions(**options))


def test_only_the_cap_shortens_gaps_and_it_says_so() -> None:
    rows = [*_turns("a", 0, 101, 104), _lone(200.0)]
    plan = _plan(*rows, options=PlanOptions(max_gap_s=10))
    assert plan.frame["delay_s"].to_list() == [0, 10, 2, 0]
    assert plan.frame["start_s"].to_list() == [0, 11, 14, 200]
    assert plan.notes == ("1 gaps were longer than 10 s and are cut to that.",)
    assert _plan(*rows).frame["delay_s"].to_list() == [0, 100, 2, 0]


def _mixed() -> list[Row]:
    """Short prompts get about 10 tokens, long ones about 1,000; some failed."""
    answered = [_lone(k, in_tok=10 + k % 5, out_tok=9 + k % 3) for k in range(100)]
    answered += [_lone(k, in_tok=5000 + k % 5, out_tok=999 + k % 3) for k in range(100)]
    failed = [_lone(200.0 + k, in_tok=[12, 5001][k % 2], out_tok=0, status="failed") for k in range(20)]
    return answered + failed


def test_failed_rows_are_sent_with_lengths_of_like_prompts() -> None:
    plan = _plan(*_mixed())
    sent = plan.frame.filter(pl.col("source_row") >= 200)
    assert sent.height == 20
    assert set(sent.filter(in_tok=12)["out_tok"].to_list()) == {9, 10, 11}
    assert set(sent.filter(in_tok=5001)["out_tok"].to_list()) == {999, 1000, 1001}
    assert plan.frame["out_tok"].min() == 9
    assert plan.unsendable == {}
    assert plan.notes == (
        "20 requests failed in the trace: they are sent like the others, with an output length drawn from answered "
        "requests with prompts of like length.",
    )
    drawn = [
        _plan(*_mixed(), options=PlanOptions(seed=seed)).frame["out_tok"].to_list() for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_failed_rows_are_drawn_from_their_own_model() -> None:
    rows = [_lone(k, model="big", out_tok=500) for k in range(100)]
    rows += [_lone(k, model="small", out_tok=5) for k in range(100)]
    rows += [_lone(200.0, model=name, out_tok=0, status="failed") for name in ("small", "big", "new")]
    out = _plan(*rows).frame.filter(pl.col("source_row") >= 200)["out_tok"].to_list()
    assert out[:2] == [5, 500]
    assert out[2] in (5, 500)


def test_failed_rows_can_be_left_out_or_cancelled() -> None:
    skipped = _plan(*_mixed(), options=PlanOptions(failed="skip"))
    assert skipped.num_requests == 200
    assert skipped.unsendable == {"failed_skipped": tuple(range(200, 220))}
    assert skipped.notes == ("20 requests are left out: they failed in the trace.",)
    cancelled = _plan(*_mixed(), options=PlanOptions(failed="cancel"))
    assert cancelled.frame["cancel_after_tok"].to_list() == [None] * 200 + [0] * 20
    assert cancelled.frame["out_tok"].min() == 9


def test_cancelled_rows_are_cancelled_where_they_were() -> None:
    rows = [_lone(k, out_tok=20) for k in range(80)] + [
        _lone(99.0, out_tok=n, status="cancelled") for n in (7, 300, 0)
    ]
    rows += [_lone(99.0, out_tok=None, status="cancelled")]
    frame = _plan(*rows).frame.tail(4)
    assert frame["cancel_after_tok"].to_list() == [7, 300, 0, 0]
    assert frame["out_tok"].to_list() == [20, 301, 20, 20]


def test_rows_without_a_prompt_are_listed() -> None:
    rows = [
        _lone(0),
        _lone(1, in_tok=0),
        _lone(2, in_tok=None),
        _lone(3, in_tok=0, out_tok=0, status="failed"),
    ]
    for failed in ("send", "skip", "cancel"):
        plan = _plan(*rows, options=PlanOptions(failed=failed))
        assert plan.unsendable == {"zero_input": (1, 2, 3)}
        assert plan.num_requests == 1
    with pytest.raises(TraceError, match="no request of this trace can be sent: 1 zero_input"):
        _plan(_lone(0, in_tok=None))
    with pytest.raises(TraceError, match="the trace is empty"):
        build_plan(Trace(_trace(_lone(0)).frame.clear(), TraceInfo()), PlanOptions())


def test_unknown_and_empty_answers() -> None:
    rows = [_lone(k, out_tok=44) for k in range(10)] + [_lone(11, out_tok=None), _lone(12, out_tok=0)]
    plan = _plan(*rows)
    assert plan.frame["out_tok"].to_list()[-2:] == [44, 1]
    assert [note.split()[0] for note in plan.notes] == ["1", "1"]
    with pytest.raises(TraceError, match="no answered request says its own"):
        _plan(_lone(0, out_tok=None))


def test_turns_go_on_around_what_is_left_out() -> None:
    rows = _turns("a", 0, 4, 20)
    rows[1] |= {"in_tok": 0, "e2e_s": 10.0}
    plan = _plan(*rows)
    assert plan.frame["after"].to_list() == [[], [0]]
    assert plan.frame["delay_s"].to_list() == [0, 3 + 6]
    assert plan.frame["start_s"].to_list() == [0, 20]
    rows[0] |= {"in_tok": 0}
    assert _plan(*rows).frame.select("start_s", "delay_s").rows() == [(0, 0)]


def test_lengths_scale_and_contexts_end() -> None:
    rows = [
        _lone(0, in_tok=1000, out_tok=100),
        _lone(1, in_tok=3, out_tok=1),
        _lone(2, in_tok=9000, out_tok=100),
    ]
    scaled = _plan(*rows, options=PlanOptions(length_factor=0.1))
    assert scaled.frame["in_tok"].to_list() == [100, 1, 900]
    assert scaled.frame["out_tok"].to_list() == [10, 1, 10]
    assert scaled.notes == ("All lengths are multiplied by 0.1.",)
    short = _plan(*rows, options=PlanOptions(max_tokens=1100))
    assert short.unsendable == {"too_long": (2,)}
    assert short.frame["in_tok"].to_list() == [1000, 3]
    cut = _plan(*rows, options=PlanOptions(max_tokens=1099, too_long="cut"))
    assert cut.frame["in_tok"].to_list() == [999, 3, 999]
    assert cut.frame["out_tok"].to_list() == [100, 1, 100]
    assert cut.notes == ("2 prompts are cut at the end to fit into 1,099 tokens with their answer.",)
    answers = _plan(*rows, options=PlanOptions(max_tokens=50, too_long="cut"))
    assert answers.unsendable == {"too_long": (0, 2)}


def _blocks(t: float, in_tok: int, *ids: int, **more: Any) -> Row:
    return {"t_s": t, "in_tok": in_tok, "block_ids": list(ids), **more}


def test_equal_blocks_are_equal_words() -> None:
    plan = _plan(_blocks(0, 1100, 1, 2, 3), _blocks(1, 1300, 1, 2, 4), _blocks(2, 600, 9, 2), block_size=512)
    assert plan.frame["segment_toks"].to_list() == [[512, 512, 76], [512, 512, 276], [512, 88]]
    keys = plan.frame["segment_keys"].to_list()
    assert keys[0][:2] == keys[1][:2]
    assert keys[2][1] == keys[0][1]
    assert len({key for one in keys for key in one}) == 5
    assert planned_hit_rate(plan, 512) == pytest.approx(2 / 8)
    halves = _plan(
        _blocks(0, 1100, 1, 2, 3),
        _blocks(1, 1300, 1, 2, 4),
        block_size=512,
        options=PlanOptions(length_factor=0.5),
    )
    assert halves.frame["segment_toks"].to_list() == [[256, 256, 38], [256, 256, 138]]
    tiny = _plan(_blocks(0, 1100, 1, 2, 3), block_size=512, options=PlanOptions(length_factor=1e-4))
    assert tiny.frame["segment_toks"].to_list() == [[1, 1, 1]]
    assert "a block has a whole number of tokens" in tiny.notes[1]


def test_blocks_that_do_not_fit_the_prompt() -> None:
    plan = _plan(
        _blocks(0, 150, 1), _blocks(1, 64, 1, 2, 3), _blocks(2, 70), _lone(3, block_ids=None), block_size=64
    )
    assert plan.frame["segment_toks"].to_list() == [[64, 86], [64], [70], [100]]
    assert plan.frame["segment_keys"].explode().n_unique() == 4


def test_blocks_of_a_program_are_its_own() -> None:
    rows = [_blocks(0, 64, 1, program_id=name) for name in ("a", "a", "b", None, None)]
    keys = (
        _plan(*rows, block_size=64, hash_scope="program")
        .frame.sort("source_row")["segment_keys"]
        .explode()
        .to_list()
    )
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4
    assert _plan(*rows, block_size=64).frame["segment_keys"].explode().n_unique() == 1


def test_blocks_of_varying_length() -> None:
    rows = [
        _blocks(0, 100, 1, 2, block_tokens=[30, 60]),
        _blocks(1, 80, 1, 3, block_tokens=[30, 60]),
        _blocks(2, 100, 1, 4, 5, block_tokens=[30, None, None]),
    ]
    assert _plan(*rows).frame["segment_toks"].to_list() == [[30, 60, 10], [30, 50], [30, 35, 35]]
    without = [{name: value for name, value in row.items() if name != "block_tokens"} for row in rows]
    plan = _plan(*without)
    assert plan.frame["segment_toks"].to_list() == [[100], [80], [100]]
    assert "How long the trace's blocks are is unknown" in plan.notes[0]


def test_a_block_that_goes_on_begins_with_what_the_prompt_before_ended_with() -> None:
    rows = _turns("a", 0, 5)
    rows[0] |= {"in_tok": 100, "block_ids": [1], "out_tok": 20}
    rows[1] |= {"in_tok": 200, "block_ids": [1, 2, 3]}
    plan = _plan(*rows, block_size=64)
    assert plan.frame["segment_toks"].to_list() == [[64, 36], [64, 64, 64, 8]]
    assert _common(plan, 0, 1) == 100
    assert plan.frame["shared_tok"].to_list() == [0, 120]


def _grown(*lengths: tuple[int, int], **more: Any) -> list[Row]:
    rows = _turns("a", *(10.0 * k for k in range(len(lengths))), **more)
    return [row | {"in_tok": i, "out_tok": o} for row, (i, o) in zip(rows, lengths, strict=True)]


def test_prompts_that_grow_hold_the_prompt_and_the_answer_before() -> None:
    plan = _plan(*_grown((100, 10), (150, 20), (200, 5), (204, 7), (90, 1), (91, 1)))
    assert plan.frame["shared_tok"].to_list() == [0, 110, 170, 0, 0, 0]
    assert [len(_text(plan, k)) for k in range(6)] == [1, 3, 5, 6, 1, 2]
    # Grown by less than the answer: the prompt is kept. Shrunk: all is new.
    assert _common(plan, 2, 3) == 200
    assert _common(plan, 3, 4) == 0
    assert _common(plan, 4, 5) == 90
    assert _common(plan, 0, 2) == 100
    assert _common(plan, 1, 2) == 150


def test_prompts_of_unknown_scope_share_nothing() -> None:
    plan = _plan(*_grown((100, 10), (150, 20)), input_scope="unknown")
    assert _common(plan, 0, 1) == 0
    assert plan.frame["shared_tok"].to_list() == [0, 0]
    assert "does not say whether prompts hold earlier turns" in plan.notes[0]


def test_counts_of_shared_tokens_are_believed() -> None:
    # Whole blocks of 64: 64 covers a prompt of 100 but for its partial block; 128 of 300 does not.
    rows = _grown((100, 10), (300, 20), (400, 5), (500, 5))
    for row, shared in zip(rows, (0, 64, 128, 0), strict=True):
        row["lcp_prev_tok"] = row["cached_tok"] = shared
    plan = _plan(*rows, input_scope="unknown")
    assert plan.frame["shared_tok"].to_list() == [0, 110, 0, 0]
    assert [_common(plan, k, k + 1) for k in range(3)] == [100, 128, 0]


def test_exact_counts_are_exact() -> None:
    rows = _grown((100, 10), (300, 20), (400, 5))
    for row, shared in zip(rows, (0, 99, 300), strict=True):
        row["cached_tok"] = shared
    plan = _plan(*rows)
    assert [_common(plan, k, k + 1) for k in range(2)] == [99, 300]
    assert plan.frame["shared_tok"].to_list() == [0, 0, 320]


def test_an_answer_that_was_not_given_is_in_no_history() -> None:
    rows = _grown((100, 10), (150, 0), (150, 5), (200, 5))
    rows[1]["status"] = "failed"
    plan = _plan(*rows)
    # The failed one is sent and answered, so a live history would hold what the trace's does not.
    assert plan.frame["shared_tok"].to_list() == [0, 110, 0, 155]
    assert _common(plan, 1, 2) == 150
    left = _plan(*rows, options=PlanOptions(failed="skip"))
    assert left.frame["shared_tok"].to_list() == [0, 110, 155]
    assert left.frame["source_row"].to_list() == [0, 2, 3]


def test_overlapping_calls_share_what_they_both_came_after() -> None:
    rows = _grown((100, 10), (150, 20), (160, 20), (300, 1))
    for row, t, took in zip(rows, (0, 2, 3, 20), (1, 9, 2, 1), strict=True):
        row |= {"t_s": float(t), "e2e_s": float(took)}
    plan = _plan(*rows)
    assert _common(plan, 1, 2) == 110
    assert plan.frame["after"].to_list() == [[], [0], [0], [1, 2]]
    assert plan.frame["shared_tok"].to_list() == [0, 110, 0, 180]


def test_cut_prompts_stay_shared_but_hold_no_live_history() -> None:
    rows = _grown((100, 10), (150, 20), (200, 5), (220, 5))
    plan = _plan(*rows, options=PlanOptions(max_tokens=165, too_long="cut"))
    assert plan.frame["in_tok"].to_list() == [100, 145, 160, 160]
    assert _common(plan, 1, 2) == 145
    assert plan.frame["shared_tok"].to_list() == [0, 110, 0, 0]


def test_a_sub_agent_begins_like_its_root_as_far_as_it_was_cached() -> None:
    rows = [
        {"program_id": "r", "t_s": 0.0, "e2e_s": 1.0, "in_tok": 1000, "cached_tok": 0},
        {"program_id": "r.a", "parent_id": "r", "t_s": 5.0, "e2e_s": 1.0, "in_tok": 900, "cached_tok": 640},
        {"program_id": "r.b", "parent_id": "r", "t_s": 5.0, "e2e_s": 1.0, "in_tok": 900, "cached_tok": 0},
    ]
    plan = _plan(*rows)
    assert [_common(plan, 0, k) for k in (1, 2)] == [640, 0]
    assert plan.frame["shared_tok"].to_list() == [0, 0, 0]
    assert plan.frame["group"].to_list() == [0, 0, 0]
    assert plan.frame["parent"].to_list() == [None, "r", "r"]


def test_parents_are_in_the_hash_where_there_are_any() -> None:
    rows = [*_turns("a", 0, 6), *_turns("b", 1, 40)]
    base = _plan(*rows)
    assert plan_hash(replace(base, frame=base.frame.drop("parent"))) == base.sha256
    told = base.frame.with_columns(pl.lit("a").alias("parent"))
    assert plan_hash(replace(base, frame=told)) != base.sha256


def test_equal_seeds_make_equal_plans_and_every_change_another_hash() -> None:
    rows = [*_mixed(), *_turns("a", 0, 6)]
    base = _plan(*rows, t_quantum_s=1.0)
    assert _plan(*rows, t_quantum_s=1.0).sha256 == base.sha256
    others = [
        _plan(*rows, t_quantum_s=1.0, options=PlanOptions(seed=1)),
        _plan(*rows, t_quantum_s=1.0, options=PlanOptions(failed="cancel")),
        _plan(*rows, t_quantum_s=1.0, options=PlanOptions(max_gap_s=1.0)),
        _plan(*rows),
        _plan(*rows, t_quantum_s=1.0, sha256="ab"),
        _plan(*rows[:-1], t_quantum_s=1.0),
    ]
    assert len({base.sha256, *(other.sha256 for other in others)}) == 7
    trace = _trace(*rows, t_quantum_s=1.0)
    elsewhere = Trace(trace.frame, replace(trace.info, source="other.csv"))
    assert build_plan(elsewhere, PlanOptions()).sha256 == base.sha256


@st.composite
def _traces(draw: st.DrawFn) -> tuple[Trace, PlanOptions]:
    names = st.sampled_from(["a", "b", "c", None])
    maybe = st.one_of(st.none(), st.integers(0, 300))
    blocks = draw(st.sampled_from([None, 16]))
    above = {name: draw(names) for name in "abc"}
    rows: list[Row] = [_lone(0, in_tok=20, out_tok=2)]
    for _ in range(draw(st.integers(0, 10))):
        program = draw(names)
        row: Row = {
            "program_id": program,
            "parent_id": above.get(program or ""),
            "t_s": float(draw(st.integers(0, 50))),
        }
        row |= {
            "in_tok": draw(maybe),
            "out_tok": draw(maybe),
            "cached_tok": draw(maybe),
            "e2e_s": draw(maybe),
        }
        row |= {"status": draw(st.sampled_from(["ok", "failed", "cancelled", "unknown"]))}
        if blocks:
            row["block_ids"] = draw(st.one_of(st.none(), st.lists(st.integers(0, 3), max_size=20)))
        rows.append(row)
    arrivals: Arrivals = draw(st.sampled_from(get_args(Arrivals)))
    options = PlanOptions(
        arrivals=arrivals,
        rate=2.0 if arrivals == "rate" else None,
        concurrency=2 if arrivals == "concurrency" else None,
        failed=draw(st.sampled_from(["send", "skip", "cancel"])),
        length_factor=draw(st.sampled_from([1.0, 0.03, 2.5])),
        max_tokens=draw(st.sampled_from([None, 120])),
        too_long=draw(st.sampled_from(["skip", "cut"])),
        max_gap_s=draw(st.sampled_from([None, 4.0])),
        seed=draw(st.integers(0, 3)),
    )
    scope = draw(st.sampled_from(["full", "unknown"]))
    hashes = draw(st.sampled_from(["global", "program"]))
    quantum = draw(st.sampled_from([0.0, 1.0]))
    return _trace(
        *rows, input_scope=scope, hash_scope=hashes, block_size=blocks, t_quantum_s=quantum
    ), options


@settings(max_examples=25, deadline=None)
@given(_traces())
def test_every_plan_is_whole(case: tuple[Trace, PlanOptions]) -> None:
    trace, options = case
    plan = build_plan(trace, options)
    frame = plan.frame
    assert frame["request"].to_list() == list(range(frame.height))
    left_out = [row for rows in plan.unsendable.values() for row in rows]
    assert sorted([*frame["source_row"].to_list(), *left_out]) == list(range(trace.frame.height))
    assert frame["segment_toks"].list.sum().to_list() == frame["in_tok"].to_list()
    assert frame["segment_toks"].list.min().min() >= 1  # type: ignore[operator]
    assert min(frame["in_tok"].min(), frame["out_tok"].min()) >= 1  # type: ignore[type-var, operator]
    if options.max_tokens:
        assert (frame["in_tok"] + frame["out_tok"]).max() <= options.max_tokens  # type: ignore[operator]
    groups = frame["group"].to_list()
    for row in frame.iter_rows(named=True):
        assert all(groups[other] == row["group"] and other < row["request"] for other in row["after"])
        assert row["cancel_after_tok"] is None or 0 <= row["cancel_after_tok"] < row["out_tok"]
        assert row["delay_s"] >= 0
    if options.arrivals != "concurrency":
        starts = frame["start_s"].to_list()
        assert starts == sorted(starts)
        assert starts[0] == 0
    assert groups == sorted(groups) or options.arrivals != "concurrency"
    before: dict[str, int] = {}
    for row in frame.iter_rows(named=True):
        if row["shared_tok"]:
            earlier = frame.row(before[row["program"]], named=True)
            assert row["shared_tok"] == earlier["in_tok"] + earlier["out_tok"] < row["in_tok"]
            if not trace.info.block_size:
                assert _common(plan, earlier["request"], row["request"]) == earlier["in_tok"]
        before[row["program"]] = row["request"]


def test_mooncake_shares_what_the_trace_shares(shared_data: Any) -> None:
    trace = read_trace(shared_data / "traces" / "mooncake" / "conversation_trace.jsonl")
    plan = build_plan(trace, PlanOptions())
    assert plan.num_requests == 12_031
    assert planned_hit_rate(plan, 512) == pytest.approx(0.366, abs=0.01)
    assert plan.frame["in_tok"].equals(trace.frame["in_tok"])
    assert plan.frame["out_tok"].equals(trace.frame["out_tok"])


def test_weka_agents_share_what_the_trace_shares(shared_data: Any) -> None:
    trace = read_trace(shared_data / "agents" / "weka_requests.csv.gz")
    plan = build_plan(trace, PlanOptions(arrivals="concurrency", concurrency=8, max_programs=60))
    rows = trace.frame[plan.frame["source_row"].to_numpy()]
    ideal = float(rows.select(pl.col("cached_tok").sum() / pl.col("in_tok").sum()).item())
    assert planned_hit_rate(plan, 64) == pytest.approx(ideal, abs=0.005)
    assert plan.frame["group"].n_unique() == 60
    assert "sub-agents do not say when they began" in plan.notes[-1]


def test_lmcache_says_that_prompts_are_missing(shared_data: Any) -> None:
    trace = read_trace(shared_data / "agents" / "lmcache_agentic_calls.jsonl")
    with pytest.raises(TraceError, match="use arrivals by rate or by concurrency"):
        build_plan(trace, PlanOptions())
    with pytest.raises(TraceError, match="no request of this trace can be sent: 4,976 zero_input"):
        build_plan(trace, PlanOptions(arrivals="rate", rate=1.0))
