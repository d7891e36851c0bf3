"""Loading and downloading as the user sees it: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TransferSpeedColumn

from braid.cli.units import format_bytes


class ConsoleProgress:
    """A ``braid.checkpoint.progress.Progress`` that draws on stderr, one task at a time."""

    def __init__(self, console: Console | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._begin = 0.0
        self._bytes = 0

    def start(self, total_bytes: int, what: str) -> None:
        """A task of ``total_bytes`` begins (0: size unknown)."""
        self.done()
        self._what, self._begin, self._bytes = what, self._clock(), 0
        if not self._console.is_terminal:
            self._line(f"{what} ({format_bytes(total_bytes)})" if total_bytes else what)
            return
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._bar.start()
        self._task = self._bar.add_task(what, total=total_bytes or None)

    def advance(self, num_bytes: int) -> None:
        """``num_bytes`` more are done."""
        self._bytes += num_bytes
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task, num_bytes)

    def done(self) -> None:
        """The task ended, well or not; harmless without one."""
        if self._bar is not None:
            self._bar.stop()
        if self._what:
            self._line(f"{self._what}: {format_bytes(self._bytes)} in {self._clock() - self._begin:.1f} s")
        self._bar, self._task, self._what = None, None, ""

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class ProgressRelay:
    """Shows the engine process's reports ``(what, done, total)``, absolute counts, on a ``ConsoleProgress``."""

    def __init__(self, progress: ConsoleProgress) -> None:
        self._progress = progress
        self._what = ""
        self._done = 0

    def __call__(self, what: str, done: int, total: int) -> None:
        if what != self._what or done < self._done:
            self._progress.start(total, what)
            self._what, self._done = what, 0
        self._progress.advance(done - self._done)
        self._done = done
        if done >= total:
            self._progress.done()  # the last report may come twice; the second finds nothing open
