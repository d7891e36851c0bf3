"""Intervals for what differs between runs: a bootstrap over blocks of programs that follow each other in time.

Requests of one program depend on each other, and programs that meet in one burst wait for each other, so neither can
be drawn alone. The programs of a run, in the order of their starts, are cut into blocks as long as latencies stay
correlated (at least the cube root of the number of programs, the rate at which the error of such a bootstrap is
smallest), and blocks are drawn with replacement. Two runs of one plan have the same blocks and are drawn together:
what a burst does to both is in neither's favour. Of several pairs of runs each is drawn within itself; where the pairs
differ by more than that explains, the rest is what changes from run to run, and is added with the few degrees of
freedom that so few runs have (a random-effects model).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from braid.lab.distance import Floats

DRAWS = 1000
MIN_BLOCKS, MAX_BLOCKS = 10, 400
ROOM = 20
"""Blocks are never so long that fewer than these remain, if there are so many programs."""
MIN_BEYOND = 5
"""A percentile with fewer values beyond it says nothing."""
BINS = 4096
LEVEL = 0.95
Z = 1.959964
PERCENTILES: Mapping[str, float] = {"p50": 50.0, "p90": 90.0, "p99": 99.0}

Blocks = NDArray[np.int64]


class Drawn(NamedTuple):
    """A statistic: its value, and its values in every draw (NaN where a draw has none)."""

    value: float
    draws: Floats


class Interval(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


class Cut(NamedTuple):
    """How programs were cut: into ``num`` blocks of ``size``; ``outlasts``: latencies stay correlated for longer."""

    programs: int
    size: int
    num: int
    outlasts: bool


def cut(num_programs: int, series: Sequence[Floats]) -> Cut:
    """Blocks for ``num_programs`` in order of start, given latencies by program (NaN for none) in that order."""
    if num_programs < 2 * MIN_BLOCKS:
        return Cut(num_programs, 1, num_programs, False)
    memory = max((2 * correlation_length(values) for values in series), default=0)
    wanted = max(memory, math.ceil(num_programs ** (1 / 3)), math.ceil(num_programs / MAX_BLOCKS))
    most = max(1, num_programs // ROOM)
    size = min(wanted, most)
    return Cut(num_programs, size, math.ceil(num_programs / size), memory > most)


def correlation_length(values: Floats) -> int:
    """After how many steps values stop being correlated: the first of five lags in a row within the noise of
    autocorrelations of independent values (Politis and White 2004, section 3)."""
    values = values[np.isfinite(values)]
    num = values.size
    if num < 10 or float(np.ptp(values)) == 0:
        return 0
    centred = values - values.mean()
    spectrum = np.fft.rfft(centred, 2 * num)
    covariance = np.fft.irfft(spectrum * np.conj(spectrum))[: num // 2]
    small = np.abs(covariance[1:] / covariance[0]) < 2 * math.sqrt(math.log10(num) / num)
    runs = np.flatnonzero(np.convolve(small, np.ones(5), "valid") == 5) if small.size >= 5 else np.empty(0)
    return int(runs[0]) if runs.size else num // 2


def weights(num_blocks: Sequence[int], rng: np.random.Generator, num: int = DRAWS) -> Floats:
    """How often each draw holds each block: ``[num, sum(num_blocks)]``, the blocks of one run after another's, of each
    as many as it has."""
    parts = [rng.multinomial(blocks, np.full(blocks, 1 / blocks), num) for blocks in num_blocks if blocks]
    return np.concatenate(parts, axis=1).astype(np.float64) if parts else np.zeros((num, 0))


def statistics(values: Floats, blocks: Blocks, drawn: Floats) -> dict[str, Drawn]:
    """Mean and percentiles of ``values``, each in block ``blocks[i]``; those that enough values lie beyond."""
    if not values.size:
        return {}
    table, at = _table(values, blocks, drawn.shape[1])
    counts = drawn @ np.cumsum(table, axis=1)
    sizes = counts[:, -1]
    sums = drawn @ np.bincount(blocks, weights=values, minlength=drawn.shape[1])
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {"mean": Drawn(float(values.mean()), sums / sizes)}
    told = {name: q for name, q in PERCENTILES.items() if values.size * (1 - q / 100) >= MIN_BEYOND}
    for (name, q), draws in zip(told.items(), _percentiles(counts, at, list(told.values())), strict=True):
        found[name] = Drawn(float(np.percentile(values, q)), draws)
    return found


def point(values: Floats, statistic: str) -> float:
    """One of ``statistics`` by itself; NaN of nothing."""
    if not values.size:
        return math.nan
    return float(values.mean() if statistic == "mean" else np.percentile(values, PERCENTILES[statistic]))


def _table(values: Floats, blocks: Blocks, num_blocks: int) -> tuple[Floats, Floats]:
    """How many values of each block lie in each of at most ``BINS`` bins, and the bins' means.

    Up to ``BINS`` different values a bin is one value; beyond that half of the bins lie in the top 5 %.
    """
    edges = np.unique(values)
    if edges.size > BINS:
        shares = np.concatenate(
            [np.linspace(0, 0.95, BINS // 2, endpoint=False), np.linspace(0.95, 1, BINS // 2)]
        )
        edges = np.unique(np.quantile(values, shares))
    index = np.minimum(np.searchsorted(edges, values), edges.size - 1)
    table = np.bincount(blocks * edges.size + index, minlength=num_blocks * edges.size)
    sums = np.bincount(index, weights=values, minlength=edges.size)
    counts = np.bincount(index, minlength=edges.size)
    means = np.divide(sums, counts, out=edges.astype(np.float64), where=counts > 0)
    return table.reshape(num_blocks, edges.size).astype(np.float64), means


def _percentiles(counts: Floats, at: Floats, wanted: Sequence[float]) -> Floats:
    """Percentiles of each draw, linear between ranks (``core.metrics.percentile``): ``[len(wanted), draws]``; NaN for
    a draw of nothing. ``counts`` rise along each row."""
    ranks = np.maximum(counts[:, -1:] - 1, 0) * np.array(wanted) / 100
    low = np.floor(ranks)
    places = np.array(
        [
            row.searchsorted(at_row, "right")
            for row, at_row in zip(counts, np.hstack([low, low + 1]), strict=True)
        ]
    )
    picked = at[np.minimum(places, at.size - 1)]
    lower, upper = picked[:, : len(wanted)], picked[:, len(wanted) :]
    found: Floats = np.where(counts[:, -1:] > 0, lower + (upper - lower) * (ranks - low), np.nan).T
    return found


def quotient(top: Floats, bottom: Floats, drawn: Floats) -> Drawn | None:
    """The sum of ``top`` over the sum of ``bottom``, both by block; None without anything to divide by."""
    if not bottom.sum() > 0:
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        return Drawn(float(top.sum() / bottom.sum()), (drawn @ top) / (drawn @ bottom))


def share(top: Floats, bottom: Floats) -> float:
    """The same of one run, without draws; NaN without anything to divide by."""
    return float(top.sum() / bottom.sum()) if bottom.sum() > 0 else math.nan


class Noise(NamedTuple):
    """What the spread of draws lacks. ``scale``: they divide by n, not n - 1; ``between``: how far pairs of runs differ
    beyond their draws, as half an interval; ``student``: Student's quantile over the normal one."""

    scale: float
    between: float
    student: float


