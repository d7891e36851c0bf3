"""``braid trace load``: any known trace to one parquet file, with what is wrong in it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

TraceFile = Annotated[Path, Parameter(help="A trace: a file, plain or .gz, or a folder of them.")]
Format = Annotated[str, Parameter(help="Its format; auto goes by header and keys.")]
JsonOut = Annotated[Path | None, Parameter(help="Write the result as JSON here, too.", show_default="none")]


def load(
    file: TraceFile,
    *,
    format: Format = "auto",
    out: Annotated[
        Path | None, Parameter(help="Write the trace here, as parquet.", show_default="none")
    ] = None,
    json: JsonOut = None,
) -> None:
    """Read a trace, say what it holds and what is odd in it, and keep it as parquet."""
    from braid.cli.trace.console import ConsoleProgress
    from braid.cli.trace.reading import report, show, write_json
    from braid.lab.readers import read_trace
    from braid.lab.table import save

    with ConsoleProgress() as progress:
        trace = read_trace(file, format, progress)
        if out is not None:
            progress.update(f"writing {out}", 0, None)
            save(trace, out)
    show(trace, out)
    if json is not None:
        write_json(report(trace, out), json)
