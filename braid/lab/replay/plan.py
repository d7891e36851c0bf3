"""The plan of a replay: which request is sent when, after which, with how many tokens and which content.

A plan knows no server and no clock. It is complete and hashed before the first request is sent, and the same plan
can be played against several servers, or by the simulator.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import msgspec
import numpy as np
import polars as pl

from braid.lab.progress import NoProgress, Progress
from braid.lab.replay import notes as say
from braid.lab.replay.graph import Flags, Floats, Graph, Ints, capped, graph_of, subset, without
from braid.lab.replay.lengths import NEVER, TOO_LONG, fitted, lengths_of, scaled
from braid.lab.replay.prompts import Rows, Segments, cut, prompts_of, sized
from braid.lab.replay.starts import Starts, by_rate, by_trace, placed, queue
from braid.lab.table import Trace, TraceError

Arrivals = Literal["trace", "rate", "concurrency"]
Turns = Literal["gap", "timestamp"]
FailedRows = Literal["send", "skip", "cancel"]
TooLong = Literal["skip", "cut"]

PLAN_SCHEMA: Mapping[str, Any] = {
    "request": pl.UInt32,
    "group": pl.UInt32,
    "program": pl.String,
    "turn": pl.Int32,
    "start_s": pl.Float64,
    "after": pl.List(pl.UInt32),
    "delay_s": pl.Float64,
    "in_tok": pl.Int64,
    "out_tok": pl.Int64,
    "cancel_after_tok": pl.Int64,
    "segment_keys": pl.List(pl.Int64),
    "segment_toks": pl.List(pl.Int64),
    "shared_tok": pl.Int64,
    "source_row": pl.UInt32,
}
"""Columns of a plan; one row per request, in order of ``start_s``.

    request           its number in the plan, 0 .. n-1, the row's place
    group             requests that wait for each other share one (a program with its sub-agents); one sender plays it
    program, turn     as in the trace; a request without a program is one of its own, with a made-up name
    start_s           when it is to be sent, seconds from the run's start, where nothing is waited for; for one that
                      waits, when the trace had it (informative). In concurrency mode null for a group's first
                      requests: they start when a slot is free, in the order of the rows; the others' counts from
                      their group's start, and rows are in order of groups
    after             requests that must have ended before this one is scheduled, none of them later in the plan;
                      empty for none
    delay_s           from the last of these ends to the scheduled time; where nothing is waited for 0, but in
                      concurrency mode from when the group got its slot
    in_tok, out_tok   tokens to send, at least 1, and to ask for, at least 1
    cancel_after_tok  the client hangs up after so many output tokens (0: as soon as the answer begins); null for never
    segment_keys/toks the prompt is the first ``toks[0]`` words of the endless stream ``keys[0]``, then of ``keys[1]``
                      and so on; equal keys mean equal words, so what the trace shares is shared; sums to ``in_tok``
    shared_tok        how many of the prompt's first tokens are the previous turn's prompt and stand-in reply (what a
                      live history replaces): all of both, that is ``in_tok + out_tok`` of the program's row before,
                      and less than ``in_tok``; 0 where the prompt does not begin with both
    source_row        row of the trace's frame
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanOptions:
    """How a trace becomes a plan.

    Args:
        start_s, span_s: only programs that start within this stretch of the trace's time; None for all to the end.
        max_programs: at most so many programs (or lone requests) of that stretch, the first ones.
        arrivals: ``trace``: programs start by the trace's clock; ``rate``: at ``rate`` per second with gamma gaps of
            coefficient of variation ``cv`` (1: Poisson); ``concurrency``: ``concurrency`` programs run at any time.
        turns: ``gap``: a turn waits for the end of what it waited for in the trace, then the recorded gap;
            ``timestamp``: every request at its recorded time (needs the trace's clock).
        max_gap_s: cap on recorded gaps; None for none. What it changed is in ``ReplayPlan.notes``.
        failed: what becomes of rows that failed in the trace: sent with an output length drawn from answered rows of
            like prompts; left out and counted; or sent and cancelled.
        length_factor: multiplies all lengths (blocks too), for servers with a smaller context; noted.
        max_tokens: the context: prompt and output together; None for any. Rows beyond it are left out and counted, or
            their prompts are cut at the end (shared prefixes stay shared), see ``too_long``.
        too_long: ``skip`` or ``cut``.
        seed: of everything drawn (rate arrivals, shifts inside the clock's quantum, lengths of failed rows, content).
    """

    start_s: float = 0.0
    span_s: float | None = None
    max_programs: int | None = None
    arrivals: Arrivals = "trace"
    rate: float | None = None
    cv: float = 1.0
    concurrency: int | None = None
    turns: Turns = "gap"
    max_gap_s: float | None = None
    failed: FailedRows = "send"
    length_factor: float = 1.0
    max_tokens: int | None = None
    too_long: TooLong = "skip"
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayPlan:
    """A plan.

    Args:
        frame: rows of ``PLAN_SCHEMA``.
        options: what it was made with.
        source: the trace's file; ``data_sha256`` of it.
        unsendable: rows that cannot be sent, by reason (``zero_input``, ``too_long``, ``failed_skipped``): source rows.
        notes: what differs from the trace, one sentence each, for the report.
        sha256: of all of the above but ``source``: equal plans have equal hashes.
    """

    frame: pl.DataFrame
    options: PlanOptions
    source: str
    data_sha256: str
    unsendable: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]
    sha256: str

    @property
    def num_requests(self) -> int:
        return self.frame.height


