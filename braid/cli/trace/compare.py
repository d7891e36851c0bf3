"""``braid trace compare``: is a synthetic trace like the real one?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from braid.cli.trace.load import Format, JsonOut


def compare(
    real: Annotated[Path, Parameter(help="The real trace (its held-out part, where there is --train).")],
    synthetic: Annotated[Path, Parameter(help="The synthetic one.")],
    *,
    train: Annotated[
        Path | None,
        Parameter(
            help="The fitted part: its distance to the held-out part is the floor.",
            show_default="none",
        ),
    ] = None,
    idc_slack: Annotated[float, Parameter(help="How far the index of dispersion may be off.")] = 0.25,
    format: Format = "auto",
    seed: Annotated[int, Parameter(help="Of the bootstrap.")] = 0,
    json: JsonOut = None,
) -> int:
    """Compare two traces, statistic by statistic; exit status 1 where one that counts fails."""
    from braid.cli.trace.console import ConsoleProgress
    from braid.cli.trace.lab_tables import show_rows
    from braid.cli.trace.opening import open_trace
    from braid.cli.trace.reading import write_json
    from braid.lab.compare import Part, passed
    from braid.lab.compare import compare as run

    with ConsoleProgress() as progress:
        parts = [Part(trace=open_trace(path, format, progress)) for path in (real, synthetic)]
        known = Part(trace=open_trace(train, format, progress)) if train else None
        progress.update("comparing", 0, None)
        rows = run(parts[0], parts[1], known, idc_slack=idc_slack, seed=seed)
    show_rows(rows)
    if json is not None:
        write_json({"passed": passed(rows), "rows": [row._asdict() for row in rows]}, json)
    return 0 if passed(rows) else 1
