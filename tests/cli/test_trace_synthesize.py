"""``braid trace synthesize`` and ``braid trace pair``."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from braid.cli.app import main
from braid.lab.table import load, save


def test_programs_are_written_with_their_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, result = tmp_path / "x.parquet", tmp_path / "x.json"
    words = ["trace", "synthesize", "swe-bench", "--programs", "40", "--seed", "3", "--eta", "1"]
    assert main([*words, "--out", str(out), "--json", str(result)]) == 0
    told = json.loads(result.read_text())
    assert (told["programs"], told["requests"], told["eta"], told["kind"]) == (40, 440, 1.0, "swe-bench")
    assert (told["turns"]["mean"], told["turns"]["wanted_mean"], told["turns"]["wanted_sd"]) == (
        11.0,
        11.0,
        0.0,
    )
    assert told["gap_s"]["wanted_sd"] == 3.55
    assert load(out).num_programs == 40
    printed = capsys.readouterr().out
    assert "40 programs, 440 requests" in printed
    assert "Synthetic, no recording" in printed


def test_lengths_are_lent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lent, bare, out = (tmp_path / name for name in ("lent.parquet", "bare.parquet", "out.parquet"))
    assert main(["trace", "synthesize", "bfcl", "--programs", "30", "--out", str(lent)]) == 0
    trace = load(lent)
    frame = trace.frame.with_columns(pl.lit(None, pl.Int64).alias("in_tok"))
    save(type(trace)(frame, trace.info), bare)
    assert main(["trace", "pair", str(bare), str(lent), "--out", str(out), "--seed", "2"]) == 0
    assert load(out).frame["in_tok"].null_count() == 0
    assert "are not their own" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["synthesize", "bfcl", "--programs", "3", "--eta", "2"], "eta is 1 or"),
        (["synthesize", "bfcl", "--programs", "0"], "at least one program"),
        (["synthesize", "bfcl", "--programs", "3", "--gap-sd", "1000"], "at most about 13"),
    ],
)
def test_what_cannot_be_made(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trace", *words, "--out", str(tmp_path / "x.parquet")]) == 2
    assert message in capsys.readouterr().err
