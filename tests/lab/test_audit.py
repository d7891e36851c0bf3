"""All rows are synthetic, but the 30 real ones of BurstGPT_1 that one fabricated file begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from braid.lab.audit import audit, quantum_of
from braid.lab.readers import read_trace
from braid.lab.table import Finding, Trace, TraceInfo, conform

HEADER = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
REAL = Path(__file__).parents[1] / "data" / "burstgpt_1_first30.csv"


def found(trace: Trace) -> dict[str, Finding]:
    return {finding.name: finding for finding in audit(trace)}


def made(times: Any, **columns: Any) -> Trace:
    times = np.asarray(times, dtype=np.float64)
    rows = np.arange(1, times.size + 1)
    frame = pl.DataFrame({"t_s": times, "in_tok": rows, "out_tok": rows + 1, "status": "ok", **columns})
    return Trace(conform(frame), TraceInfo(format="made", t_quantum_s=quantum_of(times)))


def poisson(rng: np.random.Generator, num: int, rate: float = 1.0) -> np.ndarray:
    return np.cumsum(rng.exponential(1 / rate, num))


def test_one_row_a_second_with_models_in_turn_is_flagged(tmp_path: Path) -> None:
    """As in the first fabricated look-alike: 250 rows, one per second, alternating models."""
    rng = np.random.default_rng(1)
    rows = [
        f"{i},{('ChatGPT', 'GPT-4')[i % 2]},{a},{b},{a + b},API log\n"
        for i, (a, b) in enumerate(rng.integers(1, 900, (250, 2)))
    ]
    path = tmp_path / "BurstGPT_1.csv"
    path.write_text(HEADER + "".join(rows))
    findings = {finding.name: finding for finding in read_trace(path).findings}
    assert findings["constant_spacing"].count == 250
    assert findings["alternating_models"].count == 250
    assert (findings["invented_rows"].level, findings["invented_rows"].count) == ("error", 250)


@pytest.mark.parametrize("further", [20, 70, 470])
def test_rows_that_go_on_every_three_seconds_are_flagged(tmp_path: Path, further: int) -> None:
    """As in the second look-alike: 30 real rows, then one every 3 s, the first with 612 request tokens."""
    lengths = [612, *np.random.default_rng(2).integers(1, 900, further - 1)]
    rows = [f"{2296 + 3 * i},ChatGPT,{n},50,{n + 50},API log\n" for i, n in enumerate(lengths)]
    path = tmp_path / "sample.csv"
    path.write_text(REAL.read_text() + "".join(rows))
    findings = {finding.name: finding for finding in read_trace(path).findings}
    assert findings["invented_rows"].rows[0] == 31
    assert findings["invented_rows"].count == further
    assert findings["constant_spacing"].count == further + 1


def test_one_invented_row_after_the_real_ones_is_flagged(tmp_path: Path) -> None:
    path = tmp_path / "sample.csv"
    path.write_text(REAL.read_text() + "2400,ChatGPT,612,50,662,Conversation log\n")
    assert any(finding.name == "invented_rows" for finding in read_trace(path).findings)
    path.write_text(REAL.read_text() + "2400,ChatGPT,938,50,988,Conversation log\n")
    assert not any(finding.name == "invented_rows" for finding in read_trace(path).findings)


@pytest.mark.parametrize("seed", range(20))
def test_honest_traces_are_not_flagged(seed: int) -> None:
    rng = np.random.default_rng(seed)
    models = pl.Series(np.where(rng.random(20_000) < 0.5, "a", "b"))
    times = poisson(rng, 20_000)
    for trace in (
        made(times, model=models),
        made(np.floor(times), model=models),
        made(np.floor(times / 3) * 3),
    ):
        assert not {"constant_spacing", "alternating_models", "invented_rows"} & found(trace).keys()


@pytest.mark.parametrize(
    ("step", "jitter", "expected"),
    [(1, 0, 1.0), (3, 0.003, 3.0), (0.01, 0, 0.01), (60, 0, 60.0), (1e-7, 0, 0.0)],
)
def test_quantum(step: float, jitter: float, expected: float) -> None:
    rng = np.random.default_rng(0)
    times = np.round(poisson(rng, 5_000, 0.05) / step) * step
    assert quantum_of(times + rng.choice([-jitter, 0, jitter], times.size)) == expected
    assert quantum_of(times[:10]) == 0.0


def test_ties_and_identical_rows_are_kept() -> None:
    trace = made([0.0, 1.5, 1.5, 1.5, 4.0], model=["a", "b", "b", "a", "b"])
    trace = Trace(trace.frame.with_columns(in_tok=pl.lit(5), out_tok=pl.lit(6)), trace.info)
    findings = found(trace)
    assert (findings["ties"].count, findings["ties"].rows) == (2, (3, 4))
    assert (findings["identical_rows"].count, findings["identical_rows"].rows) == (1, (3,))
    assert trace.num_requests == 5


def test_holes_and_silences() -> None:
    rng = np.random.default_rng(3)
    times = poisson(rng, 500)
    times[250:] += 40_000
    findings = found(made(times))
    assert (findings["holes"].count, findings["holes"].rows) == (1, (251,))
    assert findings["silences"].count == 1
    assert not {"holes", "silences"} & found(made(poisson(rng, 500))).keys()


def test_zero_and_failed_rows() -> None:
    frame = made([0.5, 1.0, 2.0]).frame.with_columns(
        in_tok=pl.Series([0, 7, None], dtype=pl.Int64),
        out_tok=pl.Series([0, 0, None], dtype=pl.Int64),
        status=pl.Series(["failed", "failed", "unknown"]),
    )
    findings = found(Trace(conform(frame), TraceInfo()))
    assert findings["zero_rows"].rows == (1, 2)
    assert findings["unsendable"].rows == (1,)
    assert findings["failures"].count == 2


def test_missing_fields_name_their_share() -> None:
    frame = made([0.0, 1.0]).frame.with_columns(model=pl.Series(["a", None]))
    finding = found(Trace(frame, TraceInfo()))["missing_fields"]
    assert "model (50.0%)" in finding.text
    assert "ttft_s" in finding.text
    assert "t_s" not in finding.text.replace("ttft_s", "").replace("gap_before_s", "")


def test_mix_shift() -> None:
    times = poisson(np.random.default_rng(4), 400)
    moved = made(times, model=["a"] * 200 + ["b"] * 200)
    assert found(moved)["mix_shift"].level == "warning"
    assert "mix_shift" not in found(made(times, model=["a", "b"] * 200))


def test_row_numbers_are_the_sources() -> None:
    frame = made([0.0, 1.0, 2.0]).frame.with_columns(source_row=pl.Series([30, 10, 20], dtype=pl.UInt32))
    frame = frame.with_columns(in_tok=pl.lit(0))
    assert found(Trace(frame, TraceInfo()))["unsendable"].rows == (30, 10, 20)


def test_traces_without_times_and_tiny_ones() -> None:
    empty = made([1.0]).frame
    assert "ties" not in found(Trace(empty, TraceInfo()))
    timeless = empty.with_columns(t_s=pl.lit(None, dtype=pl.Float64))
    assert "missing_fields" in found(Trace(timeless, TraceInfo()))
    assert found(Trace(empty.clear(), TraceInfo())) == {}
