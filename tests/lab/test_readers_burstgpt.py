"""The 30 real rows; every other row here is synthetic."""

from __future__ import annotations

import gzip
from pathlib import Path

import polars as pl
import pytest

from braid.lab.readers import read_trace
from braid.lab.table import Trace, TraceError

REAL = Path(__file__).parents[1] / "data" / "burstgpt_1_first30.csv"
SIX = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
EIGHT = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
A = "0f8c2a34-1111-2222-3333-444455556666"
SYNTHETIC_8 = EIGHT + (
    f"19440110.0,{A},4.5,ChatGPT,100,20,120,Conversation log\n"
    "19440111.0,,2.0,GPT-4,30000,7000,37000,API log\n"
    "19440111.0,,0.0,GPT-4,500,0,500,API log\n"
    f"19440200.0,{A},9.0,ChatGPT,150,30,180,Conversation log\n"
)


def written(folder: Path, text: str, name: str = "trace.csv") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def names(trace: Trace) -> dict[str, int]:
    return {finding.name: finding.count for finding in trace.findings}


def test_the_real_rows_exactly() -> None:
    trace = read_trace(REAL)
    frame = trace.frame
    assert (trace.num_requests, trace.num_programs, trace.span_s) == (30, 0, 2288.0)
    assert frame["t_s"].to_list()[:3] == [5.0, 45.0, 118.0]
    assert frame.filter(pl.col("t_s") == 261)["out_tok"].to_list() == [1656]
    assert frame["model"].value_counts().sort("model").rows() == [("ChatGPT", 23), ("GPT-4", 7)]
    assert frame["kind"].unique().to_list() == ["conv"]
    assert (frame["in_tok"].sum(), frame["out_tok"].sum()) == (17722, 10280)
    assert "Total tokens" not in frame.columns
    assert (trace.info.licence, trace.info.t_quantum_s) == ("CC-BY-4.0", 1.0)


def test_the_row_at_1106_failed_and_cannot_be_sent() -> None:
    trace = read_trace(REAL)
    row = trace.frame.row(by_predicate=pl.col("t_s") == 1106, named=True)
    assert (row["status"], row["in_tok"], row["out_tok"]) == ("failed", 0, 0)
    found = {finding.name: finding for finding in trace.findings}
    assert found["failures"].rows == found["unsendable"].rows == found["zero_rows"].rows == (21,)
    assert "invented_rows" not in found
    assert "constant_spacing" not in found


def test_eight_columns(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, SYNTHETIC_8))
    frame = trace.frame
    assert frame["t_s"].to_list() == [110.0, 111.0, 111.0, 200.0]
    assert frame["program_id"].to_list() == [A, None, None, A]
    assert frame["turn"].to_list() == [0, None, None, 1]
    assert frame["gap_before_s"].to_list() == [None, None, None, 85.5]
    assert frame["e2e_s"].to_list() == [4.5, 2.0, 0.0, 9.0]
    assert frame["status"].to_list() == ["ok", "ok", "failed", "ok"]
    assert frame["in_tok"].max() == 30000
    assert trace.num_programs == 1
    assert trace.info.input_scope == "unknown"
    assert "day 225" in trace.info.notes[0]


def test_columns_go_by_name(tmp_path: Path) -> None:
    straight = read_trace(REAL)
    frame = pl.read_csv(REAL, infer_schema=False)
    order = ["Log Type", "Total tokens", "Response tokens", "Timestamp", "Request tokens", "Model"]
    frame.select(order).write_csv(tmp_path / "shuffled.csv")
    wide = frame.with_columns(pl.lit("").alias("Session ID"), pl.lit("").alias("Elapsed time"))
    wide.select(*EIGHT.strip().split(",")).write_csv(tmp_path / "eight.csv")
    for name in ("shuffled.csv", "eight.csv"):
        assert read_trace(tmp_path / name).frame.equals(straight.frame)


def test_gzip_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    text = REAL.read_text().replace("\n", "\r\n")
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + text.encode()))
    assert read_trace(tmp_path / "x.csv.gz").frame.equals(read_trace(REAL).frame)


def test_filtered_counts_are_the_files(tmp_path: Path) -> None:
    frame = read_trace(written(tmp_path, SYNTHETIC_8)).frame
    assert frame["kind"].to_list() == ["conv", "api", "api", "conv"]


def test_unknown_columns_are_kept(tmp_path: Path) -> None:
    text = "Region," + SIX + "east,5,ChatGPT,1,2,3,API log\nwest,6,ChatGPT,1,2,3,API log\n"
    assert read_trace(written(tmp_path, text)).frame["Region"].to_list() == ["east", "west"]


