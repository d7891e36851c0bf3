"""What every statistic of the lab starts from: columns as numpy arrays, counts, and few numbers for many."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

Floats = tuple[float | None, ...]
"""Numbers of a description; None where there are too few rows for one (JSON has no NaN)."""

QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
BOX = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The five lines of a box: its whiskers are the 5th and 95th percentile."""


def floats(values: Iterable[Any], digits: int = 6) -> Floats:
    """Plain floats of ``digits`` significant digits, NaN and infinity as None."""
    plain = values.tolist() if isinstance(values, np.ndarray) else values
    return tuple(rounded(value, digits) for value in plain)


def rounded(value: float, digits: int = 6) -> float | None:
    """One number as ``floats`` writes it."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else None


def ints(values: Iterable[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def box(values: np.ndarray) -> Floats:
    """The five numbers of ``BOX``; all None without values."""
    return floats(np.quantile(values, BOX)) if values.size else (None,) * len(BOX)


def tokens(frame: pl.DataFrame, name: str) -> np.ndarray:
    """A column of token counts as int64, null as 0. Shape ``(rows,)``."""
    series = frame[name]
    return (series.fill_null(0) if series.null_count() else series).to_numpy()


def column(frame: pl.DataFrame, name: str) -> np.ndarray:
    """A numeric column as float64, null as NaN. Shape ``(rows,)``."""
    series = frame[name]
    if series.null_count() == 0 and series.dtype == pl.Float64:
        return series.to_numpy()
    return series.cast(pl.Float64).fill_null(float("nan")).to_numpy()


def log_edges(low: float, high: float, num: int) -> np.ndarray:
    """``num + 1`` edges from ``low`` to just above ``high``, equally wide on a log axis."""
    return np.geomspace(low, max(high, low * 1.01) * (1 + 1e-9), num + 1)


def integer_edges(low: int, high: int, num: int) -> np.ndarray:
    """Edges at half integers, about ``num`` bins of equal width on a log axis and none narrower than one integer."""
    inner = np.unique(np.round(np.geomspace(max(low, 1), max(high, low + 1), num + 1)))
    return np.append(inner - 0.5, inner[-1] + 0.5)


class Counts(NamedTuple):
    """Whole numbers counted: distinct values in order, and how often each occurs. Shapes ``(distinct,)``."""

    values: np.ndarray
    counts: np.ndarray


MOST_COUNTED = 50_000_000
"""Numbers up to this are counted in a table of all; beyond it they are sorted."""


def counted(values: np.ndarray) -> Counts:
    """Count whole numbers from 1; NaN and what is below 1 is left out."""
    whole = whole_numbers(values)
    top = int(whole.max(initial=0))
    if top > MOST_COUNTED:
        return Counts(*np.unique(whole[whole >= 1], return_counts=True))
    counts = np.bincount(np.maximum(whole, 0) if whole.min(initial=0) < 0 else whole, minlength=1)
    counts[0] = 0
    distinct = np.flatnonzero(counts)
    return Counts(distinct, counts[distinct])


def quantiles(seen: Counts, at: Sequence[float] | np.ndarray) -> np.ndarray:
    """Linear between the closest ranks (type 7) of all the numbers counted."""
    ends = np.cumsum(seen.counts)
    ranks = (ends[-1] - 1) * np.asarray(at)
    low, high = np.floor(ranks), np.ceil(ranks)
    lower, upper = (seen.values[np.searchsorted(ends, rank, side="right")] for rank in (low, high))
    return np.asarray(lower + (upper - lower) * (ranks - low))


def whole_numbers(values: np.ndarray) -> np.ndarray:
    """As int64; NaN counts as 0."""
    return (
        np.nan_to_num(values).astype(np.int64)
        if values.dtype.kind == "f"
        else values.astype(np.int64, copy=False)
    )


def sums_between(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Sums of whole numbers over the ranges between neighbours of ``bounds``. Shape ``(bounds - 1,)``."""
    total = np.zeros(values.size + 1, np.int64)
    np.cumsum(whole_numbers(values), out=total[1:])
    return np.diff(total[bounds])


def step_index(t_s: np.ndarray, begin_s: float, step_s: float) -> np.ndarray:
    """The step of ``step_s`` since ``begin_s`` that each time falls into. Dividing whole seconds is much faster."""
    since = t_s - begin_s
    if step_s != int(step_s):
        return np.asarray((since // step_s).astype(np.int64))
    seconds = np.floor(since, out=since).astype(np.int64)
    return seconds if step_s == 1 else seconds // int(step_s)


def first_of_runs(values: np.ndarray) -> np.ndarray:
    """Where each run of equal neighbours begins."""
    return np.concatenate(([0], np.flatnonzero(values[1:] != values[:-1]) + 1))[: values.size]


def run_sums(values: np.ndarray, first: np.ndarray) -> np.ndarray:
    """Sums of whole numbers over the runs that begin at ``first``."""
    if first.size == values.size:
        return values
    return np.diff(np.cumsum(values)[np.append(first[1:], values.size) - 1], prepend=0)
