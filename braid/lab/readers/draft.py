"""What a reader hands over, and how it becomes a trace."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import polars as pl

from braid.lab.audit import audit, quantum_of
from braid.lab.readers.bad import Problems
from braid.lab.readers.csvfile import ROW
from braid.lab.table import Finding, Trace, TraceInfo, conform

_EXAMPLES = 10
_UNORDERED = 0.01


@dataclass(slots=True)
class Draft:
    """Args:
    frame: columns of ``table.SCHEMA`` and further ones, rows in the source's order.
    info: with ``t_quantum_s`` 0 where the format does not fix it: it is looked for.
    problems: what the reader left out.
    findings: what else it noticed.
    """

    frame: pl.DataFrame
    info: TraceInfo
    problems: Problems = field(default_factory=Problems)
    findings: list[Finding] = field(default_factory=list)


class _Backwards(NamedTuple):
    steps: np.ndarray
    """Places (from 0) of rows that are earlier than the row before."""
    num_timed: int


def finish(draft: Draft) -> Trace:
    """Put the rows in order, look for the clock's quantum, audit."""
    back = _backwards(draft.frame)
    frame, findings = draft.frame, [*draft.problems.findings(), *draft.findings]
    if back.steps.size and ROW not in frame.columns:
        frame = frame.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.UInt32).alias(ROW))
    if back.steps.size:
        findings.append(_order_finding(frame, back))
    elif back.num_timed == frame.height:
        frame = frame.with_columns(pl.col("t_s").set_sorted())
    frame = conform(frame)
    info = draft.info
    if not info.t_quantum_s:
        info = replace(info, t_quantum_s=quantum_of(frame["t_s"].drop_nulls().to_numpy()))
    trace = Trace(frame, info)
    return replace(trace, findings=(*findings, *audit(trace)))


def _backwards(frame: pl.DataFrame) -> _Backwards:
    if "t_s" not in frame.columns:
        return _Backwards(np.empty(0, np.int64), 0)
    places = np.flatnonzero(frame["t_s"].is_not_null().to_numpy())
    steps = np.diff(frame["t_s"].drop_nulls().to_numpy())
    return _Backwards(places[1:][steps < 0], places.size)


def _order_finding(frame: pl.DataFrame, back: _Backwards) -> Finding:
    rows = tuple(frame[ROW].gather(back.steps[:_EXAMPLES]).to_list())
    count = int(back.steps.size)
    if count > _UNORDERED * back.num_timed:
        text = "rows are in no order of time, as in circulating sub-samples: judge arrivals with care; sorted"
        return Finding("unordered", "warning", count, text, rows)
    return Finding("inversions", "warning", count, "time runs backwards at these rows; sorted", rows)


def leave_out(draft_frame: pl.DataFrame, problems: Problems, bad: pl.Expr, reason: pl.Expr) -> pl.DataFrame:
    """Drop the rows where ``bad`` holds, noting ``reason`` (a string expression) of each."""
    if not draft_frame.select(bad.any()).item():
        return draft_frame
    if ROW not in draft_frame.columns:
        draft_frame = draft_frame.with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.UInt32).alias(ROW))
    for row, text in draft_frame.filter(bad).select(ROW, reason.alias("reason")).iter_rows():
        problems.add(row, text)
    return draft_frame.filter(~bad)


def with_turns(frame: pl.DataFrame) -> pl.DataFrame:
    """Number the turns of every program in order of time, and the gaps from the previous turn's end.

    A gap is negative where a turn began before the previous one ended, null where its end is unknown.
    """
    known = frame.select("t_s", "program_id", "e2e_s").with_row_index("at")
    known = known.filter(pl.col("program_id").is_not_null()).sort("t_s", maintain_order=True)
    end = (pl.col("t_s") + pl.col("e2e_s")).shift(1).over("program_id")
    turns = known.select(
        "at",
        pl.int_range(pl.len(), dtype=pl.Int32).over("program_id").alias("turn"),
        (pl.col("t_s") - end).alias("gap_before_s"),
    )
    return frame.with_columns(
        _laid(frame.height, turns[name], turns["at"]) for name in ("turn", "gap_before_s")
    )


def _laid(height: int, values: pl.Series, at: pl.Series) -> pl.Series:
    """A column with ``values`` at these rows and nulls elsewhere; a join would copy the whole frame for it."""
    column = pl.repeat(None, height, dtype=values.dtype, eager=True).alias(values.name)
    return column.scatter(at, values)
