"""``braid trace report``: a saved run again, in the terminal, as JSON and as a page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from braid.cli.trace.load import JsonOut
from braid.cli.trace.replay_options import SloFlags

if TYPE_CHECKING:
    from rich.console import Console

    from braid.lab.measures.measure import Measures
    from braid.lab.tables import Rows

INVALID = 3
"""Exit status of a run whose numbers may not be believed."""
SHOWN_LATENCIES = ("TTFT", "TBT, per token", "TPOT", "E2E", "JCT, per program")


def report(
    run: Annotated[Path, Parameter(help="The folder that braid trace replay --out wrote.")],
    *,
    slo: SloFlags = SloFlags(),  # noqa: B008  (frozen)
    step: Annotated[
        float | None, Parameter(help="Seconds per row over time.", show_default="a 30th of the run")
    ] = None,
    html: Annotated[Path | None, Parameter(help="Write the page here.", show_default="none")] = None,
    json: JsonOut = None,
) -> int:
    """Show a saved run again, with other limits if you like; exit status 3 for an invalid run."""
    from braid.cli.trace.console import ConsoleProgress
    from braid.cli.trace.reading import write_json
    from braid.core.errors import InvalidParameterError
    from braid.lab.measures.measure import measure
    from braid.lab.measures.report import write_page
    from braid.lab.replay.record import load_run

    if step is not None and not step > 0:
        raise InvalidParameterError(f"--step {step:g}: must be more than 0 seconds")
    with ConsoleProgress() as progress:
        progress.update("measuring", 0, None)
        measures = measure(load_run(run), slo.slo(), step)
        if html is not None:
            write_page(measures, html, progress)
    show(measures)
    if json is not None:
        write_json(measures.as_json(), json)
    return 0 if measures.valid else INVALID


def show(measures: Measures, console: Console | None = None) -> None:
    """What a run says, short: the verdict, a few sentences, latency, outcomes."""
    from rich.console import Console

    from braid.lab.measures import summary

    console = console or Console()
    head = measures.head
    console.print(f"{head.label}: {head.model} at {head.url}", style="bold", markup=False, highlight=False)
    _verdict(measures, console)
    for text in summary.sentences(measures):
        console.print(text, markup=False, highlight=False)
    _print(summary.latency_rows(measures), console, SHOWN_LATENCIES)
    if summary.limits_of(measures.slo):
        _print(summary.goodput_rows(measures), console)
    if (failures := summary.failure_rows(measures)) is not None:
        _print(failures, console)
    for note in head.notes:
        console.print(f"note: {note}", style="dim", markup=False, highlight=False)
    for name, text in (("licence of the data", head.licence), ("cite", head.citation)):
        if text:
            console.print(f"{name}: {text}", style="dim", markup=False, highlight=False, soft_wrap=True)


def _verdict(measures: Measures, console: Console) -> None:
    from braid.lab.measures.summary import headline

    style = "bold green" if measures.valid else "bold white on red"
    console.print(headline(measures), style=style, markup=False, highlight=False)
    for text in measures.verdict.reasons:
        console.print(f"  {text}", style="red", markup=False, highlight=False)
    for text in measures.verdict.warnings:
        console.print(f"warning: {text}", style="yellow", markup=False, highlight=False)


def _print(rows: Rows, console: Console, only: tuple[str, ...] | None = None) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from braid.cli.trace.console import print_table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(rows.columns):
        text = number == 0 or column == "note"
        table.add_column(
            column, justify="left" if text else "right", overflow="fold", no_wrap=column != "note"
        )
    for row in rows.cells:
        if only is None or row[0] in only:
            table.add_row(*(Text(cell) for cell in row))
    print_table(console, table)
