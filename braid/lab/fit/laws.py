"""Laws of positive gaps: exponential, Gamma, Weibull, log-normal; maximum likelihood on exact and on quantised clocks.

On a clock of quantum q, by stationarity an arrival's phase in its quantum is uniform, so the gap d between two ticks
has probability ``(G(d + q) - 2 G(d) + G(d - q)) / q`` with ``G(x)`` the integral of the distribution function over
(0, x): a triangle of width 2q around d. That is a probability, so zero gaps do no harm; a density on them would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec
import numpy as np
from scipy import optimize, special, stats

from braid.lab.distance import Floats

FAMILIES = ("exponential", "gamma", "weibull", "lognormal")
MAX_ROWS = 100_000
"""More gaps than these add nothing to two parameters: an even part of them is fitted."""
BATCH = 50
Z95 = 1.959964


class Law(msgspec.Struct, frozen=True, kw_only=True):
    """A fitted law of gaps (s). ``shape`` is Gamma's or Weibull's, the log-normal's sigma, 1 for exponential."""

    family: str
    shape: float
    mean: float
    shape_interval: tuple[float, float]
    mean_interval: tuple[float, float]
    log_likelihood: float
    bic: float
    num: int


class _Family(NamedTuple):
    """Functions of (x, shape) for the law of mean 1: density's logarithm, distribution, integral of x f(x)."""

    log_density: Callable[[Floats, float], Floats]
    distribution: Callable[[Floats, float], Floats]
    partial_mean: Callable[[Floats, float], Floats]


def _gamma() -> _Family:
    return _Family(
        lambda x, k: k * np.log(k) + (k - 1) * np.log(x) - k * x - special.gammaln(k),
        lambda x, k: special.gammainc(k, k * x),
        lambda x, k: special.gammainc(k + 1, k * x),
    )


def _weibull() -> _Family:
    def scaled(x: Floats, k: float) -> Floats:
        return np.asarray(x * special.gamma(1 + 1 / k))

    def log_density(x: Floats, k: float) -> Floats:
        z = scaled(x, k)
        return np.asarray(np.log(k) + special.gammaln(1 + 1 / k) + (k - 1) * np.log(z) - z**k)

    return _Family(
        log_density,
        lambda x, k: -np.expm1(-(scaled(x, k) ** k)),
        lambda x, k: special.gammainc(1 + 1 / k, scaled(x, k) ** k),
    )


def _lognormal() -> _Family:
    def z(x: Floats, s: float) -> Floats:
        return np.asarray((np.log(np.maximum(x, 1e-300)) + s * s / 2) / s)

    return _Family(
        lambda x, s: -(z(x, s) ** 2) / 2 - np.log(x * s * np.sqrt(2 * np.pi)),
        lambda x, s: special.ndtr(z(x, s)),
        lambda x, s: special.ndtr(z(x, s) - s),
    )


_TABLE: Mapping[str, _Family] = {
    "exponential": _gamma(),
    "gamma": _gamma(),
    "weibull": _weibull(),
    "lognormal": _lognormal(),
}


def distribution(law: Law, x: Floats) -> Floats:
    """P(gap <= x)."""
    return np.asarray(_TABLE[law.family].distribution(np.maximum(x, 0) / law.mean, law.shape))


class UnitLaw(msgspec.Struct, frozen=True, kw_only=True):
    """A law of gaps of mean 1, to draw from: a family and its shape, or ``table``, values at even quantiles."""

    family: str
    shape: float = 1.0
    table: tuple[float, ...] = ()


POISSON = UnitLaw(family="exponential")


def tabulate(gaps: Floats, num: int = 513) -> UnitLaw:
    """The law of a sample itself, scaled to mean 1; the top quantile is the largest gap seen."""
    values = np.quantile(gaps, np.linspace(0, 1, min(num, max(gaps.size, 2))))
    mean = float(((values[1:] + values[:-1]) / 2).mean())
    return UnitLaw(family="table", table=tuple(float(v) for v in values / mean))


def draw_unit(law: UnitLaw, num: int, rng: np.random.Generator) -> Floats:
    """``num`` gaps of mean 1."""
    shape = law.shape
    if law.family == "gamma":
        return np.asarray(rng.standard_gamma(shape, num) / shape)
    if law.family == "weibull":
        return np.asarray(rng.weibull(shape, num) / special.gamma(1 + 1 / shape))
    if law.family == "lognormal":
        return np.asarray(np.exp(shape * rng.standard_normal(num) - shape * shape / 2))
    if law.family == "table":
        table = np.array(law.table)
        return np.asarray(np.interp(rng.random(num) * (table.size - 1), np.arange(table.size), table))
    return rng.standard_exponential(num)


