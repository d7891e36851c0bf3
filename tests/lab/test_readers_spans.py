"""Spans. All are synthetic."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from braid.lab.readers import read_trace
from braid.lab.table import Trace, TraceError


def flat(start: float, end: float, session: str = "s", **more: Any) -> dict[str, Any]:
    return {
        "session_id": session,
        "span_id": f"{start}",
        "start_time_s": start,
        "end_time_s": end,
        "input_tokens": 10,
        "output_tokens": 5,
        "is_error": False,
        "response_model": "m-1",
        "harness": "h",
        **more,
    }


def trace_of(folder: Path, *spans: Any) -> Trace:
    path = folder / "spans.jsonl"
    path.write_text("".join((span if isinstance(span, str) else json.dumps(span)) + "\n" for span in spans))
    return read_trace(path)


def check_one(trace: Trace) -> None:
    row = trace.frame.row(0, named=True)
    assert trace.info.format == "spans"
    assert (row["in_tok"], row["out_tok"], row["model"]) == (10, 5, "m-1")
    assert (row["program_id"], row["turn"], row["kind"]) == ("s", 0, "agent")
    assert row["e2e_s"] == pytest.approx(2.5)
    assert row["status"] == "ok"


def test_flat_rows_and_overlap(tmp_path: Path) -> None:
    trace = trace_of(tmp_path, flat(100, 102.5), flat(101, 103), flat(110, 111, is_error=True))
    check_one(trace)
    assert trace.frame["gap_before_s"].to_list() == [None, -1.5, 7.0]
    assert trace.frame["status"].to_list() == ["ok", "ok", "failed"]
    assert trace.frame["harness"].to_list() == ["h"] * 3
    assert trace.frame["t_s"].to_list() == [0.0, 1.0, 10.0]


@pytest.mark.parametrize(
    ("reasons", "finish"),
    [
        ("stop", "text"),
        (["tool_calls", "stop"], "tool"),
        ("['length']", "length"),
        ({"values": [{"stringValue": "stop_sequence"}]}, "stop"),
        ("odd", None),
        (7, None),
    ],
)
def test_finish_reasons(tmp_path: Path, reasons: Any, finish: str | None) -> None:
    assert trace_of(tmp_path, flat(1, 2, finish_reasons=reasons)).frame["finish"].to_list() == [finish]


def otlp() -> dict[str, Any]:
    values = [
        ("gen_ai.usage.input_tokens", {"intValue": "10"}),
        ("gen_ai.usage.output_tokens", {"intValue": 5}),
        ("gen_ai.response.model", {"stringValue": "m-1"}),
        ("gen_ai.conversation.id", {"stringValue": "s"}),
    ]
    call = {
        "spanId": "ab",
        "startTimeUnixNano": "1700000000000000001",
        "endTimeUnixNano": "1700000002500000001",
        "attributes": [{"key": key, "value": value} for key, value in values],
        "status": {},
    }
    tool = {**call, "attributes": []}
    return {"resourceSpans": [{"scopeSpans": [{"spans": [call, tool]}]}]}


@pytest.mark.parametrize("indent", [None, 2])
def test_otlp(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "spans.json"
    path.write_text(json.dumps(otlp(), indent=indent))
    trace = read_trace(path)
    check_one(trace)
    assert {finding.name: finding.count for finding in trace.findings}["other_spans"] == 1


@pytest.mark.parametrize("as_list", [False, True])
def test_the_sdks_json(tmp_path: Path, as_list: bool) -> None:
    attributes = {
        "gen_ai.usage.prompt_tokens": 10,
        "gen_ai.usage.completion_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.request.model": "m-1",
        "gen_ai.conversation.id": "s",
    }
    span = {
        "start_time": "2026-01-02T03:04:05.000000Z",
        "end_time": "2026-01-02T03:04:07.500000Z",
        "attributes": attributes,
        "status": {"status_code": "UNSET"},
    }
    failed = {**span, "status": {"status_code": "ERROR"}}
    path = tmp_path / "spans.json"
    spans = [span, failed]
    path.write_text(json.dumps(spans, indent=1) if as_list else "\n".join(map(json.dumps, spans)))
    trace = read_trace(path)
    check_one(trace)
    assert trace.frame["found_tok"].to_list() == [4, 4]
    assert trace.frame["status"].to_list() == ["ok", "failed"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (flat(1, 0), "ends before it starts"),
        (flat(-1, 2), "no time"),
        (flat(1, 2, input_tokens=-1), "negative"),
        (flat(1, 2, input_tokens="10"), "not a whole number"),
        (flat(1, 2, start_time_s=None), "no start time"),
        ("{", "not JSON"),
    ],
)
def test_bad_spans_are_left_out(tmp_path: Path, bad: Any, reason: str) -> None:
    trace = trace_of(tmp_path, flat(100, 101), bad)
    assert trace.num_requests == 1
    assert trace.findings[0].name == "bad_rows"
    assert trace.findings[0].rows == (2,)
    assert reason in trace.findings[0].text


def test_no_model_call_at_all(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="1 spans name no token usage"):
        trace_of(tmp_path, {"start_time": "2026-01-02T03:04:05Z", "attributes": {"a": 1}})
