"""``braid trace versus``: is run B better than run A?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from braid.cli.trace.load import JsonOut
from braid.cli.trace.replay_options import SloFlags
from braid.cli.trace.report import INVALID

if TYPE_CHECKING:
    from braid.lab.versus.comparison import Comparison

STYLES = {"better": "green", "worse": "red", "same": "blue"}


def versus(
    *runs: Annotated[
        Path, Parameter(help="Folders of runs: A B, and further pairs A B as repeats of the comparison.")
    ],
    slo: SloFlags = SloFlags(),  # noqa: B008  (frozen)
    unpaired: Annotated[
        bool, Parameter(help="Compare runs of different plans, by their distributions only.", negative=())
    ] = False,
    seed: Annotated[int, Parameter(help="Of the bootstrap.")] = 0,
    html: Annotated[Path | None, Parameter(help="Write the page here.", show_default="none")] = None,
    json: JsonOut = None,
) -> int:
    """Compare runs of one plan, request by request, with intervals; exit status 3 where a run is invalid."""
    from braid.cli.trace.console import ConsoleProgress
    from braid.cli.trace.reading import write_json
    from braid.core.errors import BraidError, InvalidParameterError
    from braid.lab.replay.record import load_run
    from braid.lab.versus.figures import draw
    from braid.lab.versus.page import page
    from braid.lab.versus.versus import versus as compare

    if len(runs) < 2 or len(runs) % 2:
        raise InvalidParameterError(f"runs come in pairs, A B [A B ...]; got {len(runs)}")
    with ConsoleProgress() as progress:
        progress.update("comparing", 0, None)
        loaded = [load_run(folder) for folder in runs]
        pairs = list(zip(loaded[::2], loaded[1::2], strict=True))
        found = compare(pairs, slo.slo(), unpaired=unpaired, seed=seed)
        text = page(found, draw(found, progress)) if html is not None else ""
    show(found)
    if html is not None:
        try:
            html.write_text(text, encoding="utf-8")
        except OSError as error:
            raise BraidError(f"cannot write {html}: {error.strerror}") from None
        print(f"page: {html}")
    if json is not None:
        write_json(found.as_json(), json)
    return INVALID if found.invalid else 0


def show(found: Comparison) -> None:
    """The table, what to know, and last the sentence."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from braid.cli.trace.console import print_table
    from braid.lab.versus.page import table_rows

    console = Console()
    rows = table_rows(found)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(rows.columns):
        edge = number in (0, len(rows.columns) - 1)
        table.add_column(column, justify="left" if edge else "right", no_wrap=True)
    for cells in rows.cells:
        table.add_row(
            *(Text(cell) for cell in cells[:-1]), Text(cells[-1], style=STYLES.get(cells[-1], "dim"))
        )
    print_table(console, table)
    for what in found.differs:
        console.print(f"differs: {what}", style="dim", markup=False, highlight=False, soft_wrap=True)
    for note in found.notes:
        console.print(f"note: {note}", style="dim", markup=False, highlight=False, soft_wrap=True)
    style = "bold red" if found.invalid else "bold"
    console.print(found.verdict, style=style, markup=False, highlight=False, soft_wrap=True)
