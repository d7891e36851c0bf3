"""What ``phases.py`` measures beside workloads: what a new split costs, and how each phase scales with cores."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from common import random_prompt
from phases_work import STREAM, Ask, Client, play

from braid import LLM
from braid.core.metrics import percentile
from braid.core.step import StepPlan, StepResult
from braid.device.machine import usable_cores
from braid.runner.lane import LaneThread
from braid.runner.partition import TeamSeat

ENOUGH = 1500
"""Steps of which a cost is read."""
WARM_UP = 50
SWITCH = "submit to start, other units"
"""What a new division costs a lane that is idle."""


class Step(NamedTuple):
    lane: str
    is_resized: bool
    delay_s: float
    """From its submission to its start, on the lane's thread."""


@dataclass(slots=True)
class Steps:
    """Of one engine, in the order of their ends."""

    seen: list[Step] = field(default_factory=list)
    num_resized: int = 0

    @staticmethod
    def together(parts: Sequence[Steps]) -> Steps:
        return Steps([step for part in parts for step in part.seen], sum(part.num_resized for part in parts))

    def add(self, step: Step) -> None:
        self.seen.append(step)
        self.num_resized += step.is_resized

    def clear(self) -> None:
        self.seen, self.num_resized = [], 0

    def copy(self) -> Steps:
        return replace(self, seen=list(self.seen))

    def starts(self) -> dict[str, Any]:
        """Microseconds until a step of each lane started, with other units than its lane's step before, and not."""
        found: dict[str, Any] = {"num_resized": self.num_resized}
        for lane in sorted({step.lane for step in self.seen}):
            for name, is_resized in (("other_units", True), ("same_units", False)):
                delays = [step.delay_s for step in self.seen if step[:2] == (lane, is_resized)]
                if delays:
                    found[f"{lane}_{name}_us"] = _micro(delays)
        return found


def watch(llm: LLM) -> Steps:
    """Every step of this engine from now on."""
    runner, steps = llm._core.runner, Steps()
    submit, wait = runner.submit, runner.wait
    submitted: dict[int, tuple[float, bool]] = {}
    units: dict[str, int] = {}

    def submitting(plan: StepPlan) -> None:
        is_resized = units.setdefault(plan.lane, plan.units) != plan.units
        units[plan.lane] = plan.units
        submitted[plan.step_id] = runner.now(), is_resized
        submit(plan)

    def waiting(until: float | None) -> list[StepResult]:
        results = wait(until)
        for result in results:
            at, is_resized = submitted.pop(result.step_id)
            steps.add(Step(result.lane, is_resized, result.start - at))
        return results

    runner.submit, runner.wait = submitting, waiting  # type: ignore[method-assign]
    return steps


def switch_cost() -> list[dict[str, Any]]:
    """Of a lane's thread that has nothing to compute: until its step starts, and its first parallel work in it."""
    cores = usable_cores()
    if cores < 2:
        return [{"what": "one core: there is nothing to divide"}]
    rows = []
    for what, sizes in (("same units", (cores, cores)), ("other units", (1, cores))):
        starts, works = _alternate(sizes)
        rows += [
            {"what": f"submit to start, {what}", **_micro(starts)},
            {"what": f"first parallel work, {what}", **_micro(works)},
        ]
    return rows


def _alternate(sizes: Sequence[int]) -> tuple[list[float], list[float]]:
    """Seconds until steps of the last of ``sizes`` start, and those of a small parallel operation in them."""
    numbers = torch.ones(1 << 17)
    told: queue.SimpleQueue[StepResult | BaseException] = queue.SimpleQueue()

    def execute(plan: StepPlan) -> StepResult:
        start = time.monotonic()
        numbers.exp()
        return StepResult(plan.step_id, plan.lane, start, time.monotonic() - start, {})

    lane = LaneThread("cost", execute, _no_burial, told.put, TeamSeat(sizes[-1]))
    starts: list[float] = []
    works: list[float] = []
    for number in range(ENOUGH + WARM_UP):
        for units in sizes:
            time.sleep(0.0002)  # the lane's thread waits for its next step, as it does between real ones
            submitted = time.monotonic()
            lane.submit(StepPlan(number, "cost", (), units=units))
            result = told.get()
            if not isinstance(result, StepResult):
                raise RuntimeError("the lane has ended") from result
        if number >= WARM_UP:
            starts.append(result.start - submitted)
            works.append(result.duration)
    lane.close()
    return starts, works


