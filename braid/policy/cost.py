"""How long a step takes: tables measured on a machine, interpolated.

``T = host + eager + dense(tokens) + head(logit rows) + mixing * (prefill attention + decode attention)``.

Tables rather than a linear fit: real kernels have steps and knees that a line misses by a quarter. What lies
outside a table follows its last slope and is marked. Dense models on one device; experts and several devices
need tables of their own.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from braid.core.step import Work


class Estimate(NamedTuple):
    """Seconds, and whether any part of them lies outside what was measured."""

    seconds: float
    extrapolated: bool = False

    def plus(self, other: Estimate) -> Estimate:
        return Estimate(self.seconds + other.seconds, self.extrapolated or other.extrapolated)

    def times(self, factor: float) -> Estimate:
        return Estimate(self.seconds * factor, self.extrapolated)


class Bracket(NamedTuple):
    """``x = (1 - weight) * knots[low] + weight * knots[low + 1]``; outside the knots weight leaves [0, 1]."""

    low: int
    weight: float

    @property
    def outside(self) -> bool:
        return not 0 <= self.weight <= 1


def bracket(knots: Sequence[float], x: float) -> Bracket:
    low = min(max(bisect_right(knots, x) - 1, 0), len(knots) - 2)
    return Bracket(low, (x - knots[low]) / (knots[low + 1] - knots[low]))


def _check_knots(knots: Sequence[float]) -> None:
    if len(knots) < 2 or any(a >= b for a, b in pairwise(knots)):
        raise ValueError(f"knots must be at least two and rise, got {list(knots)!r}")


@dataclass(frozen=True, slots=True)
class Line:
    """Seconds over one quantity, linear between knots."""

    knots: tuple[float, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_knots(self.knots)
        if len(self.knots) != len(self.seconds):
            raise ValueError(f"{len(self.knots)} knots, but {len(self.seconds)} values")

    def at(self, x: float) -> Estimate:
        """Never negative; nothing to do takes no time."""
        if x == 0:
            return Estimate(0.0)
        low, weight = place = bracket(self.knots, x)
        value = (1 - weight) * self.seconds[low] + weight * self.seconds[low + 1]
        return Estimate(max(0.0, value), place.outside)


@dataclass(frozen=True, slots=True)
class Grid:
    """Seconds over two quantities, bilinear between knots; ``seconds[i][j]`` belongs to ``rows[i]``,
    ``columns[j]``.
    """

    rows: tuple[float, ...]
    columns: tuple[float, ...]
    seconds: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        _check_knots(self.rows)
        _check_knots(self.columns)
        if [len(row) for row in self.seconds] != [len(self.columns)] * len(self.rows):
            raise ValueError(f"the values must be {len(self.rows)} rows of {len(self.columns)}")

    def at(self, row: float, column: float) -> Estimate:
        """Never negative."""
        above, left = bracket(self.rows, row), bracket(self.columns, column)
        ends = [
            (1 - left.weight) * line[left.low] + left.weight * line[left.low + 1]
            for line in self.seconds[above.low : above.low + 2]
        ]
        value = (1 - above.weight) * ends[0] + above.weight * ends[1]
        return Estimate(max(0.0, value), above.outside or left.outside)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCost:
    """A machine's and model's step times, in seconds.

    Args:
        profile: where the tables come from; named beside every number predicted with them.
        dense: over scheduled tokens. head: over rows of logits.
        prefill: attention over (chunk, context before it), one chunk. decode: over (sequences, mean
        context).
        mixing: factor on attention in steps that hold both; measured, as no closed rule is known.
        host: fixed time per step outside kernels.
        eager: more of it in steps with prefill chunks, which are not replayed from a recording.
    """

    profile: str
    dense: Line
    head: Line
    prefill: Grid
    decode: Grid
    mixing: float = 1.0
    host: float = 0.0
    eager: float = 0.0

    def step(self, works: Iterable[Work]) -> Estimate:
        """The time of one step."""
        tokens = rows = 0
        contexts: list[int] = []
        attention = Estimate(0.0)
        num_chunks = 0
        for work in works:
            tokens += len(work.token_ids)
            rows += work.sample is not None
            if work.is_decode:
                contexts.append(work.start + 1)
            else:
                num_chunks += 1
                attention = attention.plus(self.prefill.at(len(work.token_ids), work.start))
        if contexts:
            attention = attention.plus(self.decode.at(len(contexts), sum(contexts) / len(contexts)))
            attention = attention.times(self.mixing if num_chunks else 1.0)
        total = (
            Estimate(self.host + (self.eager if num_chunks else 0.0))
            .plus(self.dense.at(tokens))
            .plus(self.head.at(rows))
        )
        return total.plus(attention)
