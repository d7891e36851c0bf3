"""Ways to share one machine between prefill and decode, side by side in virtual time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import Any, NamedTuple

from braid.core.errors import InvalidParameterError
from braid.core.metrics import RequestTimes, percentile, summary
from braid.core.request import Slo
from braid.policy.phases.catalog import phases_policy
from braid.policy.phases.curves import Curves
from braid.policy.phases.fixed import Layered
from braid.policy.phases.policy import Demand, Division, Phases, StepSeen
from braid.sched.config import COMPUTING, Policies, SchedulerConfig
from braid.sim.executor import StepTime
from braid.sim.lanes import LaneTime
from braid.sim.run import Arrival, SimReport, simulate

KEPT = 0.99
"""Of a request's times between tokens must be within the wish, for the request to be served as wished."""


class Changed(NamedTuple):
    """A division that differs from the one before. ``units`` are those of the lane of prompts, 0 for mixed steps."""

    time: float
    units: int
    chunk: int
    why: str


@dataclass(slots=True)
class Watched:
    """A policy, and what it decided while both phases had work."""

    phases: Phases
    changes: list[Changed] = field(default_factory=list)
    busy_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(COMPUTING, 0.0))
    """By lane."""
    prefill_tokens: int = 0
    _held: int | None = None

    @property
    def name(self) -> str:
        return self.phases.name

    @property
    def is_split(self) -> bool:
        return self.phases.is_split

    def divide(self, demand: Demand) -> Division:
        division = self.phases.divide(demand)
        if demand.num_prefill and demand.num_decodes:
            units = 0 if division.is_mixed else division.prefill_units
            if units != self._held:
                self.changes.append(Changed(demand.now, units, division.max_prefill, division.why))
            self._held = units
        return division

    def stepped(self, step: StepSeen, now: float) -> None:
        self.busy_s[step.lane] += step.seconds
        self.prefill_tokens += step.num_prefill
        self.phases.stepped(step, now)

    def answered(self, seconds: float, limit: float, now: float, *, is_first: bool) -> None:
        self.phases.answered(seconds, limit, now, is_first=is_first)

    def describe(self) -> Mapping[str, float]:
        return self.phases.describe()


@dataclass(frozen=True, kw_only=True, slots=True)
class PhasesSetup:
    """Args:
    cost: of a step alone on the whole machine.
    config: with the machine's units.
    curves: what parts of the machine cost here; policies begin with the same and are told nothing.
    prefill_part: see ``LaneTime``.
    machine: in words.
    """

    cost: StepTime
    config: SchedulerConfig
    curves: Curves
    machine: str
    prefill_part: float = 0.5

    @property
    def lanes(self) -> LaneTime:
        return LaneTime(num_units=self.config.num_units, curves=self.curves, prefill_part=self.prefill_part)


class PhasesRun(NamedTuple):
    report: SimReport
    watched: Watched
    slo: Slo


def run_phases(arrivals: Sequence[Arrival], setup: PhasesSetup, name: str, slo: Slo) -> PhasesRun:
    """One policy by name.

    Raises:
        InvalidParameterError: there is none of that name, or it needs a number of layers that nobody has said.
    """
    watched = Watched(phases_policy(name, slo, setup.curves))
    if isinstance(watched.phases, Layered) and setup.config.num_layers == 1:
        raise InvalidParameterError(
            f"phases {name!r}: how many layers the model has is not in the machine's file; run braid calibrate again",
            param="phases",
        )
    lanes = setup.lanes if watched.is_split else None
    report = simulate(arrivals, setup.config, setup.cost, Policies(phases=watched), lanes=lanes)
    return PhasesRun(report, watched, slo)


def burst(streams: int, output: int, prompt: int, count: int, every_s: float) -> list[Arrival]:
    """The freeze test: ``streams`` short prompts with long answers, then ``count`` long prompts one after another."""
    decoding = [Arrival(0.0, 64, output) for _ in range(streams)]
    return decoding + [Arrival(every_s * (number + 1), prompt, 2) for number in range(count)]


def keeps(times: RequestTimes, slo: Slo) -> bool:
    """Whether a request was served as wished."""
    tbts = times.tbts
    return times.ttft <= slo.ttft_s and (not tbts or percentile(tbts, 100 * KEPT) <= slo.tbt_s)


def summary_of(run: PhasesRun) -> dict[str, Any]:
    """Plain numbers; times in milliseconds.

    ``tbt_beside_prompts_ms`` are those of tokens between which a prompt was being computed. Rates of tokens are over
    the time from the first arrival to the last token.
    """
    report, slo = run.report, run.slo
    requests = report.requests
    tbts = [tbt for times in requests for tbt in times.tbts]
    seconds = max((t.finished for t in requests), default=0.0) - min(
        (t.arrival for t in requests), default=0.0
    )
    num_kept = sum(keeps(times, slo) for times in requests)
    return {
        "num_requests": len(requests),
        "num_refused": len(report.refused),
        "seconds": seconds,
        "ttft_ms": _summary([times.ttft for times in requests]),
        "tbt_ms": _summary(tbts),
        "tbt_beside_prompts_ms": _summary(_beside(requests)),
        "decode_tok_s": _rate(report.stats.generation_tokens - len(requests), seconds),
        "prefill_tok_s": _rate(run.watched.prefill_tokens, seconds),
        "goodput": _rate(num_kept, seconds),
        "attainment": {
            "requests": num_kept / len(requests) if requests else 1.0,
            "ttft": _share([times.ttft <= slo.ttft_s for times in requests]),
            "tbt": _share([tbt <= slo.tbt_s for tbt in tbts]),
        },
        "busy_s": run.watched.busy_s,
        "switches": max(0, len(run.watched.changes) - 1),
        "divisions": [change._asdict() for change in run.watched.changes],
        "policy": dict(run.watched.describe()),
        "extrapolated_steps": report.num_extrapolated,
    }


def _beside(requests: Sequence[RequestTimes]) -> list[float]:
    """Times between tokens that overlap the first step of a prompt, or what follows it, up to its first token."""
    prompts = sorted((times.first_scheduled, times.token_times[0]) for times in requests)
    merged: list[tuple[float, float]] = []
    for begin, end in prompts:
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    found = []
    for times in requests:
        place = 0
        for before, after in pairwise(times.token_times):
            while place < len(merged) and merged[place][1] <= before:
                place += 1
            if place < len(merged) and merged[place][0] < after:
                found.append(after - before)
    return found


def _summary(seconds: Sequence[float]) -> dict[str, float]:
    if not seconds:
        return {}
    return {
        name: (value if name == "num" else value * 1000) for name, value in summary(seconds)._asdict().items()
    }


def _share(kept: Sequence[bool]) -> float:
    return sum(kept) / len(kept) if kept else 1.0


def _rate(number: float, seconds: float) -> float:
    return number / seconds if 0 < seconds < inf else 0.0
