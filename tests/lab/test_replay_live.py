"""Counters of senders, added up, and how they are shown."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from rich.console import Console

from braid.cli.trace.replay_view import ReplayView
from braid.lab.replay.files import COUNTERS, RECENT
from braid.lab.replay.live import Board, Reading


def status(folder: Path, number: int, ttfts_us: tuple[int, ...] = (), **counts: int) -> None:
    row = np.zeros(len(COUNTERS) + RECENT, np.int64)
    for name, value in counts.items():
        row[COUNTERS.index(name)] = value
    row[len(COUNTERS) : len(COUNTERS) + len(ttfts_us)] = ttfts_us
    np.save(folder / f"status-{number}.npy", row)


def reading(folder: Path, elapsed_s: float = 4.0) -> Reading:
    return Board(folder, 2, 20, 60.0).read(elapsed_s)


def test_the_senders_are_added_up(tmp_path: Path) -> None:
    status(tmp_path, 0, (1000, 3000), ok=2, sent=5, refused=1, lag_max_us=700, beat_us=3_900_000)
    status(tmp_path, 1, (5000,), ok=1, sent=2, cut=1, lag_max_us=200, beat_us=1_000_000)
    found = reading(tmp_path)
    assert (found.counts["ok"], found.counts["sent"], found.ended) == (3, 7, 5)
    assert found.failed == {"refused": 1, "cut": 1}
    assert found.lag_max_s == 0.0007
    assert sorted(found.recent_ttft_s.tolist()) == [0.001, 0.003, 0.005]
    assert found.silent_s == 3.0  # the one that was silent longest


def test_before_the_senders_write_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "status-0.npy").write_bytes(b"\x93NUMPY")
    assert (reading(tmp_path).ended, reading(tmp_path).silent_s) == (0, 0.0)


def test_a_terminal_sees_a_view_that_is_redrawn(tmp_path: Path) -> None:
    status(tmp_path, 0, (120_000,), ok=8, sent=10, open=1, timed_out=1, output_tokens=160, lag_max_us=1500)
    text = io.StringIO()
    with ReplayView("a -> b", Console(file=text, force_terminal=True, width=200)) as view:
        view.update(reading(tmp_path, 0.0))
        view.update(reading(tmp_path, 20.0))
        view.stopping("stopping")
        view.update(reading(tmp_path, 75.0))
    shown = text.getvalue()
    for word in ("a -> b", "45%", "0:20, 0:40 to the last planned start", "1:15, 11 to go",
                 "failed 1 (timed_out 1)", "TTFT p50 120 ms", "send lag max 1.5 ms",
                 "a sender has told nothing for 75 s", "stopping"):  # fmt: skip
        assert word in shown, word


def test_elsewhere_a_line_comes_every_ten_seconds(tmp_path: Path) -> None:
    text = io.StringIO()
    with ReplayView("a -> b", Console(file=text, width=200)) as view:
        for second in range(31):
            status(tmp_path, 0, ok=second * 2, output_tokens=second * 40)
            view.update(reading(tmp_path, float(second)))
        view.stopping("stopping")
    lines = text.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith(
        "0:10, 0:50 to the last planned start: planned 20, sent 0, open 0, ok 20, failed 0"
    )
    assert "2.0 req/s, 40 tok/s" in lines[1]
