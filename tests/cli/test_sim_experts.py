from __future__ import annotations

import json
from pathlib import Path

import pytest

from braid.cli import main

HEAD = "# model=/models/tiny.gguf n_layer=2 n_expert=4 n_expert_used=1\nphase,step,layer,slot,expert,weight\n"


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Two layers; decode goes 0, 1, 0, 2, 0 in both."""
    path = tmp_path / "routes.csv"
    rows = [
        f"{int(step > 0)},{step},{layer},0,{expert},1"
        for step, expert in enumerate([0, 0, 1, 0, 2, 0])
        for layer in (0, 1)
    ]
    path.write_text(HEAD + "\n".join(rows) + "\n")
    return path


def test_a_table_and_json(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    words = ["sim", "experts", "--trace", str(trace), "--policy", "lru,lfu", "--slots", "1"]
    assert main([*words, "--per-layer", "--json", str(out)]) == 0
    told = capsys.readouterr().out
    assert "1 slots per layer, 2 in all" in told
    assert "20.0%" in told, "1 of 5"
    assert "if nothing were ever evicted 60.0%" in told
    report = json.loads(out.read_text())
    assert [row["policy"] for row in report["policies"]] == ["lru", "lfu"]
    assert report["policies"][0] == {
        "policy": "lru",
        "scope": "layer",
        "slots": 1,
        "total_slots": 2,
        "decode_hit_rate": 0.2,
        "belady_hit_rate": 0.2,
        "by_layer": [0.2, 0.2],
        "bypass_rate": 0.0,
    }
    assert report["policies"][0].items() <= report.items(), "the first one's numbers are the report's own"
    assert (report["trace"], report["model"], report["rules"]) == ("routes.csv", "tiny.gguf", "every-miss")
    assert main([*words, "--rules", "served", "--global", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["scope"] == "global"
    assert report["policies"][1]["bypass_rate"] > 0, "0 was used more often than 1 and 2"


def test_a_fraction_of_all_experts(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert main(["sim", "experts", "--trace", str(trace), "--fraction", "0.375", "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert (report["total_slots"], report["slots"], report["scope"]) == (3, 1.5, "global")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--slots", "1", "--policy", "lru,fifo"], "'fifo' is not known; choices: lru, lfu, lfru, ewma, mrs"),
        (["--slots", "1", "--policy", ","], "--policy names none; choices"),
        ([], "with --slots or with --fraction"),
        (["--slots", "1", "--fraction", ".5"], "with --slots or with --fraction"),
        (["--fraction", "1.5"], "fraction must be above 0 and at most 1, got 1.5"),
        (["--slots", "0"], "a layer has 4 experts; got 0"),
        (["--slots", "6"], "a layer has 4 experts; got 6; 6 in all are --fraction 0.75"),
        (["--fraction", "0.2", "--per-layer"], ""),
    ],
)
def test_what_cannot_be(words: list[str], said: str, trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = main(["sim", "experts", "--trace", str(trace), *words])
    assert (wrong != 0) == bool(said)
    assert said in " ".join(capsys.readouterr().err.split())


def test_a_file_that_is_no_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "notes.csv"
    path.write_text("a,b\n1,2\n")
    assert main(["sim", "experts", "--trace", str(path), "--slots", "1"]) != 0
    assert "notes.csv: line 1: no column phase, step" in " ".join(capsys.readouterr().err.split())
