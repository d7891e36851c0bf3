"""Mixtures of log-normal laws for whole numbers, fitted by expectation and maximisation; no random starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from braid.lab.arrays import Counts, Floats, floats

MOST_POINTS = 400
MIN_SIGMA = 0.05  # narrower than that a component is one value, and its density grows without bound
MOST_ROUNDS = 200
STARTS: dict[int, tuple[tuple[float, ...], ...]] = {
    2: ((0.1,), (0.25,), (0.5,), (0.75,), (0.9,)),
    3: ((1 / 3, 2 / 3), (0.1, 0.5), (0.5, 0.9)),
}
"""Quantiles at which the numbers are cut apart to begin with, by components; the best end counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixture:
    """Log-normal components in order of their medians.

    Args:
        weights: sum 1.
        medians: in tokens.
        sigmas: standard deviation of the natural logarithm.
        bic: ``-2 log L + parameters log n`` of the law rounded to whole numbers; smaller is better.
        modes: peaks of the density on a log axis.
    """

    weights: Floats
    medians: Floats
    sigmas: Floats
    bic: float
    modes: int


def fit_mixture(seen: Counts, components: int) -> Mixture:
    """Fit 1, 2 or 3 components to whole numbers from 1."""
    values, counts = seen
    points, weights = _grouped(np.log(values), counts.astype(np.float64))
    if components == 1:
        mean = np.average(points, weights=weights)
        sigma = np.sqrt(np.average((points - mean) ** 2, weights=weights))
        parameters = np.array([[1.0, mean, max(sigma, MIN_SIGMA)]])
        return _result(parameters, values, counts)
    fits = [_maximise(points, weights, cuts) for cuts in STARTS[components]]
    return min((_result(fit, values, counts) for fit in fits), key=lambda fit: fit.bic)


def mixture_cdf(mixture: Mixture, values: np.ndarray) -> np.ndarray:
    """``P(X <= value)`` of the law rounded to whole numbers from 1."""
    return _cdf(parameters(mixture), np.log(np.maximum(values, 0) + 0.5))


def mixture_density(mixture: Mixture, values: np.ndarray) -> np.ndarray:
    """Density per natural logarithm at ``values``, component by component. Shape ``(components, values)``."""
    weight, mean, sigma = (column[:, None] for column in parameters(mixture).T)
    standard = (np.log(values)[None, :] - mean) / sigma
    return np.asarray(weight * np.exp(-0.5 * standard**2) / (sigma * np.sqrt(2 * np.pi)))


def parameters(mixture: Mixture) -> np.ndarray:
    """Rows (weight, mean, sigma) of the logarithms."""
    rows = [mixture.weights, np.log(np.array(mixture.medians, dtype=np.float64)), mixture.sigmas]
    return np.array(rows, dtype=np.float64).T


def _grouped(logs: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most ``MOST_POINTS`` weighted points: neighbours on a log axis share one."""
    if logs.size <= MOST_POINTS:
        return logs, weights
    cell = ((logs - logs[0]) / (logs[-1] - logs[0]) * (MOST_POINTS - 1)).astype(np.int64)
    starts = np.flatnonzero(np.diff(cell, prepend=-1))
    mass = np.add.reduceat(weights, starts)
    return np.add.reduceat(logs * weights, starts) / mass, mass


def _maximise(points: np.ndarray, weights: np.ndarray, cuts: tuple[float, ...]) -> np.ndarray:
    """Components that begin as what lies between quantiles. Rows (weight, mean, sigma)."""
    share = np.cumsum(weights) / weights.sum()
    part = np.searchsorted(np.maximum(cuts, share[0]), share)
    belongs = (part == np.arange(len(cuts) + 1)[:, None]).astype(np.float64)
    last = -np.inf
    parameters = np.zeros((len(belongs), 3))
    for _ in range(MOST_ROUNDS):
        mass = np.maximum(belongs @ weights, 1e-9)
        mean = (belongs @ (weights * points)) / mass
        spread = (belongs * (points[None, :] - mean[:, None]) ** 2) @ weights / mass
        sigma = np.maximum(np.sqrt(spread), MIN_SIGMA)
        parameters = np.stack([mass / weights.sum(), mean, sigma], axis=1)
        standard = (points[None, :] - mean[:, None]) / sigma[:, None]
        logs = np.log(parameters[:, :1] / sigma[:, None]) - 0.5 * standard**2
        total = np.logaddexp.reduce(logs)
        belongs = np.exp(logs - total)
        score = float(total @ weights) / weights.sum()
        if score - last < 1e-6:
            break
        last = score
    return parameters


def _cdf(parameters: np.ndarray, logs: np.ndarray) -> np.ndarray:
    weight, mean, sigma = (column[:, None] for column in parameters.T)
    return np.asarray((weight * ndtr((logs[None, :] - mean) / sigma)).sum(0))


def _result(parameters: np.ndarray, values: np.ndarray, counts: np.ndarray) -> Mixture:
    parameters = parameters[np.argsort(parameters[:, 1])]
    below = _cdf(parameters, np.log(values - 0.5))
    below[values == 1] = 0.0  # the law rounded to whole numbers from 1 holds all mass below 1.5 at 1
    inside = np.maximum(_cdf(parameters, np.log(values + 0.5)) - below, 1e-300)
    free = 3 * len(parameters) - 1
    bic = -2 * float(counts @ np.log(inside)) + free * float(np.log(counts.sum()))
    return Mixture(
        weights=floats(parameters[:, 0]),
        medians=floats(np.exp(parameters[:, 1])),
        sigmas=floats(parameters[:, 2]),
        bic=bic,
        modes=_modes(parameters, np.linspace(np.log(values[0]) - 1, np.log(values[-1]) + 1, 2000)),
    )


def _modes(parameters: np.ndarray, logs: np.ndarray) -> int:
    weight, mean, sigma = (column[:, None] for column in parameters.T)
    density = (weight / sigma * np.exp(-0.5 * ((logs[None, :] - mean) / sigma) ** 2)).sum(0)
    return int(((density[1:-1] > density[:-2]) & (density[1:-1] >= density[2:])).sum())
