"""Requests get their numbers, and a plan its hash."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import polars as pl

from braid.lab.replay.planning.graph import Floats, Ints
from braid.lab.replay.planning.settle import Settled, chance
from braid.lab.replay.planning.starts import Starts, by_rate, by_trace, queue

if TYPE_CHECKING:
    from braid.lab.replay.planning.plan import PlanOptions, ReplayPlan


def bases(made: Settled, options: PlanOptions, quantum_s: float) -> Floats | None:
    """When the groups start, by place in ``starts.queue``; None where they wait for slots."""
    rng = chance(options, "starts")
    if options.arrivals == "trace":
        return by_trace(made.graph, made.kept, quantum_s, rng)
    if options.rate is not None:
        return by_rate(queue(made.graph, made.kept).size, options.rate, options.cv, rng)
    return None


def numbered(made: Settled, starts: Starts, options: PlanOptions) -> pl.DataFrame:
    """Columns of ``plan.PLAN_SCHEMA``, not yet of its types."""
    at, num = starts.order, starts.order.size
    number = np.full(made.kept.size, -1)
    number[at] = np.arange(num)
    timed = options.turns == "timestamp"
    slots = options.arrivals == "concurrency"
    waits = starts.waits[at]
    start_s = pl.Series(starts.start_s[at])
    delay_s = np.where(waits, made.graph.delay_s[at], starts.offset_s[at] if slots else 0.0)
    edges = slice(0, 0) if timed else slice(None)
    cancel = made.cancel_after_tok[at]
    rows = made.rows.select("program_id", "turn", "parent_id", "source_row")[at]
    segments = made.segments
    columns: dict[str, Any] = {
        "request": np.arange(num),
        "group": starts.group[at],
        "program": rows.select(pl.coalesce("program_id", pl.format("row {}", "source_row"))).to_series(),
        "turn": rows["turn"].fill_null(0),
        "parent": rows["parent_id"],
        "start_s": start_s.set(pl.Series(~waits), None) if slots else start_s,
        "after": _lists(number[made.graph.waiter[edges]], number[made.graph.awaited[edges]], num),
        "delay_s": np.zeros(num) if timed else delay_s,
        "in_tok": made.in_tok[at],
        "out_tok": made.out_tok[at],
        "cancel_after_tok": pl.Series(cancel).set(pl.Series(cancel < 0), None),
        "segment_keys": _lists(number[segments.row], segments.key, num),
        "segment_toks": _lists(number[segments.row], segments.tok, num),
        "shared_tok": made.shared_tok[at],
        "source_row": rows["source_row"],
    }
    return pl.DataFrame({name: pl.Series(name, values) for name, values in columns.items()})


def _lists(row: Ints, values: Ints, num: int) -> pl.Series:
    """Lists of values by row, 0 .. num-1, in the order given; empty where there are none."""
    order = np.argsort(row, kind="stable")
    row, values = row[order], values[order]
    counts = np.bincount(row, minlength=num)
    if row.size == num and (counts == 1).all():
        return pl.Series(values).reshape((num, 1)).arr.to_list()
    some = pl.DataFrame({"row": row, "value": values})
    some = some.group_by("row", maintain_order=True).agg("value")
    every = pl.DataFrame({"row": np.arange(num)}).join(some, on="row", how="left", maintain_order="left")
    return every["value"].fill_null([])


def plan_hash(plan: ReplayPlan) -> str:
    """Sha256 over columns, options, data, what is left out and notes; not over the file's name, nor over ``parent``
    where no program has one: plans of before that column have the same hash."""
    digest = hashlib.sha256()
    told = (asdict(plan.options), plan.data_sha256, dict(plan.unsendable), plan.notes)
    digest.update(msgspec.json.encode(told, order="deterministic"))
    for column in plan.frame:
        if column.name == "parent" and column.null_count() == len(column):
            continue
        digest.update(f"{column.name} {column.dtype} {len(column)}\n".encode())
        _hash_column(column, digest)
    return digest.hexdigest()


def _hash_column(column: pl.Series, digest: Any) -> None:
    if column.dtype == pl.List:
        _hash_column(column.list.len(), digest)
        _hash_column(column.filter(column.list.len() > 0).explode(), digest)
        return
    digest.update(column.is_null().to_numpy().tobytes())
    if column.dtype == pl.String:
        digest.update(column.str.len_bytes().fill_null(0).to_numpy().tobytes())
        digest.update("".join(column.fill_null("").to_list()).encode())
        return
    digest.update(column.fill_null(0).to_numpy().tobytes())
