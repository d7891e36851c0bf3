"""TraceLab's rounds and the CSV made of them. All rows are synthetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from braid.lab.readers import read_trace
from braid.lab.table import Trace, TraceError


def event(kind: str, second: float) -> dict[str, Any]:
    return {"event_type": kind, "timestamp": f"2026-05-04T10:00:{second:06.3f}Z", "source": "made"}


def called(name: str, wall_ms: float | None = 900, internal_ms: float | None = None) -> dict[str, Any]:
    times = {"tool_wall_latency_ms": wall_ms, "tool_internal_latency_ms": internal_ms}
    return {"tool_name": name, "input_chars": 3, "is_error": False, **times}


def line(index: int, events: list[dict[str, Any]], *tools: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "provider": "claude",
        "session_id": "claude:a",
        "round_index": index,
        "round_id": f"msg_{index}",
        "model": "m-1",
        "input_tokens_total": 1000 + 100 * index,
        "prefix_tokens": 900,
        "newly_append_tokens": 100 + 100 * index,
        "output_tokens": 40,
        "reasoning_output_tokens": None,
        "timing_events": events,
        "tools": list(tools),
        "current_user_message_count": 0,
        "current_tool_result_count": 1,
        **more,
    }


def session() -> list[dict[str, Any]]:
    asked = [event("user_message", 1), event("reasoning", 3), event("tool_call", 4), event("tool_call", 5)]
    told = [event("tool_result", 6), event("tool_result", 9), event("text", 11), event("usage_report", 12)]
    again = [event("user_message", 31), event("text", 33)]
    people = {"current_user_message_count": 1, "current_tool_result_count": 0}
    tools = (called("Write", 400), called("Bash", 4000, 3500), called("Bash"))
    return [line(0, asked, *tools, **people), line(1, told), line(2, again, **people)]


def read(folder: Path, lines: list[dict[str, Any]]) -> Trace:
    path = folder / "rounds.jsonl"
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    return read_trace(path)


def test_rounds(tmp_path: Path) -> None:
    trace = read(tmp_path, session())
    frame = trace.frame
    assert (trace.info.format, trace.info.licence) == ("tracelab", "CC-BY-4.0")
    assert frame["t_s"].to_list() == [0.0, 8.0, 30.0]
    assert frame["e2e_s"].to_list() == pytest.approx([4.0, 2.0, 2.0])
    assert frame["gap_before_s"].to_list() == [None, pytest.approx(4.0), pytest.approx(20.0)]
    assert frame["turn"].to_list() == [0, 1, 2]
    assert frame["in_tok"].to_list() == [1000, 1100, 1200]
    assert frame["found_tok"].to_list() == [900] * 3
    assert frame["cached_tok"].null_count() == 3


def test_how_rounds_end_and_what_they_bring(tmp_path: Path) -> None:
    frame = read(tmp_path, session()).frame
    assert frame["finish"].to_list() == ["tool", "text", "text"]
    assert frame["tool"].to_list() == ["Bash+Write", None, None]
    assert frame["tool_s"].to_list() == [3.5, None, None]
    assert frame["input_kind"].to_list() == ["user", "tool", "user"]


def test_rounds_are_turns_by_their_own_count_and_repeats_count_once(tmp_path: Path) -> None:
    lines = session()
    trace = read(tmp_path, [*lines, lines[1], line(0, [], session_id="codex:b", provider="codex")])
    frame = trace.frame
    repeats = next(finding for finding in trace.findings if finding.name == "repeats")
    assert (repeats.count, repeats.rows) == (1, (4,))
    assert (trace.num_requests, trace.num_programs) == (4, 2)
    other = frame.row(by_predicate=pl.col("program_id") == "codex:b", named=True)
    assert (other["t_s"], other["e2e_s"], other["finish"], other["turn"]) == (None, None, None, 0)


def test_a_broken_round_is_left_out(tmp_path: Path) -> None:
    trace = read(
        tmp_path,
        [*session(), line(3, [], output_tokens=-1), line(4, [event("text", 1) | {"timestamp": "x"}])],
    )
    bad = next(finding for finding in trace.findings if finding.name == "bad_rows")
    assert bad.rows == (4, 5)
    assert trace.num_requests == 3


HEADER = "id,input_len,output_len,arrival_time,round_idx,tool_wait_after_ms,prefix_len\n"


def test_the_csv(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(HEADER + "s1,500,20,10.5,0,1500.0,0\ns2,70,9,11.0,0,0,0\ns1,30,10,10.5,1,0,520\n")
    trace = read_trace(path)
    frame = trace.frame.sort("program_id", "turn")
    assert frame["program_id"].to_list() == ["s1", "s1", "s2"]
    assert frame["in_tok"].to_list() == [500, 550, 70]
    assert frame["gap_before_s"].to_list() == [None, 1.5, None]
    assert frame["finish"].to_list() == ["tool", None, None]
    assert frame["t_s"].null_count() == 3
    assert trace.info.format == "tracelab"


def test_a_csv_without_waits_is_not_known(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("id,input_len,output_len,round_idx\ns1,5,2,0\n")
    with pytest.raises(TraceError, match="tracelab-csv"):
        read_trace(path)
