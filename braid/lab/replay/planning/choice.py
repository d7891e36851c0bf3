"""What a plan is asked for: whether it makes sense, and which programs of the trace it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from braid.lab.replay.planning.graph import Graph, graph_of
from braid.lab.replay.planning.rewire import subset
from braid.lab.table import Trace, TraceError

if TYPE_CHECKING:
    from braid.lab.replay.planning.plan import PlanOptions


def check(options: PlanOptions, choices: Mapping[str, tuple[str, ...]]) -> None:
    """Whether the options agree with each other.

    Args:
        choices: what options that name something may name.

    Raises:
        TraceError: they do not; the text says what would.
    """
    for name, known in choices.items():
        if getattr(options, name) not in known:
            raise TraceError(f"{name} must be one of {', '.join(known)}, got {getattr(options, name)!r}")
    _check_numbers(options)
    for name in ("rate", "concurrency"):
        given, wanted = getattr(options, name) is not None, options.arrivals == name
        if wanted and not given:
            raise TraceError(f"arrivals by {name} need a {name}")
        if given and not wanted:
            raise TraceError(f"a {name} needs arrivals by {name}, not by {options.arrivals}")
    if options.turns == "timestamp" and options.arrivals == "concurrency":
        raise TraceError(
            "turns by timestamp have no place in a slot: use arrivals by trace or rate, or turns by gap"
        )
    if options.turns == "timestamp" and options.max_gap_s is not None:
        raise TraceError(
            "max_gap_s caps what turns wait, and by timestamp they wait for nothing: use turns by gap"
        )


def _check_numbers(options: PlanOptions) -> None:
    positive = ("span_s", "max_programs", "rate", "concurrency", "length_factor", "max_tokens")
    for name in (*positive, "start_s", "cv", "max_gap_s", "seed"):
        value = getattr(options, name)
        if value is None:
            continue
        least = "above 0" if name in positive else "0 or above"
        if not math.isfinite(value) or value < 0 or (name in positive and value == 0):
            raise TraceError(f"{name} must be {least}, got {value}")


def chosen(trace: Trace, options: PlanOptions) -> tuple[pl.DataFrame, Graph]:
    """The rows of the programs (with their sub-agents) that the options ask for, with ``source_row``; their graph.

    Raises:
        TraceError: none, or some without the times that the options need.
    """
    if not trace.frame.height:
        raise TraceError("the trace is empty")
    graph = graph_of(trace.frame, trace.info.t_quantum_s)
    num = int(graph.group.max()) + 1
    begin = np.full(num, np.inf)
    np.minimum.at(begin, graph.group, np.where(graph.clocked, graph.begin_s, np.inf))
    wanted = np.ones(num, bool)
    if options.start_s or options.span_s is not None:
        if np.isinf(begin).all():
            raise TraceError("the trace has no arrival times: start_s and span_s choose nothing in it")
        wanted = (begin >= options.start_s) & (begin < options.start_s + (options.span_s or np.inf))
    order = np.argsort(begin, kind="stable")
    order = order[wanted[order]][: options.max_programs]
    if not order.size:
        raise TraceError(f"no program starts within {_stretch(options)} of the trace's time")
    wanted = np.zeros(num, bool)
    wanted[order] = True
    frame = trace.frame.with_row_index("source_row")
    if not wanted.all():
        at = np.flatnonzero(wanted[graph.group])
        frame, graph = frame[at], subset(graph, at)
    _check_clock(graph, options)
    return frame, graph


def _stretch(options: PlanOptions) -> str:
    end = "its end" if options.span_s is None else f"{options.start_s + options.span_s:g} s"
    return f"{options.start_s:g} s to {end}"


def _check_clock(graph: Graph, options: PlanOptions) -> None:
    if options.arrivals == "trace" and not graph.clocked.all():
        num = np.unique(graph.group[~graph.clocked]).size
        raise TraceError(
            f"{num:,} programs have no arrival time in this trace: use arrivals by rate or by concurrency"
        )
    if options.turns == "timestamp" and not graph.recorded.all():
        num = np.unique(graph.group[~graph.recorded]).size
        raise TraceError(f"{num:,} programs have no recorded times in this trace: use turns by gap")
