"""Golden schedules: one scripted load through any executor, and the plans that came of it.

A scenario is data: the scheduler's config, and events that happen after given numbers of steps. Nothing in
it depends on a clock or on which tokens are sampled, so the simulator and a real model must give the same
plans.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from braid.core.request import Delta, Request
from braid.core.sampling import SamplingParams
from braid.core.step import Executor, StepPlan, StepResult
from braid.sched.config import SchedulerConfig
from braid.sched.loop import Loop
from braid.sched.scheduler import Scheduler


class Event(NamedTuple):
    """After ``after_step`` steps have ended, a request comes (``add``) or is given up (``abort``)."""

    after_step: int
    add: dict[str, Any] | None
    abort: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    config: SchedulerConfig
    events: tuple[Event, ...]


class PlanRecord(NamedTuple):
    """One step: ``works`` holds (request id, first token, number of tokens)."""

    step_id: int
    lane: str
    works: tuple[tuple[str, int, int], ...]
    preempted: tuple[str, ...]


def load_scenario(path: Path) -> Scenario:
    data = json.loads(path.read_text(encoding="utf-8"))
    events = [Event(e["after_step"], e.get("add"), e.get("abort")) for e in data["events"]]
    return Scenario(config=SchedulerConfig(**data["scheduler"]), events=tuple(events))


def load_plans(path: Path) -> list[PlanRecord]:
    data = json.loads(path.read_text(encoding="utf-8"))
    return [
        PlanRecord(
            plan["step_id"],
            plan["lane"],
            tuple((name, start, num) for name, start, num in plan["works"]),
            tuple(plan["preempted"]),
        )
        for plan in data
    ]


def dump_plans(plans: list[PlanRecord]) -> str:
    """JSON with one plan per line, so that a changed schedule reads as a diff."""
    return "[\n" + ",\n".join(json.dumps(plan._asdict()) for plan in plans) + "\n]\n"


class _Recorder:
    """An executor that passes everything on and writes down the plans."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.lanes = executor.lanes
        self.plans: list[PlanRecord] = []
        self.now = executor.now
        self.reshare = executor.reshare
        self.wake = executor.wake

    def submit(self, plan: StepPlan) -> None:
        works = tuple((work.request_id, work.start, len(work.token_ids)) for work in plan.works)
        self.plans.append(PlanRecord(plan.step_id, plan.lane, works, plan.preempted))
        self._executor.submit(plan)

    def wait(self, until: float | None) -> list[StepResult]:
        return self._executor.wait(until)


class ScenarioRun(NamedTuple):
    """The plans, every request's deltas in order, and the scheduler as it was left."""

    plans: list[PlanRecord]
    deltas: list[Delta]
    scheduler: Scheduler


def drive(scenario: Scenario, executor: Executor) -> ScenarioRun:
    """Run a scenario to its end on the calling thread."""
    scheduler = Scheduler(scenario.config)
    recorder = _Recorder(executor)
    deltas: list[Delta] = []
    loop = Loop(scheduler, recorder, deltas.extend)
    events = deque(scenario.events)
    while events or not loop.is_idle:
        while events and (events[0].after_step <= len(recorder.plans) or loop.is_idle):
            _apply(scheduler, events.popleft(), executor.now())
        if not loop.is_idle:
            loop.run_once()
    scheduler.check_integrity()
    return ScenarioRun(recorder.plans, deltas, scheduler)


def _apply(scheduler: Scheduler, event: Event, now: float) -> None:
    if event.abort is not None:
        assert scheduler.abort(event.abort, now), f"{event.abort} had ended already"
    if event.add is not None:
        scheduler.add(_request(event.add, event.after_step), now)


def _request(add: dict[str, Any], after_step: int) -> Request:
    return Request(
        request_id=add["request_id"],
        prompt_token_ids=tuple(add["prompt"]),
        params=SamplingParams(temperature=0, max_tokens=add["max_tokens"], ignore_eos=True),
        arrival_time=float(after_step),
        seed=add.get("seed", 0),
        priority=add.get("priority", 0),
    )
