"""Markov-modulated Poisson arrivals: exact likelihood of gaps (Ryden 1996) and of counts per quantum.

Of gaps x: the product of ``expm((Q - L) x) L`` over the arrivals, Q the switching generator, L the diagonal of rates.
Of counts n per quantum q: the product of the coefficients of ``z^n`` in ``expm((Q - L + z L) q)``, read off the unit
circle by a Fourier transform. Either product is taken as a tree, so all of it is vectorised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from braid.lab.distance import Floats
from braid.lab.fit.laws import Z95, hessian
from braid.lab.fit.observed import Observed
from braid.lab.fit.processes import Mmpp, stationary

MAX_STEPS = 6_000
"""With more gaps than this, counts in so many equal bins are looked at instead: bounded in time, slow phases kept."""


class FittedMmpp(NamedTuple):
    process: Mmpp
    intervals: dict[str, tuple[float, float]]
    log_likelihood: float
    num: int


def _product(steps_NKK: Floats, left_K: Floats) -> float:
    """Logarithm of ``left @ step_1 @ ... @ step_N @ 1``."""
    scale = 0.0
    while len(steps_NKK) > 1:
        peak = steps_NKK.max(axis=(1, 2), keepdims=True)
        if not (peak > 0).all():
            return -np.inf
        scale += float(np.log(peak).sum())
        steps_NKK = steps_NKK / peak
        odd = steps_NKK[-1:] if len(steps_NKK) % 2 else None
        even = len(steps_NKK) // 2 * 2
        steps_NKK = np.einsum("nij,njk->nik", steps_NKK[0:even:2], steps_NKK[1:even:2])
        if odd is not None:
            steps_NKK = np.concatenate([steps_NKK, odd])
    value = float((left_K @ steps_NKK[0]).sum())
    return scale + float(np.log(value)) if value > 0 else -np.inf


def _unpack(theta: Floats, states: int) -> tuple[Floats, Floats]:
    """Rates and generator from the logarithms of rates, then of the off-diagonal switching rates."""
    values = np.exp(np.clip(theta, -20, 20))
    switch = np.zeros((states, states))
    switch[~np.eye(states, dtype=bool)] = values[states:]
    return values[:states], switch - np.diag(switch.sum(axis=1))


def gaps_likelihood(gaps: Floats, states: int) -> Callable[[Floats], float]:
    def likelihood(theta: Floats) -> float:
        rates, generator = _unpack(theta, states)
        values, vectors = np.linalg.eig(generator - np.diag(rates))
        inverse = np.linalg.inv(vectors) @ np.diag(rates)
        parts = vectors.T[:, :, None] * inverse[:, None, :]
        steps = np.tensordot(np.exp(values[None, :] * gaps[:, None]), parts, axes=(1, 0)).real
        flow = stationary(generator) * rates
        return _product(np.maximum(steps, 0), flow / flow.sum())

    return likelihood


def counts_likelihood(counts: Floats, quantum_s: float, states: int) -> Callable[[Floats], float]:
    index = counts.astype(np.int64)
    points = 1 << int(np.ceil(np.log2(2 * max(int(index.max(initial=0)), 1) + 32)))
    circle = np.exp(2j * np.pi * np.arange(points) / points)

    def likelihood(theta: Floats) -> float:
        rates, generator = _unpack(theta, states)
        thinned = generator[None] + (circle[:, None, None] - 1) * np.diag(rates)[None]
        values, vectors = np.linalg.eig(thinned * quantum_s)
        transform = (vectors * np.exp(values)[:, None, :]) @ np.linalg.inv(vectors)
        # Rounding leaves about 1e-16 of noise; below the floor a count is as good as impossible.
        matrices = np.maximum(np.fft.fft(transform, axis=0).real / points, 1e-14)
        return _product(matrices[index], stationary(generator))

    return likelihood


def _starts(data: Observed, states: int) -> list[Floats]:
    """Rates from groups of counts over two window lengths; switching as slow as those windows.

    The groups must reach the busy state: from rates far too low its counts are as good as impossible, the likelihood is
    flat there, and no search climbs out.
    """
    starts = []
    for window in (20 / data.rate, 200 / data.rate):
        counts = data.counts(window)
        if counts.size < 4:
            continue
        levels = _groups(counts, states) / window
        levels = np.maximum(levels, data.rate * 0.02 * (1 + np.arange(states)))
        starts.append(np.log(np.r_[levels, np.full(states * (states - 1), 0.3 / window / (states - 1))]))
    return starts or [
        np.log(np.r_[data.rate * np.arange(1, states + 1), np.full(states * (states - 1), 0.1)])
    ]


def _groups(counts: Floats, num: int, rounds: int = 20) -> Floats:
    """Centres of ``num`` groups of counts, rising (Lloyd's rounds on square roots, where Poisson spread is even)."""
    roots = np.sqrt(counts)
    centres = np.linspace(roots.min(), roots.max(), num)
    for _ in range(rounds):
        group = np.abs(roots[:, None] - centres).argmin(axis=1)
        size = np.bincount(group, minlength=num)
        centres = np.where(size > 0, np.bincount(group, roots, minlength=num) / np.maximum(size, 1), centres)
    return np.asarray(np.sort(centres) ** 2)


def _likelihood(data: Observed, states: int) -> tuple[Callable[[Floats], float], int]:
    if not data.quantum_s and data.times.size <= MAX_STEPS:
        gaps = data.gaps()
        return gaps_likelihood(gaps, states), gaps.size
    bin_s = data.covered_s / MAX_STEPS
    if data.quantum_s:
        bin_s = data.quantum_s * max(1, int(np.ceil(bin_s / data.quantum_s)))
    counts = data.counts(bin_s)
    return counts_likelihood(counts, bin_s, states), counts.size


def fit_mmpp(data: Observed, states: int = 2) -> FittedMmpp:
    """Maximum likelihood with 95 % intervals; states in rising order of rate."""
    likelihood, num = _likelihood(data, states)

    def loss(theta: Floats) -> float:
        value = likelihood(theta)
        return -value / num if np.isfinite(value) else 1e6

    best = min(
        (optimize.minimize(loss, start, method="L-BFGS-B", bounds=[(-14, 12)] * start.size,
                           options={"maxiter": 60}) for start in _starts(data, states)),
        key=lambda found: float(found.fun),
    )  # fmt: skip
    theta = _sorted(np.asarray(best.x), states)
    spread = np.linalg.pinv(hessian(lambda x: num * loss(x), theta, 3e-3))
    half = Z95 * np.sqrt(np.maximum(np.diag(spread), 0))
    rates, generator = _unpack(theta, states)
    switch = generator - np.diag(np.diag(generator))
    low, high = (np.exp(np.clip(theta + s * half, -700, 700)) for s in (-1, 1))
    names = _names(states)
    intervals = {name: (float(low[i]), float(high[i])) for i, name in enumerate(names)}
    process = Mmpp(rates=tuple(map(float, rates)), switch=tuple(tuple(map(float, row)) for row in switch))
    return FittedMmpp(process, intervals, -float(best.fun) * num, num)


def _names(states: int) -> list[str]:
    pairs = [f"switch_{i}_{j}" for i in range(states) for j in range(states) if i != j]
    return [f"rate_{i}" for i in range(states)] + pairs


def _sorted(theta: Floats, states: int) -> Floats:
    """The same model with its states in rising order of rate."""
    order = np.argsort(theta[:states])
    switch = np.zeros((states, states))
    off: NDArray[np.bool_] = ~np.eye(states, dtype=bool)
    switch[off] = theta[states:]
    return np.asarray(np.r_[theta[:states][order], switch[np.ix_(order, order)][off]])
