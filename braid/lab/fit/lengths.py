"""Laws of lengths: parametric ones for reading (zeta, log-normal mixtures), quantile tables for generating.

Output given input is not monotone in real traces (Azure conversations: rank correlation 0.07, yet median outputs of
98 / 108 / 406 / 89 by input quartile), so no copula: one table of output quantiles per input bin.
"""

from __future__ import annotations

import msgspec
import numpy as np
from scipy import special

from braid.lab.arrays import Counts, counted
from braid.lab.distance import Floats, input_bins
from braid.lab.fit.laws import Z95
from braid.lab.laws import mixture
from braid.lab.laws.distance import farthest
from braid.lab.laws.zeta import zeta_cdf, zeta_exponent

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
    """``P(n) = n^-s / zeta(s)`` on whole numbers n >= 1 by maximum likelihood.

    Raises:
        ValueError: no value of at least 1.
    """
    seen = counted(values)
    if not seen.values.size:
        raise ValueError("a zeta law needs lengths of at least 1")
    num = int(seen.counts.sum())
    s, error = zeta_exponent(seen)
    likelihood = -s * float(seen.counts @ np.log(seen.values)) - num * float(np.log(special.zeta(s)))
    return LengthLaw(
        family="zeta",
        parameters={"exponent": s},
        intervals={"exponent": (s - Z95 * error, s + Z95 * error)},
        bic=float(np.log(num) - 2 * likelihood),
        ks=farthest(seen.counts, *zeta_cdf(s, 1, seen.values)),
        num=num,
    )


def fit_mixture(values: Floats, components: int) -> LengthLaw:
    """A mixture of log-normals rounded to whole numbers, by expectation-maximisation; intervals from the scores' outer
    product, in which whole numbers are taken as points: in the tens and above the rounding does not show.

    Raises:
        ValueError: fewer than ten values of at least 1 per component.
    """
    seen = counted(values)
    num = int(seen.counts.sum())
    if num < 10 * components:
        raise ValueError(f"{components} component(s) need at least {10 * components} lengths, got {num}")
    law = mixture.fit_mixture(seen, components)
    rows = mixture.parameters(law)
    names = [f"{name}_{i}" for i in range(components) for name in ("weight", "mean_log", "sd_log")]
    return LengthLaw(
        family=f"lognormal-mixture-{components}",
        parameters=dict(zip(names, rows.ravel().tolist(), strict=True)),
        intervals=_intervals(seen, rows),
        bic=law.bic,
        ks=farthest(
            seen.counts, mixture.mixture_cdf(law, seen.values), mixture.mixture_cdf(law, seen.values - 1)
        ),
        num=num,
    )


def _intervals(seen: Counts, rows: Floats) -> dict[str, tuple[float, float]]:
    """Of a mixture's parameters, rows (weight, mean, sd) of the logarithms."""
    weights, means, sds = rows.T
    components = weights.size
    spread = (np.log(seen.values)[:, None] - means) / sds
    log_each = np.log(weights / sds) - spread**2 / 2
    share = np.exp(log_each - special.logsumexp(log_each, axis=1)[:, None])
    # Scores by mean, log sd and all weights but the last; their outer product estimates the information.
    ratio = share / weights
    columns = [share * spread / sds, share * (spread**2 - 1), ratio[:, :-1] - ratio[:, -1:]]
    scores = np.concatenate(columns, axis=1)
    sd = np.sqrt(np.maximum(np.diag(np.linalg.pinv((scores.T * seen.counts) @ scores)), 0))
    intervals: dict[str, tuple[float, float]] = {}
    for i in range(components):
        intervals[f"mean_log_{i}"] = (float(means[i] - Z95 * sd[i]), float(means[i] + Z95 * sd[i]))
        factor = np.exp(Z95 * sd[components + i])
        intervals[f"sd_log_{i}"] = (float(sds[i] / factor), float(sds[i] * factor))
        if i < components - 1:
            half = Z95 * sd[2 * components + i]
            intervals[f"weight_{i}"] = (float(weights[i] - half), float(weights[i] + half))
    return intervals


def length_laws(values: Floats) -> tuple[LengthLaw, ...]:
    """Zeta and mixtures of one to three log-normals, the best BIC first; empty under 30 lengths of at least 1."""
    if np.count_nonzero(values >= 1) < 30:
        return ()
    found = [fit_zeta(values), *(fit_mixture(values, components) for components in (1, 2, 3))]
    return tuple(sorted(found, key=lambda law: law.bic))
