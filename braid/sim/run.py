"""A trace of requests through the production scheduler and loop, on a virtual clock."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from braid.core.errors import BraidError
from braid.core.metrics import RequestTimes
from braid.core.request import Delta, Request
from braid.core.sampling import SamplingParams
from braid.sched.config import Policies, SchedulerConfig
from braid.sched.loop import Loop
from braid.sched.scheduler import Scheduler, SchedulerStats
from braid.sim.executor import SimExecutor, StepTime


class Arrival(NamedTuple):
    """One request of a trace. ``prompt`` is token ids, or a length: then nobody shares its prefix."""

    time: float
    prompt: int | Sequence[int]
    num_output_tokens: int
    priority: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class SimReport:
    """What came of a trace, in its order. ``refused`` maps request ids to why the scheduler did not take
    them.
    """

    requests: tuple[RequestTimes, ...]
    refused: dict[str, str]
    stats: SchedulerStats
    seconds: float
    """Virtual time of the last event."""
    num_extrapolated: int
    """Steps whose time lies outside the cost tables."""


def simulate(
    arrivals: Sequence[Arrival], config: SchedulerConfig, cost: StepTime, policies: Policies | None = None
) -> SimReport:
    """Run a trace to its end. Equal arguments give equal reports, byte for byte.

    Output lengths are the trace's; what an executor would sample does not matter.
    """
    return _Simulation(arrivals, Scheduler(config, policies), SimExecutor(cost)).run()


class _Simulation:
    def __init__(self, arrivals: Sequence[Arrival], scheduler: Scheduler, executor: SimExecutor) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._loop = Loop(scheduler, executor, self._take)
        self._requests = [_request(index, arrival) for index, arrival in enumerate(arrivals)]
        self._times: dict[str, array[float]] = {r.request_id: array("d") for r in self._requests}
        self._refused: dict[str, str] = {}
        for request in self._requests:
            executor.at(request.arrival_time, partial(self._arrive, request))

    def run(self) -> SimReport:
        self._loop.run(lambda: self._loop.is_idle and not self._executor.has_events)
        self._scheduler.check_integrity()
        served = [r for r in self._requests if r.request_id not in self._refused]
        return SimReport(
            requests=tuple(self._request_times(request) for request in served),
            refused=self._refused,
            stats=self._scheduler.stats(),
            seconds=self._executor.now(),
            num_extrapolated=self._executor.num_extrapolated,
        )

    def _arrive(self, request: Request) -> None:
        added = self._loop.add(request)
        added.add_done_callback(lambda future: self._note_refusal(request.request_id, future))

    def _note_refusal(self, request_id: str, future: Future[None]) -> None:
        error = future.exception()
        if isinstance(error, BraidError):
            self._refused[request_id] = str(error)
        elif error is not None:
            raise error

    def _take(self, deltas: list[Delta]) -> None:
        now = self._executor.now()
        for delta in deltas:
            self._times[delta.request_id].append(now)

    def _request_times(self, request: Request) -> RequestTimes:
        assert request.first_scheduled_time is not None, "an ended request was scheduled"
        return RequestTimes(
            request_id=request.request_id,
            arrival=request.arrival_time,
            first_scheduled=request.first_scheduled_time,
            token_times=self._times[request.request_id],
        )


def _request(index: int, arrival: Arrival) -> Request:
    prompt = arrival.prompt
    token_ids = (index,) * prompt if isinstance(prompt, int) else tuple(prompt)
    return Request(
        request_id=str(index),
        prompt_token_ids=token_ids,
        params=SamplingParams(temperature=0, max_tokens=arrival.num_output_tokens, ignore_eos=True),
        arrival_time=arrival.time,
        seed=index,
        priority=arrival.priority,
    )
