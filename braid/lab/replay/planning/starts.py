"""When programs start: by the trace's clock, at a rate, or whenever a slot is free."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from braid.lab.replay.planning.graph import Flags, Floats, Graph, Ints


class Starts(NamedTuple):
    """Arrays over rows.

    Args:
        order: rows that are sent, in the plan's order.
        group: number of each row's group in order of start, -1 for those without a sent row.
        start_s: from the run's start, or from its group's where that has no time of its own.
        offset_s: from its group's start.
        waits: it waits for another.
    """

    order: Ints
    group: Ints
    start_s: Floats
    offset_s: Floats
    waits: Flags


def placed(graph: Graph, kept: Flags, base_s: Floats | None) -> Starts:
    """Rows where their groups stand.

    Args:
        graph: of the sent rows.
        base_s: start of each group, by place in ``queue``; None for slots.
    """
    waits = np.zeros(kept.size, bool)
    waits[graph.waiter] = True
    begin = began(graph, kept)
    row_group = np.where(kept, graph.group, -1)
    places = np.full(begin.size, -1)
    places[queue(graph, kept)] = np.arange(np.isfinite(begin).sum())
    group = np.where(kept, places[graph.group], -1)
    offset = np.where(kept, graph.begin_s - begin[row_group], 0.0)
    start = offset if base_s is None else base_s[group] + offset
    rows = np.flatnonzero(kept)
    keys = (
        (graph.rank[rows], start[rows])
        if base_s is not None
        else (graph.rank[rows], offset[rows], group[rows])
    )
    return Starts(rows[np.lexsort(keys)], group, start, offset, waits)


def began(graph: Graph, kept: Flags) -> Floats:
    """When each group's first sent request begins, on its clock; infinity for a group without one."""
    begin = np.full(int(graph.group.max()) + 1, np.inf)
    np.minimum.at(begin, graph.group[kept], graph.begin_s[kept])
    return begin


def queue(graph: Graph, kept: Flags) -> Ints:
    """Groups with a sent request, in order of the trace."""
    begin = began(graph, kept)
    clocked = np.zeros(begin.size, bool)
    clocked[graph.group[graph.clocked]] = True
    there = np.flatnonzero(np.isfinite(begin))
    return there[np.argsort(np.where(clocked, begin, np.inf)[there], kind="stable")]


def by_trace(graph: Graph, kept: Flags, quantum_s: float, rng: np.random.Generator) -> Floats:
    """The groups' own times, from the first; those on a grid moved by a random amount inside its step, in order."""
    begin = began(graph, kept)[queue(graph, kept)]
    if quantum_s > 0:
        cell = np.floor(begin / quantum_s + 0.5)
        # Cells rise, so sorting only changes places within a cell: the groups keep their order.
        begin = np.sort(cell + rng.random(begin.size)) * quantum_s
    return np.asarray(begin - begin[0])


def by_rate(num: int, rate: float, cv: float, rng: np.random.Generator) -> Floats:
    """``num`` starts from 0, ``rate`` per second in the long run, their gaps gamma with coefficient of variation
    ``cv``."""
    if cv == 0:
        return np.arange(num) / rate
    shape = 1 / cv**2
    gaps = rng.gamma(shape, 1 / (rate * shape), num)
    return np.asarray(np.cumsum(gaps) - gaps[0])
