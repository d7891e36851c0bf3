"""How the output's length depends on the input's. It need not be monotone, so a rank correlation alone misleads."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from braid.lab.arrays import (
    MOST_COUNTED,
    Counts,
    Floats,
    floats,
    integer_edges,
    ints,
    quantiles,
    rounded,
    whole_numbers,
)

BINS = 24
GRID = 48
BAND = (0.05, 0.25, 0.5, 0.75, 0.95)
MIN_ROWS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """Output given input, over rows that have both.

    Args:
        spearman: rank correlation.
        edges: bins of the input, equally wide on a log axis. Shape ``(bins + 1,)``.
        num: rows per bin; below ``MIN_ROWS`` the bin's numbers are None. Shape ``(bins,)``.
        mean: mean output per bin.
        band: output at the quantiles ``BAND`` per bin. Shape ``(bins, 5)``.
        quartile_edges: the input's quartiles; a row on an edge belongs above it.
        quartile_band: output at ``BAND`` per quarter of the inputs. Shape ``(4, 5)``.
        grid_in, grid_out, grid: rows per cell of input and output; empty cells are 0. Shape ``(in, out)``.
    """

    num_rows: int
    spearman: float | None
    edges: Floats
    num: tuple[int, ...]
    mean: Floats
    band: tuple[Floats, ...]
    quartile_edges: Floats
    quartile_band: tuple[Floats, ...]
    grid_in: Floats
    grid_out: Floats
    grid: tuple[tuple[int, ...], ...]


def relation(in_tok: np.ndarray, out_tok: np.ndarray) -> Relation | None:
    """Describe ``out_tok`` given ``in_tok``; rows where either is NaN or below 1 are left out. None below 100 rows or
    with a single input length."""
    both = np.flatnonzero((in_tok >= 1) & (out_tok >= 1))
    inputs, outputs = (_Codes.of(whole_numbers(values[both])) for values in (in_tok, out_tok))
    if inputs.codes.size < 100 or inputs.values.size < 2:
        return None
    edges = _edges(inputs, BINS)
    quartiles = quantiles(inputs.counted, (0.25, 0.5, 0.75))
    grid_in, grid_out = _edges(inputs, GRID), _edges(outputs, GRID)
    # All bins of the input are cut out of one table: cells of the input that no bin's edge divides, by output.
    bounds = [np.searchsorted(inputs.values, cuts) for cuts in (edges, quartiles, grid_in)]
    quarters = np.concatenate(([0], bounds[1], [inputs.values.size]))
    starts = np.unique(np.concatenate((bounds[0], quarters, bounds[2])))[:-1]
    table = _table(inputs, outputs, starts)
    bins, quarter, cells = (
        _between(table, np.searchsorted(starts, cuts)) for cuts in (bounds[0], quarters, bounds[2])
    )
    grid = _between(cells.T, np.searchsorted(outputs.values, grid_out)).T
    return Relation(
        num_rows=inputs.codes.size,
        spearman=_correlation(inputs, outputs),
        edges=floats(edges, 10),
        num=ints(bins.sum(1)),
        mean=floats(_mean(outputs.values, row) for row in bins),
        band=_bands(outputs.values, bins),
        quartile_edges=floats(quartiles),
        quartile_band=_bands(outputs.values, quarter),
        grid_in=floats(grid_in, 10),
        grid_out=floats(grid_out, 10),
        grid=tuple(ints(row) for row in grid),
    )


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Rank correlation of whole numbers from 0, with mean ranks for ties; None where one of them never changes."""
    return _correlation(_Codes.of(first), _Codes.of(second))


class _Codes(NamedTuple):
    """Whole numbers as places in the table of their distinct ``values``, each of which is seen ``counts`` times."""

    values: np.ndarray
    counts: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, numbers: np.ndarray) -> _Codes:
        if numbers.max(initial=0) > MOST_COUNTED:
            values, codes, counts = np.unique(numbers, return_inverse=True, return_counts=True)
            return cls(values, counts, codes)
        counts = np.bincount(numbers)
        values = np.flatnonzero(counts)
        places = np.zeros(counts.size, np.int64)
        places[values] = np.arange(values.size)
        return cls(values, counts[values], places[numbers])

    @property
    def counted(self) -> Counts:
        return Counts(self.values, self.counts)

    def ranks(self) -> np.ndarray:
        """Mean ranks of the distinct values, around their mean."""
        ends = np.cumsum(self.counts)
        return np.asarray(ends - (self.counts - 1) / 2 - (ends[-1] + 1) / 2)


def _correlation(first: _Codes, second: _Codes) -> float | None:
    if min(first.values.size, second.values.size) < 2:
        return None
    one, other = first.ranks(), second.ranks()
    spread = np.sqrt((one**2 @ first.counts) * (other**2 @ second.counts))
    return rounded(float(one[first.codes] @ other[second.codes] / spread))


def _edges(numbers: _Codes, num: int) -> np.ndarray:
    return integer_edges(int(numbers.values[0]), int(numbers.values[-1]), num)


def _table(inputs: _Codes, outputs: _Codes, starts: np.ndarray) -> np.ndarray:
    """Rows by cell of the input and by output; cells begin at ``starts``, places of input values. Shape
    ``(cells, outputs)``."""
    shape = (starts.size, outputs.values.size)
    cell = np.searchsorted(starts, np.arange(inputs.values.size), side="right") - 1
    place = (cell * shape[1])[inputs.codes]
    place += outputs.codes
    return np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape)


def _between(table: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Sums of the table's rows over the ranges between neighbours of ``bounds``."""
    return np.stack([table[low:high].sum(0) for low, high in pairwise(bounds)])


def _bands(values: np.ndarray, rows: np.ndarray) -> tuple[Floats, ...]:
    empty: Floats = (None,) * len(BAND)
    return tuple(
        floats(quantiles(Counts(values, row), BAND)) if row.sum() >= MIN_ROWS else empty for row in rows
    )


def _mean(values: np.ndarray, counts: np.ndarray) -> float:
    num = counts.sum()
    return float(values @ counts / num) if num >= MIN_ROWS else float("nan")
