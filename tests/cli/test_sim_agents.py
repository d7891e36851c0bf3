from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from braid.cli import main
from braid.lab.table import Trace, TraceInfo, conform, save
from braid.policy.calibration import cost_to_data
from braid.policy.cost import Grid, Line, StepCost


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Four programs of three turns."""
    rows = [(program, turn) for program in range(4) for turn in range(3)]
    frame = pl.DataFrame(
        {
            "program_id": [f"p{program}" for program, _ in rows],
            "turn": [turn for _, turn in rows],
            "in_tok": [3000 + 1000 * turn + program for program, turn in rows],
            "out_tok": [64] * len(rows),
            "gap_before_s": [1.5 if turn else None for _, turn in rows],
            "finish": ["text" if turn == 2 else "tool" for _, turn in rows],
        }
    )
    path = tmp_path / "agents.parquet"
    save(Trace(conform(frame), TraceInfo(source="made here")), path)
    return path


def flags(trace: Path, *more: str) -> list[str]:
    words = f"sim agents --trace {trace} --machine a100-80g --model llama-3.1-8b --rate 0.5 --programs 6"
    return [*words.split(), *more]


def test_policies_side_by_side_and_as_json(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    chosen = ("--policy", "lru,continuum,oracle", "--kv-tokens", "16384", "--max-model-len", "8192")
    chosen += ("--set", "gap_samples=64, aged_s=30")
    assert main(flags(trace, *chosen, "--seeds", "2", "--json", str(out))) == 0
    shown = capsys.readouterr().out
    assert "roofline estimate from data sheets, never checked on this GPU" in shown
    assert "continuum" in shown
    report = json.loads(out.read_text())
    assert list(report["policies"]) == ["lru", "continuum", "oracle"]
    for numbers in report["policies"].values():
        assert {"mean", "p50", "p95", "p99"} <= set(numbers["jct_s"])
        assert {"p50", "p99", "max"} <= set(numbers["ttft_first_s"]) & set(numbers["ttft_later_s"])
        assert list(numbers["tokens"]) == [
            "device_hit",
            "host_reload",
            "disk_reload",
            "recompute",
            "compulsory",
        ]
        assert numbers["preemptions"] >= 0
        assert numbers["config"]["kv_tokens"] == 16_384
        assert numbers["config"]["agent_settings"]["gap_samples"] == 64
        assert numbers["config"]["agent_settings"]["aged_s"] == 30.0
        assert len(numbers["seeds"]) == 2
    assert report["config"]["seeds"] == [0, 1]
    assert report["config"]["rate"] == 0.5


def test_two_processes_find_what_one_finds(trace: Path, tmp_path: Path) -> None:
    found = []
    for jobs in ("1", "2"):
        out = tmp_path / f"{jobs}.json"
        assert main(flags(trace, "--policy", "lru,braid", "--jobs", jobs, "--json", str(out))) == 0
        found.append(json.loads(out.read_text())["policies"])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--policy", "best"), "unknown agent policy 'best'"),
        (("--policy", ","), "--policy names no policy"),
        (("--seeds", "0"), "seeds must be at least 1, got 0"),
        (("--max-turns", "0"), "max_turns must be at least 1, got 0"),
        (("--grain", "7"), "grain must divide the block size (256), got 7"),
        (("--set", "gate=1"), "'gate' is no number of a policy; choices: gap_samples"),
        (("--set", "gate_share=wide"), "gate_share must be a number, got 'wide'"),
        (("--set", "gate_share=-1"), "gate_share must be above 0, got -1"),
        (("--dtype", "fp8"), "dtype must be one of bfloat16, int8, int4"),
        (("--kv-tokens", "100", "--max-model-len", "200"), "the KV store holds 100 tokens"),
    ],
)
def test_wrong_words_are_told_in_one_line(
    more: tuple[str, ...], told: str, trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(trace, *more)) == 2
    assert told in capsys.readouterr().err


def test_a_model_that_does_not_fit_and_unknown_machines_are_told(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sim", "agents", "--trace", str(trace), "--rate", "1"]
    assert main([*words, "--machine", "a100-80g", "--model", "llama-3.1-70b"]) == 2
    assert "131.4 GiB" in capsys.readouterr().err
    assert main([*words, "--machine", "a100", "--model", "llama-3.1-8b"]) == 2
    assert "choices: a100-80g" in capsys.readouterr().err
    assert main([*words, "--machine", "a100-80g"]) == 2
    assert "needs a --model" in capsys.readouterr().err


def test_this_machine_is_what_was_calibrated_here(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BRAID_CACHE", str(tmp_path))
    words = ["sim", "agents", "--trace", str(trace), "--rate", "1", "--machine", "this", "--programs", "3"]
    assert main(words) == 2
    assert "run braid calibrate first" in capsys.readouterr().err
    cost = StepCost(
        profile="made up for tests",
        dense=Line((1, 2048), (0.01, 1.0)),
        head=Line((1, 16), (0.001, 0.002)),
        prefill=Grid((1, 2048), (0, 8192), ((0.0, 0.001), (0.1, 0.4))),
        decode=Grid((1, 16), (1, 8192), ((0.0001, 0.002), (0.001, 0.02))),
    )
    limits = {"num_blocks": 1024, "max_num_seqs": 16, "max_num_batched_tokens": 2048, "max_model_len": 8192}
    data = {
        "version": 1,
        "model": "tiny",
        "dtype": "float32",
        "scheduler": limits,
        "held_out_error": {"decode": 0.05},
        "cost": cost_to_data(cost),
    }
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "tiny-float32.json").write_text(json.dumps(data))
    assert main([*words, "--policy", "lru"]) == 0
    assert "made up for tests (median error of step times: decode 5.0%)" in capsys.readouterr().out
    assert main([*words, "--host-kv-tokens", "4096"]) == 2
    assert "use --disk-kv-tokens" in capsys.readouterr().err


@pytest.mark.parametrize("grain", ["1", "8"])
def test_the_log_of_a_simulation_is_replayed(trace: Path, tmp_path: Path, grain: str) -> None:
    log, out, found = tmp_path / "turns.jsonl", tmp_path / "out.json", tmp_path / "regret.json"
    chosen = ("--policy", "lru", "--kv-tokens", "10240", "--max-model-len", "8192", "--grain", grain)
    assert main(flags(trace, *chosen, "--agent-log", str(log), "--json", str(out))) == 0
    assert main(["sim", "regret", str(log), "--json", str(found)]) == 0
    tokens = json.loads(out.read_text())["policies"]["lru"]["tokens"]
    report = json.loads(found.read_text())
    (size,) = report["sizes"]
    assert (report["block_size"], size["blocks"]) == (256, 40)
    assert size["logged"]["hit_tokens"] == tokens["device_hit"]
    assert size["logged"]["hit_tokens"] <= size["best"]["hit_tokens"] <= size["endless"]["hit_tokens"]
    assert size["wanted_tokens"] == pytest.approx(sum(tokens.values()), rel=0.01)


def test_a_log_is_of_one_simulation(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(trace, "--agent-log", str(tmp_path / "x"))) == 2
    assert "one policy and one seed, not of 2 and 1" in capsys.readouterr().err
    assert main(flags(trace, "--policy", "lru", "--agent-log", str(tmp_path / "none" / "x"))) == 2
    assert "cannot write" in capsys.readouterr().err
