"""The plan of a replay: which request is sent when, after which, with how many tokens and which content.

A plan knows no server and no clock. It is complete and hashed before the first request is sent, and the same plan
can be played against several servers, or by the simulator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import polars as pl

from braid.lab.progress import NoProgress, Progress
from braid.lab.replay.planning import notes as say
from braid.lab.replay.planning.choice import check, chosen
from braid.lab.replay.planning.numbered import bases, numbered, plan_hash
from braid.lab.replay.planning.settle import settled
from braid.lab.replay.planning.starts import placed
from braid.lab.table import Trace

Arrivals = Literal["trace", "rate", "concurrency"]
Turns = Literal["gap", "timestamp"]
FailedRows = Literal["send", "skip", "cancel"]
TooLong = Literal["skip", "cut"]

PLAN_SCHEMA: Mapping[str, Any] = {
    "request": pl.UInt32,
    "group": pl.UInt32,
    "program": pl.String,
    "turn": pl.Int32,
    "parent": pl.String,
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
    parent            the program that started this one, as in the trace
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


_CHOICES = {
    "arrivals": get_args(Arrivals),
    "turns": get_args(Turns),
    "failed": get_args(FailedRows),
    "too_long": get_args(TooLong),
}


def build_plan(trace: Trace, options: PlanOptions, progress: Progress | None = None) -> ReplayPlan:
    """The plan of a trace; the same trace and options give the same plan, to the hash.

    The run begins with the first planned start: silence before it is left out.

    Raises:
        TraceError: options that contradict each other or ask for what the trace does not have (arrival times, prompt
            lengths), or nothing to send.
    """
    progress = progress or NoProgress()
    check(options, _CHOICES)
    progress.update("planning: who waits for whom", 0, 4)
    rows, graph = chosen(trace, options)
    progress.update("planning: lengths and prompts", 1, 4)
    made = settled(trace, options, rows, graph)
    progress.update("planning: starts", 2, 4)
    starts = placed(made.graph, made.kept, bases(made, options, trace.info.t_quantum_s))
    frame = numbered(made, starts, options)
    progress.update("planning: hash", 3, 4)
    plan = ReplayPlan(
        frame=frame.select(pl.col(name).cast(dtype) for name, dtype in PLAN_SCHEMA.items()),
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
