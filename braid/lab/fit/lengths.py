"""Laws of lengths: parametric ones for reading (zeta, log-normal mixtures), quantile tables for generating.

Output given input is not monotone in real traces (Azure conversations: rank correlation 0.07, yet median outputs of
98 / 108 / 406 / 89 by input quartile), so no copula: one table of output quantiles per input bin.
"""

from __future__ import annotations

import msgspec
import numpy as np
from scipy import optimize, special

from braid.lab.distance import Floats, input_bins
from braid.lab.fit.laws import Z95

LEVELS = 257
MIN_ROWS = 100


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """Quantiles of ``y`` at even levels from 0 to 1, one row per bin of ``x``; ``edges`` are the inner ones."""

    edges: tuple[float, ...]
    quantiles: tuple[tuple[float, ...], ...]
    num: tuple[int, ...]


class LengthLaw(msgspec.Struct, frozen=True, kw_only=True):
    """A parametric law of lengths, with what speaks for it. ``intervals`` are 95 %."""

    family: str
    parameters: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    bic: float
    ks: float
    num: int


def table(x: Floats, y: Floats, bins: int = 24) -> Table:
    """Bins of about equal count in ``x``, each with at least ``MIN_ROWS`` rows where there are so many."""
    edges = input_bins(x, int(np.clip(x.size // MIN_ROWS, 1, bins)))
    index = np.searchsorted(edges, x, "right")
    rows: list[tuple[float, ...]] = []
    kept_edges: list[float] = []
    num: list[int] = []
    for b in range(edges.size + 1):
        values = y[index == b]
        if not values.size:
            continue
        if rows and b > 0:
            kept_edges.append(float(edges[b - 1]))
        levels = np.linspace(0, 1, min(LEVELS, max(values.size, 2)))
        rows.append(tuple(float(v) for v in np.quantile(values, levels)))
        num.append(int(values.size))
    return Table(edges=tuple(kept_edges), quantiles=tuple(rows), num=tuple(num))


def quantile_table(y: Floats) -> Table:
    """One row: the law of ``y`` alone."""
    return table(np.zeros(y.size), y)


class Sampler:
    """Draws from a table, vectorised; rows are stretched to one length once."""

    def __init__(self, source: Table) -> None:
        width = max(len(row) for row in source.quantiles)
        grid = np.linspace(0, 1, width)
        self._edges = np.array(source.edges)
        self._rows = np.array([np.interp(grid, np.linspace(0, 1, len(row)), row) for row in source.quantiles])

    def draw(self, x: Floats | None, num: int, rng: np.random.Generator, *, between: bool = True) -> Floats:
        """One value per ``x`` (None: ``num`` values from the first row).

        ``between`` quantiles values are drawn evenly; without it one of the two, for counts and the like.
        """
        width = self._rows.shape[1]
        at = rng.random(num) * (width - 1)
        low = at.astype(np.int64)
        start = low if x is None else np.searchsorted(self._edges, x, "right") * width + low
        flat = self._rows.ravel()
        if not between:
            return np.asarray(flat[start + np.rint(at - low).astype(np.int64)])
        below = flat[start]
        part: Floats = below + (at - low) * (flat[np.minimum(start + 1, flat.size - 1)] - below)
        return part


def fit_zeta(values: Floats) -> LengthLaw:
    """``P(n) = n^-s / zeta(s)`` on n >= 1 by maximum likelihood.

    Raises:
        ValueError: no value of at least 1.
    """
    n = values[values >= 1]
    if not n.size:
        raise ValueError("a zeta law needs lengths of at least 1")
    mean_log = float(np.log(n).mean())
    found = optimize.minimize_scalar(
        lambda s: s * mean_log + np.log(special.zeta(s)), bounds=(1.0001, 20), method="bounded",
        options={"xatol": 1e-9},
    )  # fmt: skip
    s, step = float(found.x), 1e-4
    log_zeta = [float(np.log(special.zeta(s + d))) for d in (-step, 0, step)]
    information = n.size * (log_zeta[0] - 2 * log_zeta[1] + log_zeta[2]) / step**2
    half = Z95 / np.sqrt(max(information, 1e-12))
    likelihood = -n.size * (s * mean_log + log_zeta[1])
    points, counts = np.unique(n, return_counts=True)
    model = 1 - special.zeta(s, points + 1) / special.zeta(s)
    seen = np.cumsum(counts) / n.size
    distance = float(np.abs(model - seen).max())
    return LengthLaw(
        family="zeta",
        parameters={"exponent": s},
        intervals={"exponent": (s - half, s + half)},
        bic=float(np.log(n.size) - 2 * likelihood),
        ks=distance,
        num=int(n.size),
    )


def fit_mixture(values: Floats, components: int, rounds: int = 500) -> LengthLaw:
    """A mixture of log-normals by expectation-maximisation; intervals from the scores' outer product.

    Whole-number lengths are taken as points; with lengths in the tens and above the rounding does not show.

    Raises:
        ValueError: fewer than ten positive values per component.
    """
    n = values[values > 0]
    if n.size < 10 * components:
        raise ValueError(f"{components} component(s) need at least {10 * components} lengths, got {n.size}")
    z = np.log(n)
    means = np.quantile(z, (np.arange(components) + 0.5) / components)
    sds = np.full(components, max(float(z.std()) / components, 1e-3))
    weights = np.full(components, 1 / components)
    last = -np.inf
    for _ in range(rounds):
        log_each = _log_normal(z, weights, means, sds)
        total = special.logsumexp(log_each, axis=1)
        share = np.exp(log_each - total[:, None])
        mass = np.maximum(share.sum(axis=0), 1e-9)
        weights, means = mass / z.size, (share * z[:, None]).sum(axis=0) / mass
        sds = np.sqrt(np.maximum((share * (z[:, None] - means) ** 2).sum(axis=0) / mass, 1e-4))
        if abs(float(total.sum()) - last) < 1e-8 * z.size:
            break
        last = float(total.sum())
    order = np.argsort(means)
    weights, means, sds = weights[order], means[order], sds[order]
    return _described(z, weights, means, sds)


def _log_normal(z: Floats, weights: Floats, means: Floats, sds: Floats) -> Floats:
    spread = (z[:, None] - means) / sds
    return np.asarray(np.log(weights) - spread**2 / 2 - np.log(sds * np.sqrt(2 * np.pi)))


def _described(z: Floats, weights: Floats, means: Floats, sds: Floats) -> LengthLaw:
    components = means.size
    log_each = _log_normal(z, weights, means, sds)
    total = special.logsumexp(log_each, axis=1)
    share = np.exp(log_each - total[:, None])
    spread = (z[:, None] - means) / sds
    # Scores by mean, log sd and all weights but the last; their outer product estimates the information.
    ratio = share / weights
    columns = [share * spread / sds, share * (spread**2 - 1), ratio[:, :-1] - ratio[:, -1:]]
    scores = np.concatenate(columns, axis=1)
    sd = np.sqrt(np.maximum(np.diag(np.linalg.pinv(scores.T @ scores)), 0))
    parameters: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for i in range(components):
        parameters |= {
            f"mean_log_{i}": float(means[i]),
            f"sd_log_{i}": float(sds[i]),
            f"weight_{i}": float(weights[i]),
        }
        intervals[f"mean_log_{i}"] = (float(means[i] - Z95 * sd[i]), float(means[i] + Z95 * sd[i]))
        factor = np.exp(Z95 * sd[components + i])
        intervals[f"sd_log_{i}"] = (float(sds[i] / factor), float(sds[i] * factor))
        if i < components - 1:
            half = Z95 * sd[2 * components + i]
            intervals[f"weight_{i}"] = (float(weights[i] - half), float(weights[i] + half))
    ordered = np.sort(z)
    model = (special.ndtr((ordered[:, None] - means) / sds) * weights).sum(axis=1)
    steps = np.arange(z.size + 1) / z.size
    distance = float(max(np.abs(model - steps[1:]).max(), np.abs(model - steps[:-1]).max()))
    likelihood = float(total.sum() - z.sum())
    free = 3 * components - 1
    return LengthLaw(
        family=f"lognormal-mixture-{components}",
        parameters=parameters,
        intervals=intervals,
        bic=free * float(np.log(z.size)) - 2 * likelihood,
        ks=distance,
        num=int(z.size),
    )


def length_laws(values: Floats, max_rows: int = 100_000) -> tuple[LengthLaw, ...]:
    """Zeta and mixtures of one to three log-normals, the best BIC first; empty under 30 positive lengths."""
    n = values[values >= 1]
    if n.size < 30:
        return ()
    if n.size > max_rows:
        n = n[np.linspace(0, n.size - 1, max_rows).astype(np.int64)]
    found = [fit_zeta(n), *(fit_mixture(n, k, 200) for k in (1, 2, 3))]
    return tuple(sorted(found, key=lambda law: law.bic))
