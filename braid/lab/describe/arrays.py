"""What every statistic here starts from: columns as numpy arrays, and few numbers for many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import polars as pl

Floats = tuple[float | None, ...]
"""Numbers of a description; None where there are too few rows for one (JSON has no NaN)."""

QUANTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
BOX = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The five lines of a box: its whiskers are the 5th and 95th percentile."""


def floats(values: Iterable[Any], digits: int = 6) -> Floats:
    """Plain floats of ``digits`` significant digits, NaN and infinity as None."""
    return tuple(rounded(value, digits) for value in values)


def rounded(value: float, digits: int = 6) -> float | None:
    """One number as ``floats`` writes it."""
    return float(f"{value:.{digits}g}") if np.isfinite(value) else None


def ints(values: Iterable[Any]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def box(values: np.ndarray) -> Floats:
    """The five numbers of ``BOX``; all None without values."""
    return floats(np.quantile(values, BOX)) if values.size else (None,) * len(BOX)


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


def bucket_sums(index: np.ndarray, length: int, weights: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Sums of each of ``weights`` by bucket; NaN counts as nothing. Shapes ``(length,)``."""
    return [np.bincount(index, np.nan_to_num(values), minlength=length)[:length] for values in weights]