BAD = SIX + (
    "5,ChatGPT,10,5,15,API log\n"
    "6,ChatGPT,-3,5,2,API log\n"
    "7,ChatGPT,ten,5,15,API log\n"
    "NaN,ChatGPT,1,5,6,API log\n"
    "9,ChatGPT,1,5,6,API log,more\n"
    "\n"
    "10,ChatGPT,1.5,5,6,API log\n"
    "11.0,ChatGPT,12.0,5,17,API log\n"
    "inf,ChatGPT,1,5,6,API log\n"
    '12,"ChatGPT",7,5,12,"API log"\n'
    "13,ChatGPT,,5,12,API log\n"
    "14,ChatGPT,4,1"
)


def test_unusable_rows_are_left_out_with_row_and_reason(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, BAD))
    assert trace.frame["in_tok"].to_list() == [10, 12, 7]
    assert trace.frame["source_row"].to_list() == [1, 8, 10]
    found = {finding.name: finding for finding in trace.findings}
    assert found["bad_rows"].count == 8
    assert found["bad_rows"].rows == (2, 3, 4, 5, 7, 9, 11, 12)
    for words in ("row 2: Request tokens is '-3', negative", "row 3: Request tokens is 'ten', not a whole"):
        assert words in found["bad_rows"].text
    assert found["half_line"].rows == (12,)
    assert found["bad_rows"].level == found["half_line"].level == "error"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("NaN,ChatGPT,1,5,6,API log", "not finite"),
        ("inf,ChatGPT,1,5,6,API log", "not finite"),
        ("1,ChatGPT,1.5,5,6,API log", "'1.5', not a whole number"),
        ("1,ChatGPT,,5,6,API log", "Request tokens is missing"),
        ("1,ChatGPT,1,5,6,API log,x", "7 fields where the header has 6"),
        ("1,ChatGPT,1", "3 fields where the header has 6"),
    ],
)
def test_the_reason_of_a_bad_row(tmp_path: Path, line: str, reason: str) -> None:
    trace = read_trace(written(tmp_path, SIX + "1,ChatGPT,1,5,6,API log\n" + line + "\n"))
    assert trace.num_requests == 1
    assert reason in trace.findings[0].text
    assert trace.findings[0].rows == (2,)


def test_a_cut_log_type_is_a_half_line(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, SIX + "1,ChatGPT,1,5,6,API log\n2,GPT-4,1,5,6,API l"))
    assert trace.num_requests == 1
    assert {"bad_rows", "half_line"} <= names(trace).keys()


def test_an_unknown_log_type_stays_without_kind(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, SIX + "1,ChatGPT,1,5,6,Batch log\n2,GPT-4,1,5,6,API log\n"))
    assert trace.frame["kind"].to_list() == [None, "api"]
    assert names(trace)["unknown_values"] == 1


def test_a_wrong_total_is_said(tmp_path: Path) -> None:
    trace = read_trace(written(tmp_path, SIX + "1,ChatGPT,1,5,7,API log\n"))
    assert names(trace)["total_mismatch"] == 1


def test_time_that_runs_backwards_is_sorted_and_said(tmp_path: Path) -> None:
    lines = "".join(f"{t},ChatGPT,{n},5,{n + 5},API log\n" for n, t in enumerate([*range(300), 7], 1))
    trace = read_trace(written(tmp_path, SIX + lines))
    assert trace.frame["t_s"].is_sorted()
    found = {finding.name: finding for finding in trace.findings}
    assert found["inversions"].rows == (301,)
    assert trace.frame["source_row"][8] == 301


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        (SIX, "no rows"),
        ("a,b\n1,2\n", "known are burstgpt .*seen: columns 'a', 'b'"),
        (SIX + "x,y,z,,,\n", "no usable row; rows left out: row 1: Timestamp is 'x', not a number"),
        ("Timestamp," + SIX + "1,1,ChatGPT,1,5,6,API log\n", "names the column Timestamp twice"),
        ("Timestamp,Request tokens,Response tokens,Log Type\n1,2,3,API log\n", "lacks the column Model"),
    ],
)
def test_files_that_are_none(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(TraceError, match=words):
        read_trace(written(tmp_path, text))


@pytest.mark.parametrize("sizes", [(), (1,), (90, 30), (10_000,)])
def test_pieces_do_not_change_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, ...]
) -> None:
    path = written(tmp_path, BAD)
    expected = read_trace(path)
    monkeypatch.setattr("braid.lab.readers.csvfile._PIECES", sizes)
    trace = read_trace(path)
    assert trace.frame.equals(expected.frame)
    assert trace.findings == expected.findings
