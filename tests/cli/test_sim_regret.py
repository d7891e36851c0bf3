from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from braid.cli import main
from braid.sched.event_log import Recorder
from braid.sched.observer import Origins, TurnStart, TurnStop


def write(
    path: Path, turns: str, *, lives: int = 1, ends: str = "\n", found: int = 0, reloaded: int = 0
) -> None:
    """Turns of one block of 4 tokens each, one after the other; equal letters are equal blocks."""
    lines: list[dict[str, Any]] = []
    for _ in range(lives):
        recorder = Recorder(4, 2, "lru")
        for number, letter in enumerate(turns):
            keys = [letter.encode()]
            origins = Origins(disk_reload=reloaded)
            turn = TurnStart(number, number, None, None, 5, keys, found, origins, 0.0, False, 0)
            recorder.started(turn)
            recorder.stopped(TurnStop(number, number, None, 5, keys, "stop"))
        lines += recorder.lines
    path.write_text("\n".join(map(json.dumps, lines)) + ends)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "turns.jsonl"
    write(path, "abcabc")
    return path


def test_a_table_and_json(log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.json"
    assert main(["sim", "regret", str(log), "--blocks", "2,3", "--json", str(out)]) == 0
    told = capsys.readouterr().out
    assert "6 turns under lru" in told
    assert "26.67%" in told, "8 of 30 tokens"
    report = json.loads(out.read_text())
    small, large = report["sizes"]
    assert (report["turns"], report["block_size"], report["policies"]) == (6, 4, ["lru"])
    assert small["lru"] == {"hit_tokens": 0, "hit_rate": 0, "regret": pytest.approx(8 / 30)}
    assert small["best"]["hit_tokens"] == 8
    assert small["logged"]["hit_tokens"] == 0
    assert large["logged"] is None, "the log is of another size"
    assert large["lru"]["hit_tokens"] == large["best"]["hit_tokens"] == large["endless"]["hit_tokens"] == 12


def test_what_a_tier_below_had_is_told_apart(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    assert main(["sim", "regret", str(log)]) == 0
    assert "eloaded" not in capsys.readouterr().out
    write(log, "abcabc", found=1, reloaded=4)
    assert main(["sim", "regret", str(log), "--json", str(out)]) == 0
    told = capsys.readouterr().out
    assert "80.00%" in told
    assert "Belady has the device alone" in told
    (size,) = json.loads(out.read_text())["sizes"]
    assert (size["logged"]["hit_tokens"], size["reloaded_tokens"]) == (0, 24)


def test_without_sizes_the_log_s_own(log: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert main(["sim", "regret", str(log), "--json", str(out)]) == 0
    assert [size["blocks"] for size in json.loads(out.read_text())["sizes"]] == [2]


def test_lives_and_holes_are_told(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(log, "ab", lives=2)
    with log.open("a") as file:
        file.write('{"event":"dropped","lines":7}\n')
    assert main(["sim", "regret", str(log)]) == 0
    told = capsys.readouterr().out
    assert "The engine began 2 times" in told
    assert "7 lines were dropped" in told


def test_a_cut_last_line_is_left_out(log: Path) -> None:
    write(log, "ab", ends='\n{"event":"sta')
    assert main(["sim", "regret", str(log)]) == 0


@pytest.mark.parametrize("blocks", ["0", "-3", "2,", "x", "1.5", ""])
def test_wrong_sizes(log: Path, blocks: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "regret", str(log), f"--blocks={blocks}"]) == 2
    assert "blocks must be integers >= 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("nonsense\n", "line 1 is no JSON"),
        ('{"event":"start"}\n', "line 1 does not begin a log"),
        ("[]\n", "line 1"),
    ],
)
def test_files_that_are_none(log: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    log.write_text(text)
    assert main(["sim", "regret", str(log)]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sim", "regret", str(tmp_path / "none.jsonl")]) == 2
    assert "No such file" in capsys.readouterr().err
