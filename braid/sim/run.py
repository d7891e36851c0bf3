"""A trace of requests through the production scheduler and loop, on a virtual clock."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from braid.core.errors import BraidError
from braid.core.metrics import RequestTimes
from braid.core.program import ProgramRef, RetainIntent
from braid.core.request import Delta, Request
from braid.core.sampling import SamplingParams
from braid.core.step import SampleSpec
from braid.policy.agents.program import Finish
from braid.sched.config import Policies, SchedulerConfig
from braid.sched.loop import Loop
from braid.sched.observer import Observer
from braid.sched.scheduler import Scheduler, SchedulerStats
from braid.sim.executor import SimExecutor, StepTime, TierTime, pseudo_token
from braid.sim.lanes import LaneTime

END_TOKEN = 2**32 - 1
"""No other token of a simulation is equal to it."""


class Arrival(NamedTuple):
    """One request of a trace.

    Args:
        time: when it arrives; ignored where it waits for others.
        prompt: token ids, a function that makes them on arrival (so that a long trace does not lie in memory), or a
            length: then nobody shares its prefix.
        reply: what it answers, its first tokens at least (or a function that gives them on arrival); made up beyond
            them. The next turn's prompt may hold it.
        after: places in the trace of the requests that must have ended before this one arrives, ``delay`` seconds
            after the last of them (a program's next turn behind its tool call). They lie before it in the trace.
            One that was refused has ended, too.
        ending: how its answer ends and which tool it calls: its last token is an end token, and the rest is told to the
            scheduler as whoever reads the answer would. Without it an answer ends by its length.
        intent: what its client wishes for the time after it.
    """

    time: float
    prompt: int | Sequence[int] | Callable[[], Sequence[int]]
    num_output_tokens: int
    priority: int = 0
    after: tuple[int, ...] = ()
    delay: float = 0.0
    reply: Sequence[int] | Callable[[], Sequence[int]] = ()
    program: ProgramRef | None = None
    ending: tuple[Finish, str | None] | None = None
    intent: RetainIntent | None = None


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
    cached: tuple[int, ...]
    """Prompt tokens that each of ``requests`` found in the prefix cache."""
    num_extrapolated: int
    """Steps whose time lies outside the cost tables."""


def simulate(
    arrivals: Sequence[Arrival],
    config: SchedulerConfig,
    cost: StepTime,
    policies: Policies | None = None,
    *,
    tiers: TierTime | None = None,
    lanes: LaneTime | None = None,
    observer: Observer | None = None,
) -> SimReport:
    """Run a trace to its end. Equal arguments give equal reports, byte for byte.

    Output lengths are the trace's; what an executor would sample does not matter. A turn that waits for another
    arrives when that one has ended here, never when it did elsewhere. ``tiers`` says how fast
    those below the device are, where the config has any; ``lanes`` how those of prefill and decode share the machine,
    where a policy may want them; ``observer`` hears of every turn.

    Raises:
        ValueError: a request waits for one that is not before it.
    """
    return _Simulation(arrivals, config, cost, policies, tiers, lanes, observer).run()


class _Simulation:
    def __init__(
        self,
        arrivals: Sequence[Arrival],
        config: SchedulerConfig,
        cost: StepTime,
        policies: Policies | None,
        tiers: TierTime | None,
        lanes: LaneTime | None,
        observer: Observer | None,
    ) -> None:
        self._arrivals = arrivals
        self._scheduler = Scheduler(config, policies, observer=observer)
        self._executor = SimExecutor(cost, self._token, tiers, lanes)
        self._loop = Loop(self._scheduler, self._executor, self._take)
        self._alive: dict[str, Request] = {}
        self._token_times: dict[str, array[float]] = {}
        self._replies: dict[str, Sequence[int]] = {}
        self._times: dict[int, RequestTimes] = {}
        self._cached: dict[int, int] = {}
        self._refused: dict[str, str] = {}
        self._missing = [len(set(arrival.after)) for arrival in arrivals]
        self._followers: dict[int, list[int]] = {}
        for index, arrival in enumerate(arrivals):
            self._expect(index, arrival)

    def _expect(self, index: int, arrival: Arrival) -> None:
        if not arrival.after:
            self._executor.at(arrival.time, partial(self._arrive, index))
        for before in set(arrival.after):
            if not 0 <= before < index:
                raise ValueError(f"request {index} waits for {before}, which is not before it in the trace")
            self._followers.setdefault(before, []).append(index)

    def run(self) -> SimReport:
        self._loop.run(lambda: self._loop.is_idle and not self._executor.has_events)
        self._scheduler.check_integrity()
        return SimReport(
            requests=tuple(self._times[index] for index in sorted(self._times)),
            cached=tuple(self._cached[index] for index in sorted(self._times)),
            refused=self._refused,
            stats=self._scheduler.stats(),
            seconds=self._executor.now(),
            num_extrapolated=self._executor.num_extrapolated,
        )

    def _arrive(self, index: int) -> None:
        arrival = self._arrivals[index]
        request = _request(index, arrival, self._executor.now())
        self._alive[request.request_id] = request
        self._replies[request.request_id] = arrival.reply() if callable(arrival.reply) else arrival.reply
        self._token_times[request.request_id] = array("d")
        self._loop.add(request).add_done_callback(partial(self._note_refusal, request.request_id))

    def _note_refusal(self, request_id: str, future: Future[None]) -> None:
        error = future.exception()
        if isinstance(error, BraidError):
            self._refused[request_id] = str(error)
            self._release(request_id)
        elif error is not None:
            raise error

    def _token(self, spec: SampleSpec) -> int:
        """The trace's own answer; a request's seed is its place in the trace."""
        position = len(spec.token_ids) - spec.num_prompt_tokens
        arrival = self._arrivals[spec.seed]
        if arrival.ending is not None and position == arrival.num_output_tokens - 1:
            return END_TOKEN
        reply = self._replies[str(spec.seed)]
        return reply[position] if position < len(reply) else pseudo_token(spec)

    def _take(self, deltas: list[Delta]) -> None:
        now = self._executor.now()
        for delta in deltas:
            self._token_times[delta.request_id].append(now)
            if delta.finish_reason is not None:
                self._end(delta.request_id)

    def _end(self, request_id: str) -> None:
        request = self._alive[request_id]
        assert request.first_scheduled_time is not None, "an ended request was scheduled"
        self._times[int(request_id)] = RequestTimes(
            request_id=request_id,
            arrival=request.arrival_time,
            first_scheduled=request.first_scheduled_time,
            token_times=self._token_times[request_id],
        )
        self._cached[int(request_id)] = request.num_cached_tokens
        self._tell(int(request_id))
        self._release(request_id)

    def _tell(self, index: int) -> None:
        ref, ending = self._arrivals[index].program, self._arrivals[index].ending
        if ref is not None and ending is not None:
            self._loop.post(lambda scheduler, now: scheduler.told(ref, *ending, now))

    def _release(self, request_id: str) -> None:
        """Those who waited for this one alone arrive after their gap."""
        del self._alive[request_id], self._replies[request_id], self._token_times[request_id]
        for follower in self._followers.pop(int(request_id), ()):
            self._missing[follower] -= 1
            if not self._missing[follower]:
                later = self._executor.now() + self._arrivals[follower].delay
                self._executor.at(later, partial(self._arrive, follower))


def _request(index: int, arrival: Arrival, now: float) -> Request:
    prompt = arrival.prompt() if callable(arrival.prompt) else arrival.prompt
    token_ids = (index,) * prompt if isinstance(prompt, int) else tuple(prompt)
    return Request(
        request_id=str(index),
        prompt_token_ids=token_ids,
        params=SamplingParams(
            temperature=0, max_tokens=arrival.num_output_tokens, ignore_eos=arrival.ending is None
        ),
        arrival_time=now,
        eos_token_ids=frozenset() if arrival.ending is None else frozenset((END_TOKEN,)),
        seed=index,
        priority=arrival.priority,
        program=arrival.program,
        intent=arrival.intent,
    )
