"""A sweep as it goes, and as it ended."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console

from braid.cli.trace.replay_view import ReplayView

if TYPE_CHECKING:
    from braid.lab.replay.live import Live
    from braid.lab.replay.record import Run
    from braid.lab.sweep.search import Probe, Search
    from braid.lab.sweep.sweep import Point, Sweep, SweepOptions


class SweepView:
    """A ``braid.lab.sweep.sweep.Listener``: the running replay on stderr, a line for each that ended, and its run kept
    in ``out``."""

    def __init__(self, options: SweepOptions, url: str, out: Path | None) -> None:
        self._options, self._url, self._out = options, url, out
        self._console = Console(stderr=True)
        self._view: ReplayView | None = None

    def __enter__(self) -> SweepView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def begins(self, probe: Probe, requests: int) -> Live:
        """See ``Listener``."""
        from braid.lab.sweep.words import load_text

        again = f", repeat {probe.repeat + 1}" if probe.repeat else ""
        title = f"replay {probe.number + 1}: {load_text(probe.load, self._options)}{again} -> {self._url}"
        if not self._console.is_terminal:
            self._line(f"{title}, {requests:,} requests")
        self._view = ReplayView(title, self._console)
        return self._view.__enter__()

    def ended(self, point: Point, run: Run | None, search: Search) -> None:
        """See ``Listener``."""
        from braid.lab.replay.record import save_run
        from braid.lab.sweep.words import line_of

        self._close()
        self._line(line_of(point, self._options))
        if self._out is not None and run is not None:
            save_run(run, self._out / f"replay-{point.number + 1:02}")

    def _close(self) -> None:
        if self._view is not None:
            self._view.__exit__(None, None, None)
            self._view = None

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def show(found: Sweep) -> None:
    """The table of points and the sentence."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from braid.lab.sweep.words import sentence, table_rows

    console = Console()
    rows = table_rows(found)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in rows.columns:
        words = column == "note"
        table.add_column(column, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    for cells in rows.cells:
        style = "red" if cells[-1].startswith("INVALID") else ""
        table.add_row(*(Text(cell, style=style) for cell in cells))
    if rows.cells:
        console.print(table)
    for note in found.notes:
        console.print(f"note: {note}", style="dim", markup=False, highlight=False, soft_wrap=True)
    console.print(sentence(found), style="bold", markup=False, highlight=False, soft_wrap=True)
