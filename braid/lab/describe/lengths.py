"""Laws of request and response lengths: quantiles, a zeta (Zipf) law, one against two log-normal components.

Only rows that were answered count: failed rows say nothing of a length law, and 0 is not on a log axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from braid.lab.arrays import (
    QUANTILES,
    Counts,
    Floats,
    floats,
    integer_edges,
    ints,
    quantiles,
    rounded,
)
from braid.lab.distance import Distance
from braid.lab.laws.distance import distance, farthest
from braid.lab.laws.mixture import Mixture, fit_mixture, mixture_cdf
from braid.lab.laws.zeta import zeta_cdf, zeta_exponent

HISTOGRAM_BINS = 60
CURVE_POINTS = 240
TAIL_STARTS = 24
MIN_TAIL = 200
COMMON = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Zeta:
    """``P(k) ~ k ** -exponent`` for ``k >= first``, by maximum likelihood; ``share`` of the rows are that long."""

    exponent: float
    stderr: float
    first: int
    share: float
    distance: Distance


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthLaw:
    """One kind of length.

    Args:
        num: rows that have a length of at least 1.
        quantiles: at ``arrays.QUANTILES``.
        common: the most frequent lengths, pairs (tokens, share of rows).
        zeta: the Zipf law of all lengths from 1; ``tail`` from where it fits best (Clauset's start).
        single, double: log-normal laws of one and two components; ``bic_gain_per_row`` is how much two beat one.
        histogram_edges, histogram: rows per bin, edges at half integers.
        survival: pairs (tokens, share of rows at least that long).
    """

    num: int
    mean: float
    sd: float
    max: int
    quantiles: Floats
    common: tuple[Floats, ...]
    zeta: Zeta
    tail: Zeta | None
    single: Mixture
    single_distance: Distance
    double: Mixture
    double_distance: Distance
    bic_gain_per_row: float | None
    histogram_edges: Floats
    histogram: tuple[int, ...]
    survival: tuple[Floats, ...]


def length_law(seen: Counts, rng: np.random.Generator) -> LengthLaw | None:
    """Fit every law to lengths from 1. None below ten rows or two distinct lengths."""
    values, counts = seen
    if values.size < 2 or counts.sum() < 10:
        return None
    num = int(counts.sum())
    mean = float(values @ counts / num)
    single, double = fit_mixture(seen, 1), fit_mixture(seen, 2)
    edges = integer_edges(int(values[0]), int(values[-1]), HISTOGRAM_BINS)
    order = np.argsort(-counts, kind="stable")[:COMMON]
    return LengthLaw(
        num=num,
        mean=mean,
        sd=float(np.sqrt(((values - mean) ** 2 @ counts) / num)),
        max=int(values[-1]),
        quantiles=floats(quantiles(seen, QUANTILES)),
        common=tuple(floats((values[at], counts[at] / num)) for at in order),
        zeta=_zeta(values, counts, rng),
        tail=_tail(values, counts, rng),
        single=single,
        single_distance=distance(counts, mixture_cdf(single, values), mixture_cdf(single, values - 1), rng),
        double=double,
        double_distance=distance(counts, mixture_cdf(double, values), mixture_cdf(double, values - 1), rng),
        bic_gain_per_row=rounded((single.bic - double.bic) / num),
        histogram_edges=floats(edges, 10),
        histogram=ints(np.histogram(values, edges, weights=counts)[0]),
        survival=_survival(values, counts),
    )


def _zeta(values: np.ndarray, counts: np.ndarray, rng: np.random.Generator, first: int = 1) -> Zeta:
    kept = values >= first
    inside, seen = values[kept], counts[kept]
    exponent, stderr = zeta_exponent(Counts(inside, seen), first)
    law, before = zeta_cdf(exponent, first, inside)
    return Zeta(
        exponent=exponent,
        stderr=stderr,
        first=first,
        share=float(seen.sum() / counts.sum()),
        distance=distance(seen, law, before, rng),
    )


def _tail(values: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> Zeta | None:
    """The start whose tail lies closest to a zeta law, of ``TAIL_STARTS`` quantiles up to the 99th percentile."""
    if counts.sum() < 2 * MIN_TAIL:
        return None
    highest = min(0.99, 1 - MIN_TAIL / counts.sum())
    starts = np.unique(quantiles(Counts(values, counts), np.linspace(0, highest, TAIL_STARTS)).astype(int))
    fits = []
    for start in starts[starts < values[-1]]:
        inside, seen = values[values >= start], counts[values >= start]
        law = zeta_cdf(zeta_exponent(Counts(inside, seen), int(start))[0], int(start), inside)
        fits.append((farthest(seen, *law), int(start)))
    return _zeta(values, counts, rng, min(fits)[1]) if fits else None


def _survival(values: np.ndarray, counts: np.ndarray) -> tuple[Floats, ...]:
    at_least = np.cumsum(counts[::-1])[::-1] / counts.sum()
    wanted = np.geomspace(values[0], values[-1], CURVE_POINTS)
    at = np.unique(np.searchsorted(values, wanted, side="left").clip(0, values.size - 1))
    return tuple(floats(pair) for pair in zip(values[at], at_least[at], strict=True))