@dataclass(frozen=True, kw_only=True, slots=True)
class _Made:
    """What is settled before requests are numbered; arrays over ``rows``, those of the chosen groups.

    Args:
        graph: of those that are sent.
        kept: those that are sent.
        in_tok, out_tok, cancel_after_tok: scaled and cut.
        segments: of the rows that are sent.
        gone: rows of the trace, by reason.
        notes: what differs from the trace.
    """

    rows: pl.DataFrame
    graph: Graph
    kept: Flags
    in_tok: Ints
    out_tok: Ints
    cancel_after_tok: Ints
    shared_tok: Ints
    segments: Segments
    gone: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]


def build_plan(trace: Trace, options: PlanOptions, progress: Progress | None = None) -> ReplayPlan:
    """The plan of a trace; the same trace and options give the same plan, to the hash.

    The run begins with the first planned start: silence before it is left out.

    Raises:
        TraceError: options that contradict each other or ask for what the trace does not have (arrival times, prompt
            lengths), or nothing to send.
    """
    progress = progress or NoProgress()
    _check(options)
    progress.update("planning: who waits for whom", 0, 4)
    rows, graph = _chosen(trace, options)
    progress.update("planning: lengths and prompts", 1, 4)
    made = _made(trace, options, rows, graph)
    progress.update("planning: starts", 2, 4)
    starts = placed(made.graph, made.kept, _bases(made, options, trace.info.t_quantum_s))
    frame = _frame(made, starts, options)
    progress.update("planning: hash", 3, 4)
    plan = ReplayPlan(
        frame=frame,
        options=options,
        source=trace.info.source,
        data_sha256=trace.info.sha256,
        unsendable=made.gone,
        notes=(*say.start_notes(options, trace.info.t_quantum_s), *made.notes),
        sha256="",
    )
    plan = replace(plan, sha256=plan_hash(plan))
    progress.update("planning: hash", 4, 4)
    return plan


_CHOICES = {"arrivals": Arrivals, "turns": Turns, "failed": FailedRows, "too_long": TooLong}


def _check(options: PlanOptions) -> None:
    for name, choices in _CHOICES.items():
        if getattr(options, name) not in get_args(choices):
            known = ", ".join(get_args(choices))
            raise TraceError(f"{name} must be one of {known}, got {getattr(options, name)!r}")
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


def _chosen(trace: Trace, options: PlanOptions) -> tuple[pl.DataFrame, Graph]:
    """The rows of the programs (with their sub-agents) that the options ask for, and their graph."""
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


