"""Block ids for generated requests, so that a replay meets the reuse of the trace that was fitted."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from braid.lab.distance import Floats
from braid.lab.fit.lengths import Sampler
from braid.lab.fit.reuse import Reuse

Ints = NDArray[np.int64]

MAX_STEPS = 2000
"""So far from the wanted time, in requests, an earlier one with enough blocks is looked for."""


class BlockWriter:
    """Gives requests their blocks; asked in order of time, it remembers as far back as prefixes are used again."""

    def __init__(self, law: Reuse, rng: np.random.Generator) -> None:
        self._law, self._rng = law, rng
        self._share, self._lag = Sampler(law.share), Sampler(law.lag_s)
        self._horizon = max(row[-1] for row in law.lag_s.quantiles)
        self._t, self._num = np.empty(0), np.empty(0, np.int64)
        self._ids: list[Ints] = []
        self._next = 0

    def write(self, t: Floats, in_tok: Floats) -> pl.Series:
        """Ids of every request; ``t`` rises, also from call to call."""
        num = np.maximum(np.ceil(in_tok / self._law.block_size), 1).astype(np.int64)
        share = self._share.draw(num.astype(float), num.size, self._rng, between=False)
        wanted = np.clip(np.rint(share * num), 0, num).astype(np.int64)
        lag = self._lag.draw(wanted.astype(float), num.size, self._rng)
        old = self._t.size
        self._t, self._num = np.concatenate([self._t, t]), np.concatenate([self._num, num])
        donors, shared = self._donors(np.arange(old, old + num.size), wanted, t - lag)
        for size, donor, kept in zip(num.tolist(), donors.tolist(), shared.tolist(), strict=True):
            fresh = np.arange(self._next, self._next + size - kept)
            self._next += size - kept
            self._ids.append(np.concatenate([self._ids[donor][:kept], fresh]) if kept else fresh)
        ids = pl.Series(self._ids[old:], dtype=pl.List(pl.Int64))
        self._forget(t)
        return ids

    def _donors(self, rows: Ints, wanted: Ints, at: Floats) -> tuple[Ints, Ints]:
        """For each row the earlier row nearest to that time which has as many blocks as are wanted, and how many it
        gives; the longest one met, where none has as many."""
        donors, shared = np.zeros(rows.size, np.int64), np.zeros(rows.size, np.int64)
        left = np.flatnonzero((wanted > 0) & (rows > 0))
        middle = np.minimum(np.searchsorted(self._t, at, "right") - 1, rows - 1)
        for step in range(2 * MAX_STEPS):
            if not left.size:
                break
            row = middle[left] + (-(step + 1) // 2 if step % 2 else step // 2)
            valid = (row >= 0) & (row < rows[left])
            has = np.where(valid, self._num[np.where(valid, row, 0)], 0)
            gives = np.minimum(has, wanted[left])
            better = gives > shared[left]
            donors[left[better]], shared[left[better]] = row[better], gives[better]
            left = left[shared[left] < wanted[left]]
        return donors, shared

    def _forget(self, t: Floats) -> None:
        if t.size:
            first = int(np.searchsorted(self._t, t[-1] - self._horizon))
            self._t, self._num, self._ids = self._t[first:], self._num[first:], self._ids[first:]
