"""Which request waits for which: from a trace's rows to predecessors, delays and groups.

A program has a clock: the trace's where it names times, its own where it counts from its own start, else one put
together from the gaps. On it every request is a stretch of time. A request waits for those of its program that had
ended before it began, less those that others of them waited for; so calls that overlapped do not wait for each other,
and a call after several waits for all of them. A sub-agent's first requests wait for the turns of its parent that had
ended before it started, and the parent's next turn for the sub-agents that had ended before it. Times that sit on a
grid are compared with a tolerance of one step of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from braid.lab.replay.planning.weave import Program, weave

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

_OWN_CLOCK, _BEGAN = "t_program_s", "starts_at_s"


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """What waits for what; arrays over rows.

    Args:
        group: rows that wait for each other share one (a program and its sub-agents); numbered by first row.
        begin_s, end_s: on the group's clock; ``end_s`` is ``begin_s`` where nobody knows how long it took.
        clocked: the group's clock is the trace's, so groups can be compared.
        recorded: ``begin_s`` is in the source, not put together from gaps.
        rank: places in an order in which nothing comes before what it waits for; groups in one piece each.
        waiter, awaited: one pair for each wait, by ``rank`` of the waiter, then of the awaited.
        delay_s: from the last end of what is waited for to the request; at least 0, and 0 where nothing is.
        whole_steps: the delay holds the answer's time too: only starts are known.
        loose: rows of programs with neither a time nor a gap.
        adrift: first rows of sub-agents that do not say when they began.
    """

    group: Ints
    begin_s: Floats
    end_s: Floats
    clocked: Flags
    recorded: Flags
    rank: Ints
    waiter: Ints
    awaited: Ints
    delay_s: Floats
    whole_steps: Flags
    loose: Flags
    adrift: Flags


def graph_of(frame: pl.DataFrame, quantum_s: float = 0.0) -> Graph:
    """The graph of a trace's rows.

    Args:
        frame: columns of ``table.SCHEMA``; ``t_program_s`` and ``starts_at_s`` are used where they are there.
        quantum_s: the grid that times sit on.
    """
    lone = _lone(frame)
    if frame["program_id"].null_count() == frame.height:
        return lone
    programs = _programs(frame)
    group = _groups(frame.height, programs)
    timed = _with_clocks(frame, programs, group)
    graph = replace(lone, group=group)
    _scatter(graph, timed)
    place = np.zeros(frame.height, np.int64)
    woven = pl.col("woven")
    timed = timed.with_columns(_is_woven(quantum_s).alias("woven"))
    waiter, awaited = _chains(timed.filter(~woven), graph, place)
    pairs: list[tuple[int, int]] = []
    for family in _families(timed.filter(woven), programs):
        pairs += weave(family, graph, place, quantum_s)
    new = np.array(pairs, np.int64).reshape(-1, 2)
    graph.rank[np.lexsort((place, group))] = np.arange(frame.height)
    return in_order(graph, np.concatenate([waiter, new[:, 0]]), np.concatenate([awaited, new[:, 1]]))


def in_order(graph: Graph, waiter: Ints, awaited: Ints) -> Graph:
    """With these waits, in order of rank."""
    order = np.lexsort((graph.rank[awaited], graph.rank[waiter]))
    return replace(graph, waiter=waiter[order], awaited=awaited[order])


def _lone(frame: pl.DataFrame) -> Graph:
    """Every row on its own."""
    num = frame.height
    times = frame["t_s"].fill_null(np.nan).to_numpy()
    known = np.isfinite(times)
    begin = np.where(known, times, 0.0)
    took = frame["e2e_s"].fill_null(0.0).fill_nan(0.0).to_numpy()
    rows, none = np.arange(num), np.empty(0, np.int64)
    return Graph(
        group=rows,
        begin_s=begin,
        end_s=begin + np.maximum(took, 0.0),
        clocked=known,
        recorded=known.copy(),
        rank=rows.copy(),
        waiter=none,
        awaited=none,
        delay_s=np.zeros(num),
        whole_steps=np.zeros(num, bool),
        loose=np.zeros(num, bool),
        adrift=np.zeros(num, bool),
    )


class _Programs(NamedTuple):
    """Args:
    of_row: number of each row's program, -1 for none.
    parent: number of each program's parent, -1 for none; no program is above itself.
    root: the topmost of each.
    """

    of_row: Ints
    parent: Ints
    root: Ints


def _programs(frame: pl.DataFrame) -> _Programs:
    names = frame["program_id"].drop_nulls().unique(maintain_order=True)
    table = pl.DataFrame({"program_id": names, "number": np.arange(len(names))})
    of_row = frame.select("program_id").join(table, on="program_id", how="left", maintain_order="left")
    numbers = of_row["number"].fill_null(-1).to_numpy()
    parent = np.full(len(names), -1)
    pairs = frame.select("program_id", "parent_id").drop_nulls().unique("program_id", maintain_order=True)
    if pairs.height:
        place = dict(zip(names, range(len(names)), strict=True))
        for name, above in pairs.iter_rows():
            parent[place[name]] = place.get(above, -1)
    return _Programs(numbers, parent, _roots(parent))


def _roots(parent: Ints) -> Ints:
    """The topmost above each program; a ring of parents is opened, where it was entered, in ``parent`` too."""
    root = np.where(parent < 0, np.arange(parent.size), -1)
    for number in np.flatnonzero(parent >= 0):
        path = [int(number)]
        on_path = {path[0]}
        while root[path[-1]] < 0:
            above = int(parent[path[-1]])
            if above in on_path:
                parent[path[-1]] = -1
                root[path[-1]] = path[-1]
                break
            path.append(above)
            on_path.add(above)
        root[path] = root[path[-1]]
    return root


def _groups(num_rows: int, programs: _Programs) -> Ints:
    labels = np.arange(num_rows) + programs.root.size
    bound = programs.of_row >= 0
    labels[bound] = programs.root[programs.of_row[bound]]
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    place = np.empty(first.size, np.int64)
    place[np.argsort(first)] = np.arange(first.size)
    return place[inverse]


def _with_clocks(frame: pl.DataFrame, programs: _Programs, group: Ints) -> pl.DataFrame:
    """Rows of programs by program and time: ``row``, ``group``, ``program``, ``turn``, ``gap``, ``began``, ``begin``,
    ``end`` (on the program's clock), ``absolute``, ``recorded``, ``open`` (its end is unknown), ``loose``."""
    own = pl.col(_OWN_CLOCK) if _OWN_CLOCK in frame.columns else pl.lit(None, pl.Float64)
    began = pl.col(_BEGAN) if _BEGAN in frame.columns else pl.lit(None, pl.Float64)
    rows = frame.select(
        pl.col("t_s").fill_nan(None),
        own.alias("own"),
        began.alias("began"),
        pl.col("e2e_s").fill_nan(None).clip(lower_bound=0.0).alias("took"),
        pl.col("gap_before_s").fill_nan(None).alias("gap"),
        pl.col("turn").fill_null(0),
        pl.Series("program", programs.of_row),
        pl.Series("group", group),
    ).with_row_index("row")
    rows = rows.filter(pl.col("program") >= 0).with_columns(
        pl.col("t_s").is_not_null().all().over("program").alias("absolute"),
        pl.col("own").is_not_null().all().over("program").alias("counted"),
    )
    clock = pl.when("absolute").then("t_s").when("counted").then("own")
    rows = rows.with_columns(clock.alias("clock")).sort("program", "clock", "turn", "row", nulls_last=True)
    return _with_stretches(rows)


def _with_stretches(rows: pl.DataFrame) -> pl.DataFrame:
    first = pl.col("row").cum_count().over("program") == 1
    answered = pl.col("took").fill_null(0.0).shift(1).over("program")
    step = (answered + pl.col("gap").fill_null(0.0)).clip(lower_bound=0.0)
    steps = pl.when(first).then(0.0).otherwise(step).cum_sum().over("program")
    rows = rows.with_columns(
        pl.coalesce("clock", steps).alias("begin"),
        pl.col("clock").is_not_null().alias("recorded"),
        (pl.col("clock").is_null() & pl.col("gap").is_null() & ~first).alias("loose"),
    )
    before_next = (pl.col("begin") - pl.col("gap")).shift(-1).over("program")
    end = pl.coalesce(pl.col("begin") + pl.col("took"), pl.max_horizontal("begin", before_next), "begin")
    # Where only the next turn's gap says when this one ended, its end is as good as known.
    unknown = pl.col("took").is_null() & before_next.is_null()
    return rows.with_columns(end.alias("end"), unknown.alias("open"))


def _scatter(graph: Graph, rows: pl.DataFrame) -> None:
    at = rows["row"].to_numpy()
    graph.begin_s[at], graph.end_s[at] = rows["begin"].to_numpy(), rows["end"].to_numpy()
    graph.clocked[at], graph.recorded[at] = rows["absolute"].to_numpy(), rows["recorded"].to_numpy()
    graph.loose[at] = rows["loose"].to_numpy()


def _is_woven(quantum_s: float) -> pl.Expr:
    """Rows of groups that are no plain chain: of several programs, or with calls that overlap."""
    ended = pl.col("end").cum_max().shift(1).over("program")
    overlap = (pl.col("begin") < ended - quantum_s).fill_null(False)
    several = pl.col("program").n_unique().over("group") > 1
    return (overlap | several).any().over("group")


def _chains(rows: pl.DataFrame, graph: Graph, place: Ints) -> tuple[Ints, Ints]:
    """Turn by turn: the common case, without a loop. Fills in delays and places of these rows."""
    before = rows.select(
        "row",
        pl.col("row").shift(1).over("program").alias("awaited"),
        pl.coalesce("gap", pl.col("begin") - pl.col("end").shift(1).over("program")).alias("delay"),
        (pl.col("gap").is_null() & pl.col("open").shift(1).over("program")).alias("whole"),
        (pl.col("row").cum_count().over("program") - 1).alias("place"),
    )
    place[before["row"].to_numpy()] = before["place"].to_numpy()
    before = before.filter(pl.col("awaited").is_not_null())
    waiter = before["row"].to_numpy().astype(np.int64)
    graph.delay_s[waiter] = np.maximum(before["delay"].to_numpy(), 0.0)
    graph.whole_steps[waiter] = before["whole"].fill_null(False).to_numpy()
    return waiter, before["awaited"].to_numpy().astype(np.int64)


def _families(rows: pl.DataFrame, programs: _Programs) -> Iterator[list[Program]]:
    """Programs of each woven group."""
    for family in rows.sort("group", maintain_order=True).partition_by("group", maintain_order=True):
        parts = family.partition_by("program", maintain_order=True)
        yield [_program(int(part["program"][0]), part, programs) for part in parts]


def _program(number: int, part: pl.DataFrame, programs: _Programs) -> Program:
    return Program(
        number=number,
        parent=int(programs.parent[number]),
        rows=part["row"].to_list(),
        begin=part["begin"].to_list(),
        end=part["end"].to_list(),
        gap=part["gap"].to_list(),
        open=part["open"].to_list(),
        began=part["began"].to_list(),
        absolute=part["absolute"].to_list(),
        recorded=part["recorded"].to_list(),
    )
