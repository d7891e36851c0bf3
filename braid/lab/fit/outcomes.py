"""Failures against load, and cancels."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from braid.lab.distance import Floats, input_bins

WINDOW_S = 60.0


class FailureRow(msgspec.Struct, frozen=True, kw_only=True):
    """Requests whose window of ``WINDOW_S`` held under ``load_below`` requests (None: the highest loads)."""

    load_below: float | None
    num: int
    share: float
    interval: tuple[float, float]


class Outcomes(msgspec.Struct, frozen=True, kw_only=True):
    """Failure share by load per minute (relative to the mean load), and the share of cancels."""

    mean_load: float
    failures: tuple[FailureRow, ...]
    cancelled: float


def wilson(hits: int, num: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927)."""
    if not num:
        return 0.0, 1.0
    p, z2 = hits / num, z * z
    middle, half = (p + z2 / (2 * num)), z * np.sqrt(p * (1 - p) / num + z2 / (4 * num * num))
    return float(max(0, middle - half) / (1 + z2 / num)), float(
        min(1 + z2 / num, middle + half) / (1 + z2 / num)
    )


def loads(times: Floats) -> NDArray[np.int64]:
    """Requests in the same window, for every request."""
    cell = np.floor(times / WINDOW_S).astype(np.int64)
    _, inverse, num = np.unique(cell, return_inverse=True, return_counts=True)
    return np.asarray(num[inverse], np.int64)


def fit_outcomes(times: Floats, failed: NDArray[np.bool_], cancelled: NDArray[np.bool_]) -> Outcomes:
    """Up to eight bins of load with equally many requests; one without arrival times."""
    load = loads(times).astype(float) if times.size else np.ones(failed.size)
    edges = input_bins(load, int(np.clip(failed.sum() // 20, 1, 8)))
    index = np.searchsorted(edges, load, "right")
    rows = []
    for b in range(edges.size + 1):
        inside = index == b
        num, hits = int(inside.sum()), int(failed[inside].sum())
        below = float(edges[b]) if b < edges.size else None
        rows.append(
            FailureRow(load_below=below, num=num, share=hits / max(num, 1), interval=wilson(hits, num))
        )
    return Outcomes(
        mean_load=float(load.mean()) if load.size else 0.0,
        failures=tuple(rows),
        cancelled=float(cancelled.mean()) if cancelled.size else 0.0,
    )


def failure_shares(outcomes: Outcomes, load: Floats, mean_load: float) -> Floats:
    """Chance of failure at each load; loads are read relative to the mean, so scaled traffic keeps its shares."""
    edges = np.array([row.load_below for row in outcomes.failures if row.load_below is not None])
    shares = np.array([row.share for row in outcomes.failures])
    scaled = load * (outcomes.mean_load / mean_load) if mean_load > 0 else load
    return np.asarray(shares[np.searchsorted(edges, scaled, "right")])
