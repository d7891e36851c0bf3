"""``braid trace scale``: more or less load, by whole programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from braid.cli.trace.load import Format, JsonOut, TraceFile


def scale(
    file: TraceFile,
    *,
    factor: Annotated[float, Parameter(help="Times the load; under 1 thins, over 1 superposes.")],
    out: Annotated[Path, Parameter(help="Write the trace here, as parquet.")],
    format: Format = "auto",
    jitter: Annotated[
        float,
        Parameter(help="Copies' programs start within +- so many seconds; 0 moves each copy as a whole."),
    ] = 1200.0,
    compress: Annotated[
        bool, Parameter(help="Divide all times instead: squeezes think times, warned.", negative=())
    ] = False,
    seed: Annotated[
        int, Parameter(help="Same seed, same programs; a smaller share is part of a larger.")
    ] = 0,
    json: JsonOut = None,
) -> None:
    """Change a trace's load; gaps within programs stay as they are."""
    from rich.console import Console

    from braid.cli.trace.console import ConsoleProgress
    from braid.cli.trace.opening import open_trace
    from braid.cli.trace.reading import write_json
    from braid.lab.scale import COMPRESS_WARNING
    from braid.lab.scale import compress as squeeze
    from braid.lab.scale import scale as run
    from braid.lab.table import save

    with ConsoleProgress() as progress:
        trace = open_trace(file, format, progress)
        scaled = squeeze(trace, factor) if compress else run(trace, factor, seed, jitter)
        save(scaled, out)
    if compress:
        Console(stderr=True).print(f"warning: {COMPRESS_WARNING}", style="yellow", soft_wrap=True)
    console = Console()
    notes = scaled.info.notes[len(trace.info.notes) :]
    for line in (f"{trace.num_requests:,} -> {scaled.num_requests:,} requests, kept as {out}", *notes):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if json is not None:
        write_json({"rows": scaled.num_requests, "rows_before": trace.num_requests, "notes": notes}, json)
