"""How the output's length depends on the input's. It need not be monotone, so a rank correlation alone misleads."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from braid.lab.describe.arrays import Floats, floats, integer_edges, ints, rounded

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
    both = (in_tok >= 1) & (out_tok >= 1)
    inputs, outputs = in_tok[both].astype(np.int64), out_tok[both].astype(np.int64)
    if inputs.size < 100 or inputs.min() == inputs.max():
        return None
    edges = integer_edges(int(inputs.min()), int(inputs.max()), BINS)
    # Sorted by input once: every bin is then a slice.
    order = np.argsort(inputs, kind="stable")
    ordered_in, ordered_out = inputs[order], outputs[order]
    bounds = np.searchsorted(ordered_in, edges)
    quartiles = np.quantile(ordered_in, (0.25, 0.5, 0.75))
    quarters = np.concatenate(([0], np.searchsorted(ordered_in, quartiles, side="left"), [inputs.size]))
    grid_in, grid_out, grid = _grid(inputs, outputs)
    return Relation(
        num_rows=inputs.size,
        spearman=spearman(inputs, outputs),
        edges=floats(edges, 10),
        num=ints(np.diff(bounds)),
        mean=floats(_means(ordered_out, bounds)),
        band=_bands(ordered_out, bounds),
        quartile_edges=floats(quartiles),
        quartile_band=_bands(ordered_out, quarters),
        grid_in=grid_in,
        grid_out=grid_out,
        grid=grid,
    )


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Rank correlation with mean ranks for ties; None where one of them never changes."""
    ranks = [mean_ranks(values) for values in (first, second)]
    if any(rank.std() == 0 for rank in ranks):
        return None
    return rounded(float(np.corrcoef(ranks[0], ranks[1])[0, 1]))


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, ties at their mean. Whole numbers are counted, not sorted."""
    counts = np.bincount(values) if values.max() < 50_000_000 else None
    if counts is None:
        _, values, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[values])


def _bands(ordered: np.ndarray, bounds: np.ndarray) -> tuple[Floats, ...]:
    empty: Floats = (None,) * len(BAND)
    slices = [ordered[low:high] for low, high in pairwise(bounds)]
    return tuple(floats(np.quantile(part, BAND)) if part.size >= MIN_ROWS else empty for part in slices)


def _means(ordered: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    slices = [ordered[low:high] for low, high in pairwise(bounds)]
    return np.array([part.mean() if part.size >= MIN_ROWS else np.nan for part in slices])


def _grid(inputs: np.ndarray, outputs: np.ndarray) -> tuple[Floats, Floats, tuple[tuple[int, ...], ...]]:
    edges = [integer_edges(int(values.min()), int(values.max()), GRID) for values in (inputs, outputs)]
    cells = [_cells(edge, values) for edge, values in zip(edges, (inputs, outputs), strict=True)]
    shape = (edges[0].size - 1, edges[1].size - 1)
    counts = np.bincount(cells[0] * shape[1] + cells[1], minlength=shape[0] * shape[1]).reshape(shape)
    return floats(edges[0], 10), floats(edges[1], 10), tuple(ints(row) for row in counts)


def _cells(edges: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The bin of each value; where values are small, looked up in a table of all, which is faster than a search."""
    top = int(values.max())
    if top > values.size:
        return np.searchsorted(edges, values) - 1
    return np.asarray((np.searchsorted(edges, np.arange(top + 1)) - 1)[values])
