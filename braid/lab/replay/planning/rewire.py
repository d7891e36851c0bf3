"""Graphs of less than a trace: of some groups, without some requests, with shorter gaps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from braid.lab.replay.planning.graph import Flags, Graph, Ints, in_order


def subset(graph: Graph, rows: Ints) -> Graph:
    """Whole groups of a graph: ``rows``, rising, become 0 .. n-1. Groups and ranks keep their order."""
    place = np.full(graph.group.size, -1)
    place[rows] = np.arange(rows.size)
    edges = place[graph.waiter] >= 0
    rank = np.empty(rows.size, np.int64)
    rank[np.argsort(graph.rank[rows])] = np.arange(rows.size)
    return Graph(
        group=np.unique(graph.group[rows], return_inverse=True)[1],
        begin_s=graph.begin_s[rows],
        end_s=graph.end_s[rows],
        clocked=graph.clocked[rows],
        recorded=graph.recorded[rows],
        rank=rank,
        waiter=place[graph.waiter[edges]],
        awaited=place[graph.awaited[edges]],
        delay_s=graph.delay_s[rows],
        whole_steps=graph.whole_steps[rows],
        loose=graph.loose[rows],
        adrift=graph.adrift[rows],
    )


def without(graph: Graph, gone: Flags) -> Graph:
    """The same rows, none of which waits for one that is ``gone``: it waits for what that one waited for.

    The delays of both add up; the time that the left-out answer took is nobody's thinking and falls away.
    """
    touched = np.isin(graph.group[graph.waiter], graph.group[graph.awaited[gone[graph.awaited]]])
    awaited: dict[int, list[int]] = {}
    bridged: dict[int, float] = {}
    for row, before in zip(graph.waiter[touched].tolist(), graph.awaited[touched].tolist(), strict=True):
        awaited.setdefault(row, []).append(before)
    delay_s = np.where(gone, 0.0, graph.delay_s)
    # Waits are in order of rank, so what is waited for is settled first.
    for row, before in awaited.items():
        if not gone[before].any():
            continue
        latest = max(before, key=lambda one: graph.end_s[one])
        bridged[row] = graph.delay_s[row] + (
            bridged.get(latest, graph.delay_s[latest]) if gone[latest] else 0.0
        )
        through = ([one] if not gone[one] else awaited.get(one, []) for one in before)
        awaited[row] = list(dict.fromkeys(one for several in through for one in several))
        delay_s[row] = bridged[row] if awaited[row] and not gone[row] else 0.0
    pairs = [(row, one) for row, before in awaited.items() if not gone[row] for one in before]
    rest = _only(graph, ~touched & ~gone[graph.waiter])
    new = np.array(pairs, np.int64).reshape(-1, 2)
    waiter, awaiteds = np.concatenate([rest.waiter, new[:, 0]]), np.concatenate([rest.awaited, new[:, 1]])
    return in_order(replace(graph, delay_s=delay_s), waiter, awaiteds)


def _only(graph: Graph, edges: Flags) -> Graph:
    return replace(graph, waiter=graph.waiter[edges], awaited=graph.awaited[edges])


def capped(graph: Graph, max_gap_s: float) -> Graph:
    """Delays of at most so much, and times as they would be if everything else took as long as it did."""
    delay_s = np.minimum(graph.delay_s, max_gap_s)
    shorter = delay_s < graph.delay_s
    touched = np.isin(graph.group[graph.waiter], graph.group[shorter])
    begin_s, end_s = graph.begin_s.copy(), graph.end_s.copy()
    ready: dict[int, float] = {}
    took = graph.end_s - graph.begin_s
    for row, before in zip(graph.waiter[touched].tolist(), graph.awaited[touched].tolist(), strict=True):
        ready[row] = max(ready.get(row, -np.inf), end_s[before])
        begin_s[row] = ready[row] + delay_s[row]
        end_s[row] = begin_s[row] + took[row]
    return replace(graph, delay_s=delay_s, begin_s=begin_s, end_s=end_s)