def _made(trace: Trace, options: PlanOptions, rows: pl.DataFrame, graph: Graph) -> _Made:
    lengths = lengths_of(rows, trace.frame, options.failed, _rng(options, "lengths"))
    factor = options.length_factor
    size = sized(rows, trace.info, lengths.in_tok, factor)
    out_tok = scaled(lengths.out_tok, factor, 1)
    cancel = np.where(lengths.cancel_after_tok < 0, NEVER, scaled(lengths.cancel_after_tok, factor))
    # What is cancelled has more to come, whatever the factor makes of it.
    out_tok = np.maximum(out_tok, cancel + 1)
    fit = fitted(size.in_tok, out_tok, options.max_tokens, options.too_long == "cut")
    reasons = {**lengths.gone, TOO_LONG: fit.too_long}
    gone, kept = _reasons(reasons, rows)
    if not kept.any():
        told = ", ".join(f"{len(places):,} {reason}" for reason, places in gone.items())
        raise TraceError(f"no request of this trace can be sent: {told}")
    prompts = prompts_of(
        Rows(
            frame=rows,
            info=trace.info,
            graph=graph,
            in_tok=lengths.in_tok,
            reply_tok=lengths.reply_tok,
            asked_tok=out_tok,
            sized=size,
            kept=kept,
            factor=factor,
        )
    )
    sent = np.where(kept, fit.in_tok, 0)
    sent_graph = without(graph, ~kept)
    final = sent_graph if options.max_gap_s is None else capped(sent_graph, options.max_gap_s)
    return _Made(
        rows=rows,
        graph=final,
        kept=kept,
        in_tok=sent,
        out_tok=out_tok,
        cancel_after_tok=cancel,
        shared_tok=_shared(prompts.held_of, fit.in_tok, out_tok, fit.cut),
        segments=cut(prompts.segments, sent),
        gone=gone,
        notes=(
            *lengths.notes,
            *say.length_notes(options, size, fit.cut & kept),
            *say.left_out_notes(gone, options),
            *say.content_notes(trace, graph, size),
            *say.wait_notes(graph, sent_graph, kept, options),
        ),
    )


def _reasons(reasons: Mapping[str, Flags], rows: pl.DataFrame) -> tuple[dict[str, tuple[int, ...]], Flags]:
    """Rows of the trace by the first reason that keeps each from being sent, and the rows that are sent."""
    kept, gone = np.ones(rows.height, bool), {}
    for reason, mask in reasons.items():
        if (mask & kept).any():
            gone[reason] = tuple(rows["source_row"].filter(pl.Series(mask & kept)).to_list())
        kept &= ~mask
    return gone, kept


def _shared(held_of: Ints, in_tok: Ints, out_tok: Ints, cut_off: Flags) -> Ints:
    """Tokens of the prompt and answer that each prompt begins with, where both are whole and something follows."""
    held = np.where(held_of >= 0, in_tok[held_of] + out_tok[held_of], 0)
    return np.where((held_of >= 0) & ~cut_off[held_of] & (held < in_tok), held, 0)


def _rng(options: PlanOptions, what: str) -> np.random.Generator:
    """One source of chance for each use, so that one option does not change what another draws."""
    return np.random.default_rng([options.seed, *what.encode()])


def _bases(made: _Made, options: PlanOptions, quantum_s: float) -> Floats | None:
    rng = _rng(options, "starts")
    if options.arrivals == "trace":
        return by_trace(made.graph, made.kept, quantum_s, rng)
    if options.rate is not None:
        return by_rate(queue(made.graph, made.kept).size, options.rate, options.cv, rng)
    return None


def _frame(made: _Made, starts: Starts, options: PlanOptions) -> pl.DataFrame:
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
    rows = made.rows.select("program_id", "turn", "source_row")[at]
    segments = made.segments
    columns: dict[str, Any] = {
        "request": np.arange(num),
        "group": starts.group[at],
        "program": rows.select(pl.coalesce("program_id", pl.format("row {}", "source_row"))).to_series(),
        "turn": rows["turn"].fill_null(0),
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
    frame = pl.DataFrame({name: pl.Series(name, values) for name, values in columns.items()})
    return frame.select(pl.col(name).cast(dtype) for name, dtype in PLAN_SCHEMA.items())


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
    """Over columns, options, data, what is left out and notes; not over the file's name."""
    digest = hashlib.sha256()
    told = (asdict(plan.options), plan.data_sha256, dict(plan.unsendable), plan.notes)
    digest.update(msgspec.json.encode(told, order="deterministic"))
    for column in plan.frame:
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