def _terms(family: str, gaps: Floats, quantum_s: float) -> Callable[[Floats], Floats]:
    """Log-likelihood of every gap as a function of (log shape, log mean); (log mean) for the exponential."""
    rows = _TABLE[family]

    def split(theta: Floats) -> tuple[float, float]:
        shape = 1.0 if family == "exponential" else float(np.exp(np.clip(theta[0], -7, 7)))
        return shape, float(np.exp(theta[-1]))

    def exact(theta: Floats) -> Floats:
        shape, mean = split(theta)
        return np.asarray(rows.log_density(gaps / mean, shape) - np.log(mean))

    ticks, inverse = np.unique(np.round(gaps / quantum_s) if quantum_s else gaps, return_inverse=True)

    def quantised(theta: Floats) -> Floats:
        shape, mean = split(theta)

        def integral(x: Floats) -> Floats:
            u = np.maximum(x, 0) / mean
            return mean * (u * rows.distribution(u, shape) - rows.partial_mean(u, shape))

        d, q = ticks * quantum_s, quantum_s
        # Past the last tick's far tail the differences cancel; the floor keeps the logarithm finite there.
        probability = (integral(d + q) - 2 * integral(d) + np.where(d > 0, integral(d - q), 0.0)) / q
        return np.asarray(np.log(np.maximum(probability, 1e-15))[inverse])

    return quantised if quantum_s else exact


def _start(family: str, gaps: Floats) -> Floats:
    mean = float(gaps.mean())
    if family == "exponential":
        return np.array([np.log(mean)])
    cv = float(gaps.std() / mean)
    shape = np.sqrt(np.log1p(cv * cv)) if family == "lognormal" else 1 / max(cv, 0.05) ** 1.2
    return np.array([np.log(np.clip(shape, 0.05, 20)), np.log(mean)])


def hessian(function: Callable[[Floats], float], theta: Floats, step: float = 1e-3) -> Floats:
    """Second derivatives of a scalar function by central differences."""
    size = theta.size
    eye = np.eye(size) * step
    result = np.empty((size, size))
    for i in range(size):
        for j in range(i, size):
            corners = [
                function(theta + a * eye[i] + b * eye[j]) for a, b in ((1, 1), (1, -1), (-1, 1), (-1, -1))
            ]
            value = (corners[0] - corners[1] - corners[2] + corners[3]) / (4 * step * step)
            result[i, j] = result[j, i] = value
    return result


def _spread(terms: Callable[[Floats], Floats], theta: Floats, dependent: bool) -> Floats:
    """Half of the 95 % interval: by inverse information, or by Godambe's with batches of neighbours where terms are
    dependent; then with the few batches' own uncertainty (Student's quantile, n / (n - p))."""
    inverse: Floats = np.asarray(np.linalg.pinv(hessian(lambda x: -float(terms(x).sum()), theta)), np.float64)
    plain = Z95 * np.sqrt(np.maximum(np.diag(inverse), 0))
    if not dependent:
        return np.asarray(plain)
    step = 1e-4
    columns = [
        (terms(theta + step * unit) - terms(theta - step * unit)) / (2 * step) for unit in np.eye(theta.size)
    ]
    scores = np.stack(columns, axis=1)
    num = scores.shape[0] // BATCH
    if num < 10:
        return np.asarray(plain)
    batches = scores[: num * BATCH].reshape(num, BATCH, -1).sum(axis=1)
    middle = batches.T @ batches * (scores.shape[0] / (num * BATCH)) * (num / (num - theta.size))
    variances = np.diag(inverse @ middle @ inverse)
    return np.asarray(stats.t.ppf(0.975, num - theta.size) * np.sqrt(np.maximum(variances, 0)))


def fit_law(gaps: Floats, family: str, quantum_s: float = 0.0) -> Law:
    """Maximum likelihood with 95 % intervals (normal on the logarithms).

    Gaps of an exact clock must be positive: zero ones (ties) are taken as half the smallest positive gap. With
    ``quantum_s`` they are differences of ticks, zero allowed.

    Raises:
        ValueError: an unknown family, or fewer than two gaps above zero.
    """
    if family not in FAMILIES:
        raise ValueError(f"family must be one of {', '.join(FAMILIES)}, got {family!r}")
    if np.count_nonzero(gaps > 0) < 2:
        raise ValueError(f"a law needs at least two gaps above zero, got {np.count_nonzero(gaps > 0)}")
    if gaps.size > MAX_ROWS:
        gaps = gaps[np.linspace(0, gaps.size - 1, MAX_ROWS).astype(np.int64)]
    if not quantum_s:
        gaps = np.where(gaps > 0, gaps, gaps[gaps > 0].min() / 2)
    terms = _terms(family, gaps, quantum_s)
    scale = gaps.size
    found = optimize.minimize(
        lambda x: -float(terms(x).sum()) / scale, _start(family, gaps), method="Nelder-Mead",
        options={"xatol": 1e-6, "fatol": 1e-9, "maxiter": 2000},
    )  # fmt: skip
    theta = np.asarray(found.x)
    half = _spread(terms, theta, dependent=quantum_s > 0)
    low, mid, high = (np.exp(np.clip(theta + s * half, -700, 700)) for s in (-1, 0, 1))
    likelihood = float(terms(theta).sum())
    single = family == "exponential"
    return Law(
        family=family,
        shape=1.0 if single else float(mid[0]),
        mean=float(mid[-1]),
        shape_interval=(1.0, 1.0) if single else (float(low[0]), float(high[0])),
        mean_interval=(float(low[-1]), float(high[-1])),
        log_likelihood=likelihood,
        bic=theta.size * float(np.log(gaps.size)) - 2 * likelihood,
        num=int(gaps.size),
    )


def ks_law(gaps: Floats, law: Law) -> float:
    """KS distance of a sample to the law."""
    return float(stats.ks_1samp(gaps, lambda x: distribution(law, x), method="asymp").statistic)
