"""How far counted numbers lie from a law."""

from __future__ import annotations

import numpy as np

from braid.lab.distance import Distance

BOOTSTRAPS = 100
BOOTSTRAP_POINTS = 512


def distance(
    counts: np.ndarray, law: np.ndarray, law_before: np.ndarray, rng: np.random.Generator
) -> Distance:
    """KS distance of values seen ``counts`` times and a law, ``P(X <= value)``, ``P(X <= value - 1)``, at each."""
    ks = farthest(counts, law, law_before)
    low, high = _bootstrap(counts, law, rng)
    return Distance(ks=ks, low=min(low, ks), high=max(high, ks))


def farthest(counts: np.ndarray, law: np.ndarray, law_before: np.ndarray) -> float:
    """KS distance, as in ``distance``."""
    data = np.cumsum(counts) / counts.sum()
    before = np.concatenate(([0.0], data[:-1]))
    return max(float(np.abs(data - law).max()), float(np.abs(before - law_before).max()))


def _bootstrap(counts: np.ndarray, law: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """95 % interval of the distance under resampling of the rows, seen at up to ``BOOTSTRAP_POINTS`` quantiles."""
    num, ends = int(counts.sum()), np.cumsum(counts)
    at = np.unique(np.searchsorted(ends, np.linspace(0, num, BOOTSTRAP_POINTS + 1)[1:], side="left"))
    shares = np.diff(ends[at], prepend=0) / num
    drawn = rng.multinomial(num, shares / shares.sum(), size=BOOTSTRAPS).cumsum(axis=1) / num
    low, high = np.quantile(np.abs(drawn - law[at]).max(axis=1), (0.025, 0.975))
    return float(low), float(high)
