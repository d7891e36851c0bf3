"""Progress of lab work on stderr: a line that moves on a terminal, nothing elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

WIDEST = 132
"""Characters that a table of numbers may need; a narrower terminal wraps lines, but no number is cut."""


def print_table(console: Console, table: Table) -> None:
    """A table whole, however narrow the terminal."""
    own = console.width
    console.width = max(own, WIDEST)
    console.print(table, crop=False)
    console.width = own


class ConsoleProgress:
    """A ``braid.lab.progress.Progress`` that draws while it is entered."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        self._bars = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ConsoleProgress:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def update(self, what: str, done: float, total: float | None) -> None:
        """See ``braid.lab.progress.Progress``."""
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(what, total=total)
        self._bars.update(self._tasks[what], completed=done, total=total)