def _no_burial(plan: StepPlan, error: BaseException) -> StepResult:
    raise error


def _micro(seconds: Sequence[float]) -> dict[str, float]:
    """Microseconds."""
    return {
        name: 1e6 * percentile(seconds, q)
        for name, q in (("p50", 50), ("p90", 90), ("p99", 99), ("max", 100))
    }


Engine = Callable[..., AbstractContextManager[LLM]]


def scaling(engine: Engine, *, is_quick: bool) -> dict[str, Any]:
    """Each phase alone on half of the cores and on all, and both at once on half each: why lanes gain, if they do.

    If both at once take as long as each alone on its half, lanes do not disturb each other, and what they gain is what
    a phase loses when it has all cores. If they take longer, they share something else: memory, or caches.
    """
    cores = usable_cores()
    if cores < 2:
        return {"rows": [{"what": "one core"}], "words": "One core: there is nothing to divide."}
    half, length = cores // 2, 256 if is_quick else 768
    decode: dict[str, float] = {}
    prefill: dict[str, float] = {}
    for name, threads in (("half", half), ("all", cores)):
        with engine(threads=threads, phases="mixed") as llm:
            decode[name] = _times(llm, 4, 0, 24 if is_quick else 64, length)[0]
            prefill[name] = _times(llm, 0, 2 if is_quick else 4, 0, length)[1]
    with engine(threads=cores, phases="static:50/50") as llm:
        decode["both"], prefill["both"] = _times(llm, 4, 2 if is_quick else 4, 0, length)
    rows = [
        {"what": "decode step, 4 streams: seconds", **decode},
        {"what": f"prompt of {length} tokens: seconds", **prefill},
    ]
    gains = [phase["half"] / phase["all"] for phase in (decode, prefill)]
    disturbed = [phase["both"] / phase["half"] for phase in (decode, prefill)]
    work = decode["all"] / decode["both"] + prefill["all"] / prefill["both"]
    words = (
        f"All {cores} cores instead of {half} make decode {gains[0]:.2f} times and prefill {gains[1]:.2f} times as "
        f"fast. Beside each other, steps of decode take {disturbed[0]:.2f} times and prompts {disturbed[1]:.2f} times "
        f"as long as alone on as many cores. Lanes do {work:.2f} times the work of one phase after the other."
    )
    return {
        "rows": rows,
        "words": words,
        "decode_speedup": gains[0],
        "prefill_speedup": gains[1],
        "decode_disturbed": disturbed[0],
        "prefill_disturbed": disturbed[1],
        "work": work,
    }


def _times(llm: LLM, streams: int, prompts: int, tokens: int, length: int) -> tuple[float, float]:
    """Median seconds of a decode step and of a prompt; streams go on until the prompts are done, or have ``tokens``."""
    vocab_size, salt = llm.info.vocab_size, time.monotonic_ns() % 10_000_000

    def stream(number: int) -> Client:
        kind, count = (STREAM, 2000) if prompts else ("counted", tokens)
        yield Ask(0.0, random_prompt(64, vocab_size, salt + number), count, kind)

    def one_after_the_other() -> Client:
        for number in range(prompts):
            yield Ask(
                0.0 if number or not streams else 1.0,
                random_prompt(length, vocab_size, salt - 1 - number),
                1,
                "p",
            )

    clients = [stream(number) for number in range(streams)]
    course = play(llm, [*clients, one_after_the_other()] if prompts else clients)
    firsts = [asked.ttft for asked in course.asked if asked.kind == "p" and asked.ttft is not None]
    begin = min((asked.sent for asked in course.asked if asked.kind == "p"), default=0.0)
    gaps = [gap for asked in course.asked for at, gap in asked.tbts if at > begin and asked.kind != "p"]
    nothing = float("nan")
    return percentile(gaps, 50) if gaps else nothing, percentile(firsts, 50) if firsts else nothing
