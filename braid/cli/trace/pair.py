"""``braid trace pair``: prompt lengths for a trace that has none."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from braid.cli.trace.load import Format, JsonOut, TraceFile


def pair(
    file: TraceFile,
    lengths: Annotated[Path, Parameter(help="The trace whose programs lend their prompt lengths.")],
    *,
    out: Annotated[Path, Parameter(help="Write the trace here, as parquet.")],
    format: Format = "auto",
    seed: Annotated[int, Parameter(help="Same seed, same lengths.")] = 0,
    json: JsonOut = None,
) -> None:
    """Give programs without prompt lengths those of another trace's programs, and say so in the trace."""
    from rich.console import Console

    from braid.cli.trace.console import ConsoleProgress
    from braid.cli.trace.opening import open_trace
    from braid.cli.trace.reading import write_json
    from braid.lab.synthetic.pair import with_lengths
    from braid.lab.table import save

    with ConsoleProgress() as progress:
        trace, source = open_trace(file, format, progress), open_trace(lengths, "auto", progress)
        paired = with_lengths(trace, source, seed)
        save(paired, out)
    note = paired.info.notes[-1]
    Console().print(f"kept as {out}\n{note}", markup=False, highlight=False, soft_wrap=True)
    if json is not None:
        write_json({"rows": paired.num_requests, "out": str(out), "seed": seed, "note": note}, json)
