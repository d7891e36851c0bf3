"""The one table that every trace becomes, and its file.

Shapes: one row per request, in order of ``t_s``; ties keep the order of the source.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl
from polars.io.plugins import register_io_source

from braid.core.errors import BraidError

SCHEMA_VERSION = 2
"""Version 1 had neither ``input_kind`` nor ``finish`` nor ``tool``; its files are read, with these unknown."""
READABLE = (1, SCHEMA_VERSION)
KINDS = ("conv", "api", "agent")
STATUSES = ("ok", "failed", "cancelled", "unknown")
INPUT_KINDS = ("user", "tool", "mixed")
FINISHES = ("tool", "text", "stop", "length", "abort")
"""As in ``policy.agents.program.Finish``; unknown is null."""

SCHEMA: Mapping[str, Any] = {
    "t_s": pl.Float64,
    "model": pl.String,
    "kind": pl.Enum(KINDS),
    "program_id": pl.String,
    "turn": pl.Int32,
    "parent_id": pl.String,
    "in_tok": pl.Int64,
    "out_tok": pl.Int64,
    "cached_tok": pl.Int64,
    "status": pl.Enum(STATUSES),
    "e2e_s": pl.Float64,
    "ttft_s": pl.Float64,
    "gap_before_s": pl.Float64,
    "block_ids": pl.List(pl.Int64),
    "input_kind": pl.Enum(INPUT_KINDS),
    "finish": pl.Enum(FINISHES),
    "tool": pl.String,
}
"""Columns, always all of them, in this order; what the source does not say is null, and null is not zero.

    t_s           arrival, seconds from the trace's start; null where the source has no absolute time
    program_id    the conversation or agent a request is a turn of; null where the source does not say
    turn          its number within the program, from 0
    parent_id     the program that started this one
    in_tok        prompt tokens, the whole prompt
    out_tok       output tokens; 0 only where the source means zero, as in a failed row
    cached_tok    prompt tokens that an ideal cache of everything earlier would hold, where the source says so
    e2e_s         from submission to the last token; ttft_s to the first
    gap_before_s  from the end of the program's previous turn to this arrival (think or tool time)
    block_ids     ids of the prompt's blocks (``TraceInfo.block_size`` tokens each, the last one partial)
    input_kind    what the prompt adds to the turn before: a person's words (``user``), results of tools (``tool``), or
                  both, or an edited history (``mixed``)
    finish        how the answer ended: it calls tools, it is a text, a stop string, the length, a client that left
    tool          what it calls: one name, or several different ones in sorted order, joined by ``+``
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceInfo:
    """What is known of a trace beside its rows.

    Args:
        source: the file it was read from, or how it was made.
        format: the reader's name.
        t_quantum_s: the grid that arrival times sit on; 0 for none.
        block_size: tokens per block id; None where there are no block ids.
        hash_scope: ``global`` where equal block ids mean equal blocks everywhere, ``program`` within a program only.
        input_scope: ``full`` where ``in_tok`` holds the whole prompt of a turn, ``unknown`` where the source does not
            say whether earlier turns are included.
        sha256: of the input file.
        licence, citation: of the data, printed wherever it is used.
        notes: what a reader must know, one sentence each.
        spans: stretches of time ``[start, stop)`` that the rows cover, where a part was cut out of a trace; empty for
            everything from the first row to the last.
    """

    source: str = ""
    format: str = ""
    t_quantum_s: float = 0.0
    block_size: int | None = None
    hash_scope: str = "global"
    input_scope: str = "full"
    sha256: str = ""
    licence: str = ""
    citation: str = ""
    notes: tuple[str, ...] = ()
    spans: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """Something an audit noticed. ``name`` is one word for programs, ``text`` one sentence for people.

    ``level`` is ``info``, ``warning`` (look at it) or ``error`` (rows were left out, or the data is not what it says).
    ``rows`` holds up to ten row numbers of the source (from 1, the header not counted) as examples.
    """

    name: str
    level: str
    count: int
    text: str
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace: rows, what is known of them, and what its reader and the audit noticed."""

    frame: pl.DataFrame
    info: TraceInfo
    findings: tuple[Finding, ...] = ()

    @property
    def num_requests(self) -> int:
        return self.frame.height

    @property
    def num_programs(self) -> int:
        """Programs that the source names; requests without one are not counted."""
        return self.frame["program_id"].drop_nulls().n_unique()

    @property
    def span_s(self) -> float:
        """From the first arrival to the last, in seconds; 0 where there are no times."""
        times = self.frame["t_s"].drop_nulls().to_numpy()
        return float(times.max() - times.min()) if times.size else 0.0


class TraceError(BraidError, ValueError):
    """A file is no trace, or not one that can be used; the text names the row and the reason."""


def conform(frame: pl.DataFrame) -> pl.DataFrame:
    """All columns of ``SCHEMA`` in order, absent ones null, further ones kept behind; sorted by time, ties in place."""
    missing = [
        pl.lit(None, dtype=dtype).alias(name) for name, dtype in SCHEMA.items() if name not in frame.columns
    ]
    extra = [name for name in frame.columns if name not in SCHEMA]
    casts = [pl.col(name).cast(dtype) for name, dtype in SCHEMA.items() if name in frame.columns]
    ordered = frame.with_columns(*missing, *casts).select(*SCHEMA, *extra)
    return ordered.sort("t_s", maintain_order=True, nulls_last=True)


def save(trace: Trace, path: Path) -> None:
    """Write parquet, with what is known of the trace in the file's metadata.

    Raises:
        TraceError: ``path`` cannot be written.
    """
    head = {
        "version": SCHEMA_VERSION,
        "info": asdict(trace.info),
        "findings": [asdict(finding) for finding in trace.findings],
    }
    try:
        trace.frame.write_parquet(path, compression="zstd", metadata={"braid": json.dumps(head)})
    except OSError as error:
        raise TraceError(f"cannot write {path}: {error.strerror or error}") from None


def save_stream(frames: Iterator[pl.DataFrame], info: TraceInfo, path: Path) -> int:
    """Write conforming frames as they come, one in memory at a time, to a file like ``save``'s; the number of rows."""
    head = {"version": SCHEMA_VERSION, "info": asdict(info), "findings": []}
    rows = 0

    def source(*_: object) -> Iterator[pl.DataFrame]:
        nonlocal rows
        for frame in frames:
            rows += frame.height
            yield frame

    lazy = register_io_source(source, schema=dict(SCHEMA))
    lazy.sink_parquet(path, compression="zstd", metadata={"braid": json.dumps(head)})
    return rows


def load(path: Path) -> Trace:
    """Read what ``save`` wrote.

    Raises:
        TraceError: the file is not parquet, or not a trace of ours.
    """
    try:
        head = json.loads(pl.read_parquet_metadata(path).get("braid", "null"))
        frame = pl.read_parquet(path)
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise TraceError(f"{path}: cannot be read as parquet: {error}") from None
    if not isinstance(head, dict) or head.get("version") not in READABLE:
        raise TraceError(f"{path}: was not written by braid trace load (or by another version of it)")
    if head["version"] != SCHEMA_VERSION:
        frame = conform(frame)
    info = head["info"]
    findings = tuple(Finding(**{**entry, "rows": tuple(entry["rows"])}) for entry in head["findings"])
    spans = tuple((float(start), float(stop)) for start, stop in info.get("spans", ()))
    return Trace(frame, TraceInfo(**{**info, "notes": tuple(info["notes"]), "spans": spans}), findings)
