"""``braid trace replay`` and ``braid trace stub``, as they are typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from braid.cli import main
from braid.lab.replay.stub.server import running
from braid.lab.replay.stub.state import Stub, StubOptions
from braid.lab.table import Trace, TraceInfo, conform, save

CODE = "import sys; from braid.cli import main; sys.exit(main())"
NO_LIMIT = "1e6"
"""Of lag: no judgement of this machine."""


def trace_file(folder: Path, times: list[float]) -> Path:
    frame = pl.DataFrame({"t_s": times, "in_tok": [20] * len(times), "out_tok": [3] * len(times)})
    path = folder / "t.parquet"
    save(Trace(conform(frame), TraceInfo(source="t.csv", licence="CC0", citation="Somebody")), path)
    return path


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with running(StubOptions(api_key="s3cret")) as server:
        yield server


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAB_KEY", "s3cret")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def words(trace: Path, stub: Stub, *flags: str) -> list[str]:
    """A command; flags of its own come instead of the usual ones."""
    usual = [("--url", stub.url), ("--api-key-env", "LAB_KEY"), ("--lag-limit", NO_LIMIT)]
    kept = [word for pair in usual if pair[0] not in flags for word in pair]
    return ["trace", "replay", str(trace), *kept, *flags]


def test_a_run_is_kept_shown_and_leaves_nothing_else(
    stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("braid.lab.measures.report.draw_run", lambda *_: [])  # slow, and tested elsewhere
    out, result, page = tmp_path / "run", tmp_path / "r.json", tmp_path / "p.html"
    flags = ("--out", str(out), "--json", str(result), "--html", str(page), "--slo-ttft", "60")
    assert main(words(trace_file(tmp_path, [0.0, 0.05, 0.1]), stub, *flags)) == 0
    found = json.loads(result.read_text())
    assert (found["outcomes"]["ok"], found["conserved"], found["goodput"]["attainment"]) == (3, True, 1.0)
    assert found["head"]["label"] == "run"
    assert found["head"]["licence"] == "CC0"
    shown = capsys.readouterr()
    assert "3 requests were planned" in shown.out
    assert main(["trace", "report", str(out)]) == 0
    kept = {path.name for path in out.iterdir()}
    assert {"run.json", "requests.parquet", "page.html", "measures.json"} <= kept
    for path in (result, page, *out.iterdir()):
        assert b"s3cret" not in path.read_bytes(), path
    assert not list(tmp_path.glob("braid-replay-*"))


def test_an_invalid_run_has_a_status_of_its_own(stub: Stub, tmp_path: Path) -> None:
    assert main(words(trace_file(tmp_path, [0.0]), stub, "--lag-limit", "1e-12")) == 3


def test_a_key_may_lie_in_a_file(stub: Stub, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    flags = ("--api-key-env", "NOT_SET", "--api-key-file", str(tmp_path / "key"))
    assert main(words(trace_file(tmp_path, [0.0]), stub, *flags)) == 0


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--model", "other"], "does not serve 'other'; it serves 'stub'"),
        (["--api-key-env", "NOT_SET"], "wants an API key"),
        (["--api-key-file", "/nowhere/key"], "--api-key-file /nowhere/key: cannot be read"),
        (["--url", "http://127.0.0.1:9"], "127.0.0.1:9"),
        (["--url", "ftp://x"], "ftp://x"),
        (["--window", "random"], "--window needs --span"),
        (["--max-tokens", "10"], "no request"),
        (["--senders", "0"], "num_senders must be above 0, got 0"),
        (["--timeout", "-1"], "timeout_s must be above 0, got -1"),
        (["--arrivals", "rate"], "rate"),
        (["--scratch", "/nowhere"], "cannot make a folder in /nowhere"),
    ],
)
def test_what_the_user_can_change_is_one_line(
    flags: list[str], text: str, stub: Stub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(trace_file(tmp_path, [0.0, 1.0]), stub, *flags)) == 2
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert shown.startswith("braid: error: ")
    assert text in shown


def test_ctrl_c_keeps_what_there_is(stub: Stub, tmp_path: Path) -> None:
    result = tmp_path / "r.json"
    ask = words(trace_file(tmp_path, [0.0, 0.01, 900.0]), stub, "--json", str(result))
    stub.log.clear()
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, *ask],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    while sum(seen.ended == "done" and seen.prompt_tokens == 20 for seen in stub.log) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, complaints = process.communicate()
    assert process.returncode == 130, complaints
    assert "stopping; Ctrl-C again" in complaints
    assert "ended before its plan did" in said
    outcomes = json.loads(result.read_text())["outcomes"]
    assert outcomes["unsent"] == 1
    assert outcomes["ok"] + outcomes["cut"] == 2  # the last answer may still have been on its way
    assert not list(tmp_path.glob("braid-replay-*"))


def test_the_stub_serves_until_it_is_told_to_stop() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", CODE, "trace", "stub", "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("stub stub on http://127.0.0.1:")
    process.send_signal(signal.SIGTERM)
    assert "0 generation requests on 0 connections" in process.communicate()[0]
    assert process.returncode == 0


@pytest.mark.parametrize("fault", ["cut", "cut=x", "fire=0.1", "cut=2"])
def test_a_wrong_fault_is_named(fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "stub", "--port", "0", "--fault", fault]) == 2
    assert "braid: error: " in capsys.readouterr().err


def test_a_trace_is_simulated_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "azure.csv"
    lines = "".join(f"2023-11-16 18:00:{n:02}.0000000,{100 + n},3\n" for n in range(9))
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + lines)
    flat = {"rows": [1, 100], "columns": [0, 1000], "seconds": [[0, 0], [0, 0]]}
    cost = {"profile": "a second a step", "dense": {"knots": [1, 900], "seconds": [1, 1]}, "mixing": 1}
    cost |= {
        "head": {"knots": [1, 9], "seconds": [0, 0]},
        "prefill": flat,
        "decode": flat,
        "host": 0,
        "eager": 0,
    }
    machine = {"version": 1, "model": "tiny", "dtype": "float32", "held_out_error": {}, "cost": cost}
    machine["scheduler"] = {"num_blocks": 400, "max_model_len": 1024}
    (tmp_path / "machine.json").write_text(json.dumps(machine))
    out = tmp_path / "run"
    words = ["trace", "simulate", str(trace), "--machine", str(tmp_path / "machine.json"), "--out", str(out)]
    assert main([*words, "--json", str(tmp_path / "result.json")]) == 0
    assert json.loads((tmp_path / "result.json").read_text())["outcomes"]["ok"] == 9
    assert "9 requests were planned" in capsys.readouterr().out
    assert (out / "page.html").is_file()
    assert main(["trace", "report", str(out)]) == 0
