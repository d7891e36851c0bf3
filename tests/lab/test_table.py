from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from braid.lab.table import SCHEMA, Finding, Trace, TraceError, TraceInfo, conform, load, save


def small() -> Trace:
    frame = pl.DataFrame({"t_s": [2.0, 1.0, 1.0], "in_tok": [3, 1, 2], "extra": ["c", "a", "b"]})
    info = TraceInfo(source="here", format="made", t_quantum_s=1.0, notes=("a note",))
    return Trace(conform(frame), info, (Finding("ties", "info", 2, "two rows tie", (2, 3)),))


def test_all_columns_in_order_and_ties_in_place() -> None:
    frame = small().frame
    assert frame.columns == [*SCHEMA, "extra"]
    assert frame["in_tok"].to_list() == [1, 2, 3]
    assert frame["out_tok"].null_count() == 3


def test_a_trace_survives_its_file(tmp_path: Path) -> None:
    trace = small()
    save(trace, tmp_path / "x.parquet")
    again = load(tmp_path / "x.parquet")
    assert again.frame.equals(trace.frame)
    assert (again.info, again.findings) == (trace.info, trace.findings)
    assert (again.num_requests, again.num_programs, again.span_s) == (3, 0, 1.0)


def test_a_file_of_version_1_is_read_with_the_new_columns_unknown(tmp_path: Path) -> None:
    save(small(), tmp_path / "x.parquet")
    metadata = pl.read_parquet_metadata(tmp_path / "x.parquet")
    head = json.loads(metadata["braid"]) | {"version": 1}
    old = small().frame.drop("input_kind", "finish", "tool")
    old.write_parquet(tmp_path / "old.parquet", metadata={"braid": json.dumps(head)})
    assert load(tmp_path / "old.parquet").frame.equals(small().frame)
    old.write_parquet(tmp_path / "new.parquet", metadata={"braid": json.dumps(head | {"version": 99})})
    with pytest.raises(TraceError, match="another version"):
        load(tmp_path / "new.parquet")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("not parquet")
    pl.DataFrame({"x": [1]}).write_parquet(tmp_path / "b")
    for name in ("a", "b", "absent"):
        with pytest.raises(TraceError, match=name):
            load(tmp_path / name)
