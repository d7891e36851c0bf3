"""The same plan on a virtual clock: the production scheduler, measured step times, and no server.

Latency counts from the scheduled time, as in a replay, and a run has the same shape, so it is reported and compared
with the same verbs. What a server adds around its engine (HTTP, tokenising, templates) is not in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial

import numpy as np
import polars as pl

from braid.core.metrics import RequestTimes
from braid.core.program import ProgramRef
from braid.lab.replay.outcome import Outcome, outcome_frame
from braid.lab.replay.planning.content import planned_hit_rate, prompt_words
from braid.lab.replay.planning.plan import ReplayPlan
from braid.lab.replay.record import Run, RunHead, join
from braid.lab.table import TraceError
from braid.sched.config import Policies
from braid.sim.machine import Machine
from braid.sim.run import Arrival, SimReport, simulate

VOCABULARY = 50_000
"""Different tokens that prompts are made of; how many there are changes nothing."""
LAG_LIMIT_S = 0.001


def simulate_plan(
    plan: ReplayPlan, machine: Machine, *, label: str = "simulated", policies: Policies | None = None
) -> Run:
    """Play a plan in virtual time; the same arguments give the same run, but for when it was made.

    Raises:
        TraceError: nothing to send, or the plan has no start times (concurrency mode).
    """
    if not plan.num_requests:
        raise TraceError(f"no request of {plan.source} can be sent")
    if plan.options.arrivals == "concurrency":
        raise TraceError("a simulation needs start times: plan with the trace's clock or with a rate")
    report = simulate(arrivals_of(plan), machine.config, machine.cost, policies)
    outcomes = [_ended(times, cached) for times, cached in zip(report.requests, report.cached, strict=True)]
    outcomes += [
        Outcome(request=int(name), status="error", http_status=400, reason=why)
        for name, why in report.refused.items()
    ]
    frame = join(plan.frame, outcome_frame(outcomes, plan.num_requests, "never arrived"))
    cancelled = pl.col("cancel_after_tok").is_not_null() & (pl.col("status") == "ok")
    status = pl.when(cancelled).then(pl.lit("cancelled")).otherwise(pl.col("status").cast(pl.String))
    frame = frame.with_columns(status.cast(frame.schema["status"]).alias("status"))
    return Run(_head(plan, machine, label, report, frame), frame)


def arrivals_of(plan: ReplayPlan) -> list[Arrival]:
    """What a simulation is fed with: a plan's requests, with the programs that a server would know them by."""
    frame, seed = plan.frame, plan.options.seed
    replies, programs = _replies(frame), _programs(frame)
    arrivals = []
    for row in frame.iter_rows(named=True):
        keys, toks = row["segment_keys"], row["segment_toks"]
        output = row["out_tok"] if row["cancel_after_tok"] is None else max(1, row["cancel_after_tok"])
        follower = replies.get(row["request"])
        reply = () if follower is None else partial(_part, *follower, seed)
        arrivals.append(
            Arrival(
                time=row["start_s"],
                prompt=partial(_words, keys, toks, seed),
                num_output_tokens=output,
                after=tuple(row["after"]),
                delay=row["delay_s"],
                reply=reply,
                program=programs[row["request"]],
            )
        )
    return arrivals


def _programs(frame: pl.DataFrame) -> list[ProgramRef | None]:
    """Each request's program, as a server reads it off its headers."""
    lone = frame.select(pl.col("program") == pl.format("row {}", "source_row")).to_series().to_list()
    names, parents = frame["program"].to_list(), frame["parent"].to_list()
    last = {name: number for number, name in enumerate(names)}
    return [
        None if lone[at] else ProgramRef(owner="", program=name, parent=parents[at], final=last[name] == at)
        for at, name in enumerate(names)
    ]


def _replies(frame: pl.DataFrame) -> dict[int, tuple[list[int], list[int], int, int]]:
    """Where a request's answer stands in the next turn's prompt: its segments, and from which token to which."""
    previous = [
        pl.col(name).shift(1).over("program").alias(f"{name}_before") for name in ("request", "in_tok")
    ]
    turns = frame.sort("program", "turn", maintain_order=True).with_columns(*previous)
    told = turns.filter((pl.col("shared_tok") > pl.col("in_tok_before")).fill_null(False))
    columns = ("request_before", "segment_keys", "segment_toks", "in_tok_before", "shared_tok")
    return {row[0]: row[1:] for row in told.select(columns).iter_rows()}


def _words(keys: Sequence[int], toks: Sequence[int], seed: int) -> list[int]:
    return [*map(int, prompt_words(keys, toks, seed, VOCABULARY))]


def _part(keys: Sequence[int], toks: Sequence[int], start: int, stop: int, seed: int) -> list[int]:
    return _words(keys, toks, seed)[start:stop]


def _ended(times: RequestTimes, cached: int) -> Outcome:
    num = times.num_output_tokens
    return Outcome(
        request=int(times.request_id),
        status="ok",
        scheduled_s=times.arrival,
        sent_s=times.arrival,
        first_byte_s=times.token_times[0],
        chunk_times_s=tuple(times.token_times),
        chunk_tokens=(1,) * num,
        end_s=times.token_times[-1],
        http_status=200,
        finish_reason="length",
        completion_tokens=num,
        cached_tokens=cached,
        attempts=1,
    )


def _head(plan: ReplayPlan, machine: Machine, label: str, report: SimReport, frame: pl.DataFrame) -> RunHead:
    notes = [
        *plan.notes,
        "Simulated: the production scheduler in virtual time; no server, no network, no tokenizer.",
    ]
    if report.num_extrapolated:
        notes.append(
            f"{report.num_extrapolated:,} of {report.stats.num_steps:,} steps lie outside the measured tables."
        )
    last = frame["scheduled_s"].max()
    return RunHead(
        label=label,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        url="",
        model=machine.model,
        endpoint="simulator",
        server=machine.words,
        plan_sha256=plan.sha256,
        source=plan.source,
        data_sha256=plan.data_sha256,
        plan=asdict(plan.options),
        run={"scheduler": asdict(machine.config), "steps": report.stats.num_steps},
        notes=tuple(notes),
        unsendable={name: len(rows) for name, rows in plan.unsendable.items()},
        output_enforced=True,
        history="recorded",
        lag_limit_s=LAG_LIMIT_S,
        window_s=(0.0, float(np.nextafter(last, np.inf)) if isinstance(last, float) else 0.0),
        machine=f"virtual: {machine.cost.profile}",
        planned_hit_rate=planned_hit_rate(plan, machine.config.block_size),
    )
