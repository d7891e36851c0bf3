"""``braid trace split``: a part to fit, and a part to judge by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from braid.cli.trace.load import Format, JsonOut, TraceFile


def split(
    file: TraceFile,
    *,
    out_train: Annotated[Path, Parameter(help="Write the part to fit here, as parquet.")],
    out_test: Annotated[Path, Parameter(help="Write the part to judge by here, as parquet.")],
    at: Annotated[
        float | None, Parameter(help="Cut at this second of the trace's clock.", show_default="none")
    ] = None,
    blocks: Annotated[
        float | None,
        Parameter(help="Take turns in blocks of so many seconds.", show_default="a twentieth of the time"),
    ] = None,
    programs: Annotated[
        float | None,
        Parameter(
            help="Fit this share of the programs, whole, by a hash of their ids.",
            show_default="0.5 where the trace has no clock",
        ),
    ] = None,
    format: Format = "auto",
    seed: Annotated[int, Parameter(help="Of the hash.")] = 0,
    json: JsonOut = None,
) -> None:
    """Cut a trace in two, by time or by programs; no program is cut."""
    from rich.console import Console

    from braid.cli.trace.console import ConsoleProgress
    from braid.cli.trace.opening import open_trace
    from braid.cli.trace.reading import write_json
    from braid.core.errors import InvalidParameterError
    from braid.lab.split import split_blocks, split_programs, split_time
    from braid.lab.table import save

    if sum(value is not None for value in (at, blocks, programs)) > 1:
        raise InvalidParameterError("give one of --at, --blocks and --programs")
    with ConsoleProgress() as progress:
        trace = open_trace(file, format, progress)
        if programs is not None or (at is None and blocks is None and not trace.span_s):
            parts = split_programs(trace, 0.5 if programs is None else programs, seed)
        else:
            parts = split_time(trace, at) if at is not None else split_blocks(trace, blocks)
        for part, path in zip(parts, (out_train, out_test), strict=True):
            save(part, path)
    console = Console()
    for name, part, path in zip(("to fit", "to judge by"), parts, (out_train, out_test), strict=True):
        line = f"{name}: {part.num_requests:,} requests, kept as {path}. {part.info.notes[-1]}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if json is not None:
        rows = [part.num_requests for part in parts]
        write_json({"rows": {"train": rows[0], "test": rows[1]}, "notes": parts[0].info.notes[-1]}, json)
