"""How far two samples lie apart: KS distances with intervals, index of dispersion, the input-output band.

No p-values: at a million rows everything is rejected, in a small window nothing is. Effect size and interval instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

BOOTSTRAP_ROWS = 20_000
"""Above this size a bootstrap works on a random part of this size; its interval is then the wider one."""


@dataclass(frozen=True, slots=True)
class Distance:
    """Kolmogorov-Smirnov distance, ``sup |F - G|``, with the 95 % interval of a bootstrap of the data."""

    ks: float
    low: float
    high: float


def ks(a: Floats, b: Floats) -> float:
    """``sup |F_a - F_b|`` of two samples; nan where one is empty."""
    if not a.size or not b.size:
        return float("nan")
    a, b = np.sort(a), np.sort(b)
    both = np.concatenate([a, b])
    fa = np.searchsorted(a, both, side="right") / a.size
    fb = np.searchsorted(b, both, side="right") / b.size
    return float(np.abs(fa - fb).max())


def ks_interval(a: Floats, b: Floats, rng: np.random.Generator, num: int = 100) -> Distance:
    """KS of two samples with a percentile bootstrap interval (both samples drawn anew ``num`` times)."""
    d = ks(a, b)
    if not a.size or not b.size:
        return Distance(d, d, d)
    a, b = (np.sort(x if x.size <= BOOTSTRAP_ROWS else rng.choice(x, BOOTSTRAP_ROWS)) for x in (a, b))
    both = np.concatenate([a, b])
    at_a, at_b = np.searchsorted(a, both, side="right"), np.searchsorted(b, both, side="right")
    draws = [np.abs(_drawn(a.size, rng)[at_a] - _drawn(b.size, rng)[at_b]).max() for _ in range(num)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Distance(d, float(min(low, d)), float(max(high, d)))


def _drawn(size: int, rng: np.random.Generator) -> Floats:
    """Share of a bootstrap sample among the first 0, 1, ... ``size`` of sorted values."""
    counts = np.bincount(rng.integers(size, size=size), minlength=size)
    return np.asarray(np.concatenate([[0], np.cumsum(counts)]) / size)


def input_bins(inputs: Floats, num: int = 10) -> Floats:
    """Inner edges of bins that hold about equally many inputs (fewer where values repeat much)."""
    if not inputs.size:
        return np.empty(0)
    return np.unique(np.quantile(inputs, np.linspace(0, 1, num + 1)[1:-1]))


class Band(NamedTuple):
    """KS of outputs within input bins: the mean weighted by the reference's rows, and the largest."""

    mean: float
    worst: float


def conditional_ks(reference: tuple[Floats, Floats], other: tuple[Floats, Floats], num: int = 10) -> Band:
    """KS of outputs given the input: both are ``(inputs, outputs)``, bins of equal count from the reference."""
    edges = input_bins(reference[0], num)
    bins_r, bins_o = np.searchsorted(edges, reference[0], "right"), np.searchsorted(edges, other[0], "right")
    weights = np.bincount(bins_r, minlength=edges.size + 1).astype(float)
    each = np.array([ks(reference[1][bins_r == b], other[1][bins_o == b]) for b in range(edges.size + 1)])
    each = np.where(np.isnan(each), 1.0, each)  # a bin that the other never reaches is as wrong as can be
    if not weights.sum():
        return Band(float("nan"), float("nan"))
    kept = weights > 0
    return Band(float(np.average(each[kept], weights=weights[kept])), float(each[kept].max()))


def window_counts(times: Floats, window_s: float, spans: Sequence[tuple[float, float]]) -> NDArray[np.int64]:
    """Arrivals in the full windows of every span ``[start, stop)``; each span's last partial window is left out."""
    parts = []
    for start, stop in spans:
        num = int((stop - start) / window_s + 1e-9)
        low, high = np.searchsorted(times, [start, start + num * window_s])
        index = ((times[low:high] - start) / window_s).astype(np.int64)
        parts.append(np.bincount(np.minimum(index, max(num - 1, 0)), minlength=num)[:num])
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def idc(times: Floats, window_s: float, spans: Sequence[tuple[float, float]] | None = None) -> float:
    """Index of dispersion of counts, ``Var(N) / E(N)`` over full windows; 1 for Poisson. ``times`` rise.

    nan where there are fewer than two windows or no arrivals.
    """
    if not times.size:
        return float("nan")
    counts = window_counts(times, window_s, spans or [(float(times[0]), float(times[-1]))])
    if counts.size < 2 or not counts.any():
        return float("nan")
    return float(counts.var() / counts.mean())


def usable_windows(
    quantum_s: float, span_s: float, wanted: Sequence[float] = (1, 10, 60, 600)
) -> list[float]:
    """Those window lengths that a clock of this quantum and a trace of this length can tell something about."""
    return [float(w) for w in wanted if w >= quantum_s and w <= span_s / 20]


def rescaled_gaps(times: Floats, window_s: float) -> Floats:
    """Gaps in units of the local mean gap (time rescaling by a rate that is constant per window).

    Drift is not mistaken for burstiness: a Poisson process of any slowly changing rate gives unit exponentials.
    """
    if times.size < 2:
        return np.empty(0)
    start, stop = float(times[0]), float(times[-1])
    num = max(1, int(np.ceil((stop - start) / window_s)))
    edges = np.minimum(start + np.arange(num + 1) * window_s, stop)
    counts = np.histogram(times, edges)[0]
    operational = np.concatenate([[0.0], np.cumsum(counts.astype(float))])
    gaps: Floats = np.diff(np.interp(times, edges, operational))
    return gaps
