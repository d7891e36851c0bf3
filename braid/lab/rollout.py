"""Requests from starts: prompts, turns, outputs, gaps, and sub-programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from braid.lab.distance import Floats
from braid.lab.fit.lengths import Sampler
from braid.lab.fit.profile import Lengths, Stream, SubPrograms
from braid.lab.fit.programs import Course

Ints = NDArray[np.int64]


class Rows(NamedTuple):
    """Columns of generated requests, equally long; nan where the profile does not know.

    ``program`` counts the programs of its level, ``parent`` those of the level above (-1 on the top one); ``group``
    indexes the mixes of all levels, laid end to end.
    """

    t_s: Floats
    level: Ints
    program: Ints
    parent: Ints
    turn: Ints
    group: Ints
    in_tok: Floats
    out_tok: Floats
    cached_tok: Floats
    gap_s: Floats
    e2e_s: Floats


NOTHING = Rows._make(np.empty(0) for _ in Rows._fields)


def taken(rows: Rows, index: Ints | slice) -> Rows:
    return Rows._make(column[index] for column in rows)


def joined(parts: list[Rows]) -> Rows:
    return Rows._make(np.concatenate(column) for column in zip(*parts, strict=True)) if parts else NOTHING


class _Group:
    """Lengths of one model and kind; nan where the profile does not know them."""

    def __init__(self, lengths: Lengths) -> None:
        self._input = Sampler(lengths.input) if lengths.input else None
        self._output = Sampler(lengths.output) if lengths.output else None
        self._cached = Sampler(lengths.cached) if lengths.cached else None
        self._conditional = lengths.output is not None and bool(lengths.output.edges)

    def first(self, num: int, rng: np.random.Generator) -> Floats:
        return np.rint(self._input.draw(None, num, rng)) if self._input else np.full(num, np.nan)

    def outputs(self, inputs: Floats, rng: np.random.Generator) -> Floats:
        if self._output is None:
            return np.full(inputs.size, np.nan)
        x = inputs if self._conditional else None
        return np.maximum(np.rint(self._output.draw(x, inputs.size, rng)), 1)

    def cached(self, inputs: Floats, rng: np.random.Generator) -> Floats:
        """Tokens of first prompts that were seen before."""
        if self._cached is None:
            return np.full(inputs.size, np.nan)
        return np.floor(inputs * self._cached.draw(inputs, inputs.size, rng))


class _Courses:
    """Courses to draw from, laid end to end."""

    def __init__(self, course: Course) -> None:
        self._counts = np.array(course.counts, np.int64)
        self._started = np.array(course.started or (0,) * self._counts.size, np.int64)
        self._first = np.cumsum(self._counts) - self._counts
        total = int(self._counts.sum())
        self._prompts = np.array(course.prompts, float) if course.prompts else np.full(total, np.nan)
        self._cached = np.array(course.cached, float) if course.cached else np.full(total, np.nan)

    def draw(self, num: int, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
        """Turns, where each course begins, and how many programs it starts."""
        which = rng.integers(self._counts.size, size=num)
        return self._counts[which], self._first[which], self._started[which]

    def at(self, rows: Ints) -> tuple[Floats, Floats]:
        """Prompts, and what of them was seen before."""
        return self._prompts[rows], self._cached[rows]


class Writer:
    """Turns starts into rows; one for each level of programs, the top one first."""

    def __init__(
        self, source: Stream | SubPrograms, rng: np.random.Generator, level: int = 0, offset: int = 0
    ) -> None:
        self._rng, self._level, self._offset = rng, level, offset
        self._groups = [_Group(lengths) for lengths in source.mix]
        shares = np.array([lengths.share for lengths in source.mix])
        self._edges = np.cumsum(shares / shares.sum())[:-1]
        laws = source.programs
        self._courses = [_Courses(course) for course in laws.courses] if laws else []
        self._gap = Sampler(laws.gap_s) if laws and laws.gap_s else None
        self._e2e = Sampler(laws.e2e_s) if laws and laws.e2e_s else None
        self._num = 0
        below = source.below
        self._below = Writer(below, rng, level + 1, offset + len(source.mix)) if below else None
        self._place = Sampler(below.place) if below else None

    def rows(self, starts: Floats, parents: Ints | None = None) -> Rows:
        """All requests of the programs that start then, and of their sub-programs."""
        num = starts.size
        group = np.searchsorted(self._edges, self._rng.random(num), "right")
        parents = np.full(num, -1) if parents is None else parents
        if not self._courses:
            return self._lone(starts, group)
        turns, first, children = np.ones((3, num), np.int64)
        for i, courses in enumerate(self._courses):
            index = np.flatnonzero(group == i)
            turns[index], first[index], children[index] = courses.draw(index.size, self._rng)
        own = self._programs(starts, parents, group, turns, first)
        if self._below is None or not children.any():
            return own
        begins, owners = self._started(own, turns, children)
        return joined([own, self._below.rows(begins, owners)])

    def _lone(self, t: Floats, group: Ints) -> Rows:
        rng, num = self._rng, t.size
        inputs = self._by_group(group, lambda g, index: g.first(index.size, rng), num)
        outputs = self._by_group(group, lambda g, index: g.outputs(inputs[index], rng), num)
        cached = self._by_group(group, lambda g, index: g.cached(inputs[index], rng), num)
        none, zeros = np.full(num, np.nan), np.zeros(num, np.int64)
        return Rows(t, zeros, zeros, zeros - 1, zeros, group, inputs, outputs, cached, none, none)

    def _programs(self, starts: Floats, parents: Ints, group: Ints, turns: Ints, first: Ints) -> Rows:
        """Program after program, turn after turn."""
        rng, total = self._rng, int(turns.sum())
        begin = np.cumsum(turns) - turns
        owner = np.repeat(np.arange(turns.size), turns)
        turn = np.arange(total) - begin[owner]
        groups = group[owner]
        inputs, cached = np.empty(total), np.empty(total)
        for i, courses in enumerate(self._courses):
            index = np.flatnonzero(groups == i)
            inputs[index], cached[index] = courses.at(first[owner[index]] + turn[index])
        outputs = self._by_group(groups, lambda g, index: g.outputs(inputs[index], rng), total)
        e2e = self._e2e.draw(outputs, total, rng) if self._e2e else np.full(total, np.nan)
        gap = self._gap.draw(None, total, rng) if self._gap else np.zeros(total)
        later = turn > 0
        step = np.where(later, gap + np.nan_to_num(np.roll(e2e, 1)), 0.0)
        since = np.cumsum(step)
        t = starts[owner] + since - since[begin][owner]
        program = self._num + owner
        self._num += turns.size
        level = np.full(total, self._level)
        gap = np.where(later, gap, np.nan)
        return Rows(
            t, level, program, parents[owner], turn, groups + self._offset, inputs, outputs, cached, gap, e2e
        )

    def _started(self, own: Rows, turns: Ints, children: Ints) -> tuple[Floats, Ints]:
        """When sub-programs begin, right after one of their parents' turns, and these parents."""
        assert self._place is not None
        owner = np.repeat(np.arange(turns.size), children)
        after = np.ceil(self._place.draw(None, owner.size, self._rng) * turns[owner]).astype(np.int64) - 1
        row = (np.cumsum(turns) - turns)[owner] + np.clip(after, 0, turns[owner] - 1)
        return own.t_s[row] + np.nan_to_num(own.e2e_s[row]), own.program[row]

    def _by_group(self, group: Ints, draw: Callable[[_Group, Ints], Floats], num: int) -> Floats:
        if len(self._groups) == 1:
            return np.asarray(draw(self._groups[0], np.arange(num)))
        values = np.empty(num)
        for i, each in enumerate(self._groups):
            index = np.flatnonzero(group == i)
            values[index] = draw(each, index)
        return values
