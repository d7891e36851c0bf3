"""A trace from the command line: one of ours (parquet), or anything that a reader knows."""

from __future__ import annotations

from pathlib import Path

from braid.lab.progress import Progress
from braid.lab.readers import read_trace
from braid.lab.table import Trace, load


def open_trace(path: Path, format: str, progress: Progress) -> Trace:
    """Parquet by its ending.

    Raises:
        TraceError: it cannot be read.
    """
    if path.suffix == ".parquet":
        return load(path)
    return read_trace(path, format, progress)
