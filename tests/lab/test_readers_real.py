"""What is known of the real traces beside the repository comes out exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from braid.lab.readers import read_trace
from braid.lab.table import Trace, load, save


def counts(trace: Trace) -> dict[str, int]:
    return {finding.name: finding.count for finding in trace.findings}


@pytest.mark.parametrize(
    ("name", "rows", "span_s", "medians"),
    [("conv", 19_366, 3501.721937, (1020, 129)), ("code", 8_819, 3435.948056, (1469, 13))],
)
def test_azure(shared_data: Path, name: str, rows: int, span_s: float, medians: tuple[int, int]) -> None:
    trace = read_trace(shared_data / f"traces/azure/AzureLLMInferenceTrace_{name}_2023.csv")
    frame = trace.frame
    assert trace.num_requests == rows
    assert trace.span_s == pytest.approx(span_s, abs=1e-7)
    assert (frame["in_tok"].median(), frame["out_tok"].median()) == medians
    assert frame["t_s"][0] == 0.0
    assert frame["t_ns"].dtype == pl.Int64
    assert trace.info.t_quantum_s == 0.0
    assert "bad_rows" not in counts(trace)
    assert "half_line" not in counts(trace)
    assert ("silences" in counts(trace)) == (name == "code")


def test_azure_gap_variation(shared_data: Path) -> None:
    for name, cv in (("conv", 1.09), ("code", 13.2)):
        times = read_trace(shared_data / f"traces/azure/AzureLLMInferenceTrace_{name}_2023.csv").frame["t_s"]
        gaps = np.diff(times.to_numpy())
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.005)


def test_mooncake(shared_data: Path) -> None:
    trace = read_trace(shared_data / "traces/mooncake/conversation_trace.jsonl")
    frame = trace.frame
    assert trace.num_requests == 12_031
    assert frame["t_s"].n_unique() == 1_180
    assert counts(trace)["ties"] == 10_851
    assert (trace.info.t_quantum_s, trace.info.block_size, trace.info.hash_scope) == (3.0, 512, "global")
    blocks = frame["block_ids"].list.len().to_numpy()
    assert (blocks == np.ceil(frame["in_tok"].to_numpy() / 512)).all()
    assert "block_mismatch" not in counts(trace)


def test_weka_table(shared_data: Path) -> None:
    trace = read_trace(shared_data / "agents/weka_requests.csv.gz")
    frame = trace.frame
    assert (trace.num_requests, trace.num_programs) == (33_445, 537)
    assert frame["session"].n_unique() == 487
    assert (frame["stop"].null_count(), frame["e2e_s"].is_not_null().sum()) == (3_315, 30_139)
    assert frame.filter(pl.col("parent_id").is_not_null()).height == 531
    assert trace.span_s == 0.0
    assert dict(frame["finish"].value_counts().iter_rows()) == {"tool": 28_219, "text": 1_911, None: 3_315}
    assert frame["input_kind"].null_count() == 0
    assert "unknown_values" not in counts(trace)


def test_weka_gaps_are_long_before_a_person_and_short_before_a_tools_result(shared_data: Path) -> None:
    frame = read_trace(shared_data / "agents/weka_requests.csv.gz").frame.sort("program_id", "turn")
    finish = pl.col("finish").shift(1).over("program_id").alias("was")
    after = frame.with_columns(finish).filter(pl.col("turn") > 0).group_by("was")
    gaps = dict(after.agg(pl.col("gap_before_s").median()).iter_rows())
    assert gaps["tool"] == 9.0
    assert gaps["text"] > 150


def test_weka_sessions(shared_data: Path) -> None:
    trace = read_trace(shared_data / "agents/weka_raw")
    frame = trace.frame
    assert (trace.num_requests, trace.num_programs) == (1_473, 48)
    assert frame["session"].n_unique() == 44
    inner = frame.filter(pl.col("parent_id").is_not_null())
    assert inner.height == 44
    assert inner["parent_id"].unique().to_list() == ["trace_0277/root"]
    assert inner["starts_at_s"].unique().sort().to_list() == [79.224, 183.906, 211.347, 723.533]
    blocks = frame["block_ids"].list.len()
    assert (blocks == frame["in_tok"] // 64).all()
    owners = frame.explode("block_ids").drop_nulls("block_ids").group_by("block_ids")
    assert owners.agg(pl.col("session").n_unique())["session"].max() == 1


def test_both_forms_of_a_session_agree(shared_data: Path) -> None:
    table = read_trace(shared_data / "agents/weka_requests.csv.gz").frame
    raw = read_trace(shared_data / "agents/weka_raw/trace_0277.json.gz").frame
    same = ["program_id", "turn", "parent_id", "in_tok", "out_tok", "gap_before_s", "e2e_s", "model"]
    same += ["input_kind", "finish"]
    of_table = table.filter(pl.col("session") == "trace_0277").select(same)
    assert of_table.sort("program_id", "turn").equals(raw.select(same).sort("program_id", "turn"))


def test_lmcache(shared_data: Path) -> None:
    trace = read_trace(shared_data / "agents/lmcache_agentic_calls.jsonl")
    frame = trace.frame
    assert (trace.num_requests, trace.num_programs) == (4_976, 209)
    gaps = frame["gap_before_s"].to_numpy()
    assert [f"{value:.3g}" for value in np.percentile(gaps, [50, 90, 99, 100])] == [
        "0.712",
        "3.58",
        "23.4",
        "131",
    ]
    assert frame["out_tok"].median() == 96
    assert frame["in_tok"].null_count() == frame["t_s"].null_count() == 4_976
    assert frame["turn"].min() == 0
    assert dict(frame["finish"].value_counts().iter_rows()) == {"tool": 4_767, None: 209}


def test_parquet_keeps_what_only_the_source_shows(shared_data: Path, tmp_path: Path) -> None:
    trace = read_trace(shared_data / "traces/mooncake/conversation_trace.jsonl")
    save(trace, tmp_path / "x.parquet")
    again = read_trace(tmp_path / "x.parquet")
    assert again.frame.equals(trace.frame)
    assert again.findings == trace.findings
    assert load(tmp_path / "x.parquet").info == trace.info
