from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from braid.cli import main
from braid.lab.table import Trace, TraceInfo, conform, save

GPU = ("--machine", "a100-80g", "--model", "llama-3.1-8b")
BURST = ("--burst", "3,60,2,6000,0.5")


def run(tmp_path: Path, *flags: str) -> dict[str, Any]:
    out = tmp_path / "out.json"
    assert main(["sim", "phases", *flags, *GPU, "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert isinstance(report, dict)
    return report


def test_ways_and_wishes_side_by_side_and_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wishes = ("--slo-tbt-ms", "30,1000", "--slo-ttft-ms", "5000")
    limit = ("--max-num-batched-tokens", "8192")
    report = run(tmp_path, *BURST, *wishes, *limit, "--phases", "mixed,static:50/50,auto")
    shown = capsys.readouterr().out
    assert "between tokens: 30 ms" in shown
    assert "roofline estimate from data sheets, never checked on this GPU" in shown
    assert report["units"] == 16
    names = [(each["phases"], each["slo_tbt_ms"]) for each in report["runs"]]
    assert names == [(name, tbt) for tbt in (30.0, 1000.0) for name in ("mixed", "static:50/50", "auto")]
    mixed, static, strict, _, _, loose = report["runs"]
    for each in report["runs"]:
        assert each["num_requests"] == 5
        for name in ("ttft_ms", "tbt_ms", "tbt_beside_prompts_ms"):
            assert {"p50", "p90", "p99", "max"} <= set(each[name])
        assert each["decode_tok_s"] > 0
        assert each["prefill_tok_s"] > 0
    assert mixed["divisions"][0]["units"] == 0
    assert static["divisions"][0]["units"] == 8
    assert strict["divisions"][-1]["units"] > 8
    assert "between tokens <=" in strict["divisions"][-1]["why"]
    assert strict["goodput"] > mixed["goodput"]
    assert loose["divisions"][-1]["units"] == 0
    assert strict["policy"]["phases_is_mixed"] == 0
    assert strict["tbt_ms"]["max"] < 40 < mixed["tbt_ms"]["max"]


def test_a_trace_is_played_by_its_clock_or_at_a_rate(tmp_path: Path) -> None:
    frame = pl.DataFrame({"t_s": [0.1 * n for n in range(12)], "in_tok": [900] * 12, "out_tok": [20] * 12})
    path = tmp_path / "trace.parquet"
    save(Trace(conform(frame), TraceInfo(source="made here")), path)
    flags = ("--trace", str(path), "--phases", "auto")
    slow, fast = run(tmp_path, *flags), run(tmp_path, *flags, "--arrivals", "rate", "--rate", "100")
    assert slow["runs"][0]["num_requests"] == fast["runs"][0]["num_requests"] == 12
    assert slow["runs"][0]["seconds"] > fast["runs"][0]["seconds"]
    assert slow["runs"][0]["slo_tbt_ms"] is None
    assert slow["runs"][0]["attainment"]["requests"] == 1.0


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ((), "either --trace or --burst"),
        ((*BURST, "--trace", "x"), "either --trace or --burst"),
        (("--burst", "3,60"), "burst must be"),
        (("--burst", "3,60,2,0,1"), "burst must be"),
        (("--burst", "3,60,2,10,nan"), "burst must be"),
        ((*BURST, "--phases", "mixed,turbo"), "unknown phases 'turbo'"),
        ((*BURST, "--phases", ","), "names nothing"),
        ((*BURST, "--slo-tbt-ms", "0"), "must be above 0"),
        ((*BURST, "--slo-tbt-ms", "fast"), "numbers separated by commas"),
        ((*BURST, "--slo-ttft-ms", "-1"), "must be above 0"),
        ((*BURST, "--units", "0"), "num_units must be at least 1"),
    ],
)
def test_wrong_flags_are_said(flags: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "phases", *flags, *GPU]) != 0
    assert text in " ".join(capsys.readouterr().err.split())


def test_one_unit_is_never_divided(tmp_path: Path) -> None:
    report = run(tmp_path, *BURST, "--units", "1", "--phases", "mixed,auto", "--slo-tbt-ms", "30")
    mixed, auto = report["runs"]
    assert {change["units"] for change in auto["divisions"]} == {0}
    assert auto["tbt_ms"]["max"] < mixed["tbt_ms"]["max"]
