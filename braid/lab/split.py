"""A trace cut in two: one part to fit, one to judge by.

Programs are never cut: they belong, with their sub-programs, where they begin. What stretches of time a part covers is
kept in ``TraceInfo.spans``, so that a hole is not taken for a silence.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from braid.lab.fit.observed import Spans, alternate
from braid.lab.scale import chances, families
from braid.lab.table import Trace, TraceError

BLOCKS = 20
"""A trace is cut into so many blocks where nothing else is said; on an hour, three minutes each."""


def spans_of(trace: Trace) -> Spans:
    """What the rows cover: as kept, else from the first arrival to just after the last (a quantum, or a mean gap).

    Raises:
        TraceError: no arrival times.
    """
    if trace.info.spans:
        return trace.info.spans
    times = trace.frame["t_s"].drop_nulls().to_numpy()
    if times.size < 2 or times.max() <= times.min():
        raise TraceError(f"{trace.info.source}: has no arrival times to split by: split by programs")
    low, high = float(times.min()), float(times.max())
    return ((low, high + (trace.info.t_quantum_s or (high - low) / times.size)),)


def inside(frame: pl.DataFrame, spans: Spans) -> pl.DataFrame:
    """Requests that arrive in these spans, and whole programs that begin there."""
    conditions = [(pl.col("start") >= start) & (pl.col("start") < stop) for start, stop in spans]
    return frame.filter(_starts(frame).to_frame("start").select(pl.any_horizontal(conditions)).to_series())


def _starts(frame: pl.DataFrame) -> pl.Series:
    """When a row's program (with all that belong to it) began; the row's own time where it has none."""
    if frame["program_id"].null_count() == frame.height:
        return frame["t_s"]
    known = pl.DataFrame({"owner": families(frame), "t_s": frame["t_s"]})
    first = pl.when(pl.col("owner").is_null()).then("t_s").otherwise(pl.col("t_s").min().over("owner"))
    return known.select(first).to_series()


def split_time(trace: Trace, at_s: float) -> tuple[Trace, Trace]:
    """What begins before ``at_s`` (on the trace's clock), and the rest.

    Raises:
        TraceError: no arrival times, or none on either side.
    """
    whole = spans_of(trace)
    if not (np.isfinite(at_s) and whole[0][0] < at_s < whole[-1][1]):
        raise TraceError(
            f"a trace from {whole[0][0]:g} s to {whole[-1][1]:g} s cannot be split at {at_s:g} s"
        )
    early = tuple((start, min(stop, at_s)) for start, stop in whole if start < at_s)
    late = tuple((max(start, at_s), stop) for start, stop in whole if stop > at_s)
    return _part(trace, early, f"before {at_s:g} s"), _part(trace, late, f"from {at_s:g} s on")


def split_blocks(trace: Trace, block_s: float | None = None) -> tuple[Trace, Trace]:
    """Every second block of ``block_s`` seconds (None: a twentieth of the time), and the blocks between.

    Slow drift then meets both parts alike; chronological halves of real traffic differ by their drift alone.

    Raises:
        TraceError: no arrival times, or blocks that do not fit the trace twice.
    """
    whole = spans_of(trace)
    length = whole[-1][1] - whole[0][0]
    block_s = length / BLOCKS if block_s is None else block_s
    if not 0 < block_s < length:
        raise TraceError(
            f"blocks must be above 0 s and shorter than the trace ({length:g} s), got {block_s:g}"
        )
    parts = (alternate(whole, block_s, part) for part in (0, 1))
    first, second = (_part(trace, spans, f"every second block of {block_s:g} s") for spans in parts)
    return first, second


def split_programs(trace: Trace, share: float, seed: int = 0) -> tuple[Trace, Trace]:
    """Whole programs by a hash of their id: about ``share`` of them, and the rest.

    Raises:
        TraceError: a share outside (0, 1), or an empty part.
    """
    if not 0 < share < 1:
        raise TraceError(f"the share of programs for the first part must lie between 0 and 1, got {share}")
    first = chances(trace.frame, seed) < share
    parts = []
    for mask, part in ((first, share), (~first, 1 - share)):
        rows = trace.frame.filter(pl.Series(mask))
        parts.append(_noted(trace, rows, trace.info.spans, f"{part:.0%} of the programs (seed {seed})"))
    return parts[0], parts[1]


def _part(trace: Trace, spans: Spans, what: str) -> Trace:
    return _noted(trace, inside(trace.frame, spans), spans, what)


def _noted(trace: Trace, rows: pl.DataFrame, spans: Spans, what: str) -> Trace:
    if not rows.height:
        raise TraceError(f"{trace.info.source}: nothing is left for the part '{what}'")
    info = replace(trace.info, spans=spans, notes=(*trace.info.notes, f"A part: {what}."))
    return Trace(rows, info, trace.findings)
