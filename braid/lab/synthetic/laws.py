"""Laws that have a wanted mean and standard deviation, and how much the past of a program tells of its rest."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from braid.lab.table import TraceError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CUT_DEVIATIONS = 20.0
"""A log-normal law of times is cut so many deviations above its mean: tools have timeouts, and without the cut the
deviation of even a million draws is not the law's."""
_CLOSE = 1e-3
_LONGEST = 1e-9
_LEAST_SD, _MOST_CV = 0.6, 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class LogNormal:
    """``exp(mu + sigma z)`` under the condition that it is at most ``most``."""

    mu: float
    sigma: float
    most: float

    def draw(self, num: int, rng: np.random.Generator) -> Floats:
        """``num`` independent values."""
        chance = rng.random(num) * special.ndtr((math.log(self.most) - self.mu) / max(self.sigma, _LONGEST))
        return np.asarray(np.exp(self.mu + self.sigma * special.ndtri(chance)))

    @property
    def mean(self) -> float:
        return self._moment(1)

    @property
    def sd(self) -> float:
        return math.sqrt(max(self._moment(2) - self._moment(1) ** 2, 0.0))

    def _moment(self, power: int) -> float:
        if self.sigma == 0.0:
            return math.exp(power * self.mu)
        z = (math.log(self.most) - self.mu) / self.sigma
        log = power * self.mu + 0.5 * (power * self.sigma) ** 2
        return math.exp(log + special.log_ndtr(z - power * self.sigma) - special.log_ndtr(z))


def log_normal(mean: float, sd: float) -> LogNormal:
    """The log-normal law, cut ``CUT_DEVIATIONS`` above the mean, that has this mean and deviation all the same.

    Raises:
        TraceError: a mean that is not above 0, a negative deviation, or one too large for any such law.
    """
    if not (mean > 0 and sd >= 0 and math.isfinite(mean) and math.isfinite(sd)):
        raise TraceError(f"a law needs a mean above 0 and a deviation of at least 0, got {mean:g} and {sd:g}")
    if sd == 0:
        return LogNormal(mu=math.log(mean), sigma=0.0, most=mean)
    most = mean + CUT_DEVIATIONS * sd

    def off(x: Floats) -> Floats:
        law = LogNormal(mu=float(x[0]), sigma=abs(float(x[1])), most=most)
        return np.array([math.log(law.mean / mean), math.log(max(law.sd, _LONGEST) / sd)])

    width = math.sqrt(math.log1p((sd / mean) ** 2))
    found = optimize.root(off, np.array([math.log(mean) - width**2 / 2, width]))
    if not found.success or np.abs(off(found.x)).max() > _CLOSE:
        raise TraceError(
            f"no law of times has a mean of {mean:g} and a deviation of {sd:g}: at most about {7 * mean:g}"
        )
    return LogNormal(mu=float(found.x[0]), sigma=abs(float(found.x[1])), most=most)


@dataclass(frozen=True, slots=True)
class Counts:
    """A law of turns per program: ``chances[i]`` is that of ``i + 1`` turns."""

    chances: Floats

    def draw(self, num: int, rng: np.random.Generator) -> Ints:
        total = np.cumsum(self.chances)
        return np.asarray(np.searchsorted(total, rng.random(num) * total[-1], "right") + 1, np.int64)

    @property
    def mean(self) -> float:
        return float(self._turns @ self.chances)

    @property
    def sd(self) -> float:
        return math.sqrt(max(float(self._turns**2 @ self.chances) - self.mean**2, 0.0))

    @property
    def eta(self) -> float:
        return memory_of(self._turns, self.chances)

    @property
    def _turns(self) -> Floats:
        return np.arange(1.0, self.chances.size + 1)


def memory_of(turns: Floats | Ints, weights: Floats | None = None) -> float:
    """``eta`` of programs of so many turns: minus the correlation of turns done and turns left, over all turns but the
    last of all programs. 1 where all programs are equally long, 0 where their lengths are geometric (the past tells
    nothing), below 0 where long ones are ever longer. 0 where it is not defined (Continuum, arXiv 2511.02230)."""
    n = np.asarray(turns, np.float64)
    weight = np.ones(n.size) if weights is None else weights
    pairs = float(weight @ (n - 1))
    if pairs <= 0:
        return 0.0
    # Sums over k = 1 .. n-1 of k, k**2 and k (n - k); k and n - k have the same sums.
    first = float(weight @ (n * (n - 1) / 2)) / pairs
    second = float(weight @ ((n - 1) * n * (2 * n - 1) / 6)) / pairs
    product = float(weight @ ((n - 1) * n * (n + 1) / 6)) / pairs
    variance = second - first**2
    return -(product - first**2) / variance if variance > _LONGEST else 0.0


def counts(mean: float, sd: float) -> Counts:
    """Turns with this mean and deviation: a gamma law, rounded up. At a deviation of ``sqrt(mean (mean - 1))`` it is
    the geometric law; with a deviation of 0 all programs have the mean's turns, rounded.

    Raises:
        TraceError: a mean below 1, or a deviation outside what a rounded gamma law can have.
    """
    if not (mean >= 1 and math.isfinite(mean)):
        raise TraceError(f"a program has at least one turn, got a mean of {mean:g}")
    if sd == 0:
        return Counts(np.eye(1, round(mean), round(mean) - 1)[0])
    if not _LEAST_SD <= sd <= _MOST_CV * mean:
        raise TraceError(
            f"for {mean:g} turns on average the deviation is 0 or {_LEAST_SD:g} .. {_MOST_CV * mean:g}, got {sd:g}"
        )

    def off(x: Floats) -> Floats:
        law = _rounded(*np.exp(x))
        return np.array([law.mean / mean - 1, math.log(max(law.sd, _LONGEST) / sd)])

    start = max(mean - 0.5, 0.5)
    shape = (start / sd) ** 2
    found = optimize.root(off, np.log([shape, start / shape]))
    if not found.success or np.abs(off(found.x)).max() > _CLOSE:
        raise TraceError(f"no law of turns has a mean of {mean:g} and a deviation of {sd:g}")
    return _rounded(*np.exp(found.x))


def _rounded(shape: float, scale: float) -> Counts:
    law = stats.gamma(shape, scale=scale)
    longest = max(1, math.ceil(float(law.isf(_LONGEST))))
    chances = np.diff(law.cdf(np.arange(longest + 1.0)))
    return Counts(chances / chances.sum())


def counts_of_memory(mean: float, eta: float) -> Counts:
    """Turns with this mean and this ``eta``: 1 for programs that are all equally long.

    Raises:
        TraceError: no such law is known; the text says which are.
    """
    if eta == 1:
        return counts(mean, 0.0)
    low, high = (counts(mean, sd).eta for sd in (_MOST_CV * mean, _LEAST_SD))
    if not low <= eta <= high:
        raise TraceError(f"for {mean:g} turns on average eta is 1 or {low:.2f} .. {high:.2f}, got {eta:g}")
    sd = optimize.brentq(lambda sd: counts(mean, sd).eta - eta, _LEAST_SD, _MOST_CV * mean, xtol=1e-4)
    return counts(mean, float(sd))
