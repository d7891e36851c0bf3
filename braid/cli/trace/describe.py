"""``braid trace describe``: what a trace looks like, in the terminal, as JSON, as figures and as one page."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from braid.cli.trace.load import Format, JsonOut, TraceFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from braid.lab.describe.description import Description
    from braid.lab.figures.process import DrawingProcess
    from braid.lab.progress import Progress
    from braid.lab.tables import Rows

TICKS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 60
MANY_ROWS = 500_000
"""From here on describing takes long enough for a second process to get ready to draw meanwhile."""


def describe(
    file: TraceFile,
    *,
    format: Format = "auto",
    out: Annotated[
        Path | None,
        Parameter(
            help="A folder for the figures (PNG), page.html and description.json.", show_default="none"
        ),
    ] = None,
    json: JsonOut = None,
    seed: Annotated[int, Parameter(help="Seed of the intervals' bootstraps.")] = 0,
) -> None:
    """Describe a trace: load, bursts, lengths, input and output, turns, reuse, failures."""
    from braid.cli.trace.console import ConsoleProgress
    from braid.cli.trace.reading import write_json
    from braid.lab.describe.description import describe as described
    from braid.lab.figures.process import DrawingProcess
    from braid.lab.readers import read_trace

    with ExitStack() as stack:
        progress = stack.enter_context(ConsoleProgress())
        trace = read_trace(file, format, progress)
        many = out is not None and trace.num_requests >= MANY_ROWS
        beside = stack.enter_context(DrawingProcess()) if many else None
        description = described(trace, progress, seed)
        if out is not None:
            write_folder(description, out, progress, beside)
    show(description)
    if out is not None:
        print(f"figures and page: {out / 'page.html'}")
    if json is not None:
        write_json(description.as_json(), json)


def write_folder(
    description: Description,
    folder: Path,
    progress: Progress | None = None,
    beside: DrawingProcess | None = None,
) -> None:
    """Figures, page and JSON into ``folder``, which is made if it is not there; ``beside`` draws some of the figures.

    Raises:
        BraidError: it cannot be written.
    """
    from braid.cli.trace.reading import write_json
    from braid.core.errors import BraidError
    from braid.lab.figures import draw_all
    from braid.lab.page import page

    pictures = draw_all(description, progress, beside)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            (folder / f"{picture.name}.png").write_bytes(picture.png)
        (folder / "page.html").write_text(page(description, pictures), encoding="utf-8")
    except OSError as error:
        raise BraidError(f"cannot write into {folder}: {error.strerror}") from None
    write_json(description.as_json(), folder / "description.json")


def show(description: Description) -> None:
    """The summary in the terminal."""
    from rich.console import Console
    from rich.markup import escape

    from braid.lab import tables

    console = Console()
    console.print(f"[bold]{escape(description.info.source)}[/bold]", highlight=False, soft_wrap=True)
    facts = (f"{name} [bold]{escape(value)}[/bold]" for name, value in tables.summary_rows(description))
    console.print(" · ".join(facts), highlight=False)
    for what, values in _histograms(description):
        console.print(f"{what:<22} [cyan]{spark(values)}[/cyan]", highlight=False, no_wrap=True)
    for rows in (
        tables.length_rows(description),
        tables.arrival_rows(description),
        tables.quartile_rows(description),
        tables.program_rows(description),
        tables.reuse_rows(description),
        tables.published_rows(description),
    ):
        if rows is not None:
            _print(rows)
    for name, reason in description.skipped.items():
        console.print(f"not described: {name}: {reason}", style="dim", highlight=False)
    for finding in description.findings:
        if finding.level != "info":
            console.print(f"[yellow]{finding.level}[/yellow] {escape(finding.text)}", highlight=False)
    for label, text in (("licence", description.info.licence), ("cite", description.info.citation)):
        if text:
            console.print(f"{label}: {text}", style="dim", markup=False, highlight=False, soft_wrap=True)


def spark(values: Sequence[float | None], width: int = SPARK_WIDTH) -> str:
    """A histogram of one line: ``values`` in at most ``width`` columns, each the mean of its part; none is blank."""
    columns = min(len(values), width)
    parts = [values[at * len(values) // columns : (at + 1) * len(values) // columns] for at in range(columns)]
    means = [sum(value or 0 for value in part) / len(part) for part in parts]
    top = max(means, default=0)
    if top <= 0:
        return " " * columns
    return "".join(
        TICKS[min(int(mean / top * len(TICKS)), len(TICKS) - 1)] if mean > 0 else " " for mean in means
    )


def _histograms(description: Description) -> list[tuple[str, Sequence[float | None]]]:
    shown: list[tuple[str, Sequence[float | None]]] = []
    if description.load is not None:
        shown.append(("requests over time", description.load.requests))
    for what, law in (
        ("prompt lengths (log)", description.whole.input),
        ("output lengths (log)", description.whole.output),
    ):
        if law is not None:
            shown.append((what, law.histogram))
    if description.turns is not None:
        shown.append(("turns per program", description.turns.counts))
    return shown


def _print(rows: Rows) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(rows.columns):
        note = column == "note"
        table.add_column(
            column,
            justify="left" if number == 0 or note else "right",
            overflow="fold",
            no_wrap=not note and number > 0,
        )
    for row in rows.cells:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
