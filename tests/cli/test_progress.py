from __future__ import annotations

import io
from itertools import count

from rich.console import Console

from braid.cli.progress import ConsoleProgress, ProgressRelay


def plain() -> tuple[ConsoleProgress, io.StringIO]:
    out = io.StringIO()
    ticks = count()
    return ConsoleProgress(Console(file=out), clock=lambda: float(next(ticks))), out


def test_plain_lines_where_there_is_no_terminal() -> None:
    progress, out = plain()
    progress.start(2048, "downloading a [b]")
    progress.advance(1024)
    progress.advance(1024)
    progress.done()
    assert out.getvalue() == "downloading a [b] (2.0 KiB)\ndownloading a [b]: 2.0 KiB in 1.0 s\n"


def test_unknown_size_and_done_twice() -> None:
    progress, out = plain()
    progress.start(0, "reading")
    progress.done()
    progress.done()
    assert out.getvalue() == "reading\nreading: 0 B in 1.0 s\n"


def test_a_bar_on_a_terminal_leaves_one_line() -> None:
    out = io.StringIO()
    progress = ConsoleProgress(Console(file=out, force_terminal=True, width=100), clock=lambda: 0.0)
    progress.start(1024, "loading")
    progress.advance(1024)
    progress.done()
    assert out.getvalue().endswith("loading: 1.0 KiB in 0.0 s\n")


def test_relay_turns_absolute_counts_into_steps() -> None:
    progress, out = plain()
    relay = ProgressRelay(progress)
    for what, done in (("a", 0), ("a", 512), ("a", 1024), ("a", 1024), ("b", 0), ("b", 1024)):
        relay(what, done, 1024)
    lines = ["a (1.0 KiB)", "a: 1.0 KiB in 1.0 s", "b (1.0 KiB)", "b: 1.0 KiB in 1.0 s"]
    assert out.getvalue().splitlines() == lines


def test_relay_sees_that_a_restarted_engine_loads_again() -> None:
    progress, out = plain()
    relay = ProgressRelay(progress)
    for done in (0, 1024, 0, 1024):
        relay("a", done, 1024)
    assert out.getvalue().splitlines().count("a (1.0 KiB)") == 2
