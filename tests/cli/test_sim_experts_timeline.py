"""``braid sim experts --timeline``: what is written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from braid.cli import main

SMALL = ("--timeline", "--model", "mixtral-8x7b", "--prompt", "8", "--tokens", "6")


def run(tmp_path: Path, *flags: str) -> dict[str, Any]:
    out = tmp_path / "out.json"
    assert main(["sim", "experts", *flags, "--json", str(out)]) == 0
    report = json.loads(out.read_text())
    assert isinstance(report, dict)
    return report


def test_a_run_beside_the_baseline_and_what_was_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(tmp_path, *SMALL, "--fraction", "0.5")
    shown = capsys.readouterr().out
    assert "nothing was measured" in shown
    assert "synthetic routing" in shown
    assert report["simulated"] is True
    assert (report["slots"], report["fraction"]) == (128, 0.5)
    assert report["parts"] == {"schedule": True, "prefetch": "on", "policy": "mrs", "scope": "global"}
    assert report["published"]["mean"] == {"prefill": 1.33, "decode": 1.70}
    assert report["times_faster"]["decode"] > 1
    assert report["run"]["decode"]["steps"] == 6
    for phase in ("prefill", "decode"):
        ratio = report["baseline"][phase]["seconds_per_step"] / report["run"][phase]["seconds_per_step"]
        assert report["times_faster"][phase] == ratio


def test_every_part_can_be_switched_off(tmp_path: Path) -> None:
    off = ("--schedule", "off", "--prefetch", "off", "--policy", "static", "--per-layer")
    report = run(tmp_path, *SMALL, *off, "--slots", "2")
    assert report["times_faster"] == {"prefill": 1.0, "decode": 1.0}
    assert report["run"] == report["baseline"]
    assert report["slots"] == 64


def test_recorded_routing_and_times_of_a_file(tmp_path: Path) -> None:
    rows = [
        f"{int(step > 0)},{step},{layer},{slot},{(step + slot * 3) % 8}"
        for step in range(4)
        for layer in range(32)
        for slot in range(2)
    ]
    trace = tmp_path / "routes.csv"
    trace.write_text("\n".join(["# n_layer=32 n_expert=8", "phase,step,layer,slot,expert", *rows]) + "\n")
    times = tmp_path / "times.json"
    times.write_text(json.dumps({"link_s": 0.002, "fast_s": 0.001, "slow_s": None}))
    flags = ("--timeline", "--model", "mixtral-8x7b", "--trace", str(trace), "--machine", str(times))
    report = run(tmp_path, *flags, "--policy", "lru", "--prefetch", "off")
    assert report["routing"] == "recorded routing: routes.csv"
    assert report["times"]["slow_s"] is None
    assert report["run"]["decode"]["steps"] == 3
    assert report["run"]["decode"]["slow_share"] == 0
    assert report["times_faster"]["decode"] > 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((*SMALL, "--machine", "abacus"), "machine 'abacus' is not known"),
        ((*SMALL, "--policy", "lru,mrs-paper"), "one --policy"),
        ((*SMALL, "--policy", "belady"), "told the future"),
        ((*SMALL, "--fraction", "2"), "fraction must be"),
        ((*SMALL, "--slots", "9"), "a layer has 8 experts"),
        (("--timeline", "--model", "llama-3.1-8b"), "has no experts"),
        (("--timeline", "--tokens", "0"), "tokens must be at least 1"),
        (("--machine", "abacus"), "add --timeline"),
        (("--slots", "2"), "--trace says which"),
    ],
)
def test_what_cannot_be_is_said(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sim", "experts", *flags]) != 0
    assert message in " ".join(capsys.readouterr().err.split())