def noise(drawn: Drawn, num_blocks: int, by_pair: Sequence[float]) -> Noise:
    """Of a statistic of ``num_blocks`` blocks, whose value in each pair of runs is ``by_pair``."""
    scale = math.sqrt(num_blocks / (num_blocks - 1))
    within = scale**2 * float(np.nanvar(drawn.draws)) if np.isfinite(drawn.draws).any() else 0.0
    pairs = [value for value in by_pair if math.isfinite(value)]
    between = max(0.0, float(np.var(pairs, ddof=1)) / len(pairs) - within) if len(pairs) > 1 else 0.0
    share = between / (between + within) if between > 0 else 0.0
    # Satterthwaite: the degrees of freedom of a sum of two estimated variances.
    freedom = 1 / (share**2 / max(1, len(pairs) - 1) + (1 - share) ** 2 / (num_blocks - 1))
    return Noise(scale, Z * math.sqrt(between), float(student.ppf(0.5 + LEVEL / 2, freedom)) / Z)


def interval(drawn: Drawn, lacking: Noise, widened: float = 1.0) -> Interval | None:
    """The middle 95 % of the draws, with what they lack, ``widened`` times as far from the value; None where too many
    draws have no value."""
    good = drawn.draws[np.isfinite(drawn.draws)]
    if not math.isfinite(drawn.value) or good.size < LEVEL * drawn.draws.size:
        return None
    low, high = np.quantile(good, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    below, above = (
        widened * lacking.student * math.hypot(lacking.scale * max(0.0, float(reach)), lacking.between)
        for reach in (drawn.value - low, high - drawn.value)
    )
    return Interval(drawn.value, drawn.value - below, drawn.value + above)


def together(rows: Sequence[Drawn]) -> float:
    """What intervals of ``rows`` are widened by so that all of them hold at once with 95 %: of many comparisons some
    look clear by chance. The largest deviation of a draw over all rows, in standard errors, is what counts."""
    deviations = []
    for row in rows:
        error = float(np.nanstd(row.draws)) if np.isfinite(row.draws).any() else 0.0
        if error > 1e-12:
            deviations.append(np.abs(np.nan_to_num(row.draws - row.value)) / error)
    if not deviations:
        return 1.0
    return max(1.0, float(np.quantile(np.max(deviations, axis=0), LEVEL)) / Z)
