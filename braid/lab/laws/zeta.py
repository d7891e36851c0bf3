"""Zipf's law of whole numbers, from any first one on (the discrete power law)."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import zeta

from braid.lab.arrays import Counts


def zeta_exponent(seen: Counts, first: int = 1) -> tuple[float, float]:
    """Maximum likelihood of ``k ** -s / zeta(s, first)`` and its standard error; all values are at least
    ``first``."""
    values, counts = seen
    num, mean_log = float(counts.sum()), float(counts @ np.log(values) / counts.sum())

    def cost(s: float) -> float:
        return float(s * mean_log + np.log(zeta(s, first)))

    best = float(minimize_scalar(cost, bounds=(1.0001, 30.0), method="bounded", options={"xatol": 1e-7}).x)
    step = 1e-3 * min(best - 1, 1.0)
    information = (cost(best + step) - 2 * cost(best) + cost(best - step)) / step**2
    return best, float(1 / np.sqrt(num * information)) if information > 0 else float("inf")


def zeta_cdf(exponent: float, first: int, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``P(X <= value)`` and ``P(X <= value - 1)``."""
    total = zeta(exponent, first)
    before = 1 - zeta(exponent, values.astype(np.float64)) / total
    return before + values.astype(np.float64) ** -exponent / total, before
