from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from braid.lab.readers import read_trace
from braid.lab.synthetic.pair import with_lengths
from braid.lab.table import Trace, TraceError, TraceInfo, conform


def trace(*rows: tuple[str, int, int | None, int, int | None], **more: Any) -> Trace:
    """Rows of program, turn, prompt, answer, cached."""
    names = ("program_id", "turn", "in_tok", "out_tok", "cached_tok")
    frame = pl.DataFrame(
        rows, schema=dict.fromkeys(names, pl.Int64) | {"program_id": pl.String}, orient="row"
    )
    return Trace(conform(frame.with_columns(**more)), TraceInfo(source="made", licence="A", notes=("kept",)))


def course(name: str, *prompts: int) -> list[tuple[str, int, int, int, int]]:
    held = (0, *prompts)
    return [(name, turn, tokens, 5, held[turn]) for turn, tokens in enumerate(prompts)]


def bare(name: str, *answers: int) -> list[tuple[str, int, None, int, None]]:
    return [(name, turn, None, out, None) for turn, out in enumerate(answers)]


def prompts(made: Trace, name: str) -> list[int]:
    return made.frame.filter(pl.col("program_id") == name).sort("turn")["in_tok"].to_list()


def test_a_program_gets_the_course_of_one_that_is_long_enough() -> None:
    source = trace(*course("short", 10), *course("long", 100, 200, 300))
    made = with_lengths(trace(*bare("a", 5, 5, 5), *bare("b", 5, 5)), source)
    assert prompts(made, "a") == [100, 200, 300]
    assert prompts(made, "b") == [100, 200]
    assert made.frame.filter(pl.col("program_id") == "a")["cached_tok"].to_list() == [0, 100, 200]


def test_a_prompt_holds_the_turn_before_with_its_own_answer() -> None:
    made = with_lengths(trace(*bare("a", 500, 5, 5)), trace(*course("s", 100, 200, 300)))
    assert prompts(made, "a") == [100, 601, 607]
    assert made.frame["cached_tok"].to_list() == [0, 100, 601]


def test_compaction_and_edits_stay() -> None:
    rows = [("s", 0, 900, 5, 0), ("s", 1, 100, 5, 40), ("s", 2, 990, 5, 64)]
    made = with_lengths(trace(*bare("a", 300, 300, 5)), trace(*rows))
    assert prompts(made, "a") == [900, 100, 990]
    assert made.frame["cached_tok"].to_list() == [0, 40, 64]


def test_a_program_longer_than_all_courses_goes_on_growing() -> None:
    made = with_lengths(trace(*bare("a", 5, 5, 5, 5)), trace(*course("s", 100, 200)))
    assert prompts(made, "a") == [100, 200, 300, 400]


def test_lengths_of_its_own_and_all_else_stay() -> None:
    mixed = trace(*course("own", 7, 70), *bare("a", 5), note=pl.lit("x"))
    made = with_lengths(mixed, trace(*course("s", 100)), seed=9)
    assert prompts(made, "own") == [7, 70]
    assert made.frame["note"].to_list() == ["x"] * 3
    assert made.info.notes[0] == "kept"
    assert (
        "1 programs are not their own: whole courses of 1 programs of made, drawn with seed 9"
        in made.info.notes[1]
    )


def test_programs_that_others_started_lend_nothing() -> None:
    source = trace(*course("root", 100), *course("sub", 5))
    frame = source.frame.with_columns(
        pl.when(pl.col("program_id") == "sub").then(pl.lit("root")).alias("parent_id")
    )
    made = with_lengths(
        trace(*(row for i in range(20) for row in bare(f"p{i}", 1))), Trace(frame, source.info)
    )
    assert set(made.frame["in_tok"]) == {100}


def test_nothing_to_give_or_to_take() -> None:
    with pytest.raises(TraceError, match="no program is without prompt lengths"):
        with_lengths(trace(*course("s", 1)), trace(*course("s", 1)))
    with pytest.raises(TraceError, match="no program has prompt lengths"):
        with_lengths(trace(*bare("a", 1)), trace(*bare("a", 1)))


def test_real_sessions_without_lengths(shared_data: Path) -> None:
    calls = read_trace(shared_data / "agents/lmcache_agentic_calls.jsonl")
    lent = read_trace(shared_data / "agents/weka_requests.csv.gz")
    made = with_lengths(calls, lent, seed=1)
    assert made.frame["in_tok"].null_count() == made.frame["cached_tok"].null_count() == 0
    assert (made.frame["cached_tok"] <= made.frame["in_tok"]).all()
    same = [name for name in calls.frame.columns if name not in ("in_tok", "cached_tok")]
    assert made.frame.select(same).equals(calls.frame.select(same))
    assert made.frame.equals(with_lengths(calls, lent, seed=1).frame)
    assert made.info.licence == "MIT (dataset card); Apache-2.0"
    assert not any("missing" in note for note in made.info.notes)
