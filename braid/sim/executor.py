"""The twin of the real executor: predicted durations on a virtual clock. The scheduler cannot tell the
difference.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple, Protocol

from braid.core.errors import BraidError
from braid.core.request import TokenLogprobs
from braid.core.step import Move, SampledToken, SampleSpec, ScoreSpec, StepPlan, StepResult, Work
from braid.policy.cost import Estimate
from braid.sched.config import COMPUTING, MIXED, TIER
from braid.sim.lanes import Computing, LaneTime

VOCAB_SIZE = 251


class StepTime(Protocol):
    """Predicts how long a step takes; ``braid.policy.cost.StepCost`` is one."""

    def step(self, works: Iterable[Work]) -> Estimate: ...


@dataclass(frozen=True, slots=True)
class FixedTime:
    """Every step takes equally long: for schedules, where only the order matters."""

    seconds: float = 1.0

    def step(self, works: Iterable[Work]) -> Estimate:
        return Estimate(self.seconds)


class TierTime(NamedTuple):
    """How long copies between the device and the tiers below it take: seconds per step, and per block of each tier."""

    latency: float
    host: float
    disk: float = 0.0

    def step(self, moves: Iterable[Move]) -> float:
        return self.latency + sum(self.host if move.tier == "host" else self.disk for move in moves)


class SimulationEndError(BraidError):
    """The simulation waits although nothing will ever happen again."""


class _Event(NamedTuple):
    """Ordered by (time, kind, sequence), so that equal input gives equal output."""

    time: float
    kind: int
    sequence: int
    result: StepResult | None
    run: Callable[[], None] | None


STEP_ENDS, EXTERNAL = 0, 1


def pseudo_token(spec: SampleSpec) -> int:
    """A stand-in for the sampler: like a real one, a pure function of the request's seed and position."""
    return (spec.seed * 7_919 + len(spec.token_ids) * 104_729 + 17) % VOCAB_SIZE


def pseudo_scores(spec: ScoreSpec) -> list[TokenLogprobs]:
    """A stand-in for the model's view of known tokens: all tokens are equally likely."""
    return [TokenLogprobs(token, -math.log(VOCAB_SIZE), 1, ()) for token in spec.token_ids]


def price(cost: StepTime, works: Sequence[Work]) -> Estimate:
    """Of one step. Works with layers run after the others and take their layers' share of a step of their own, without
    logits but after the last layer."""
    parts = [work for work in works if work.layers is not None]
    if not parts:
        return cost.step(works)
    bare = cost.step([work._replace(sample=None) for work in parts])
    layers = parts[0].layers
    assert layers is not None, "a part without layers"
    seconds = cost.step(parts).seconds - bare.seconds + layers.share * bare.seconds
    total = Estimate(seconds, bare.extrapolated)
    whole = [work for work in works if work.layers is None]
    return total.plus(cost.step(whole)) if whole else total


class SimExecutor:
    """An executor whose clock moves only in ``wait``, to the next event.

    Steps of different lanes overlap; each takes what the units it was given and the company it has make of its time.

    Args:
        cost: of a step alone on the whole machine.
        tiers: makes it have the lane ``tier``, beside the others; what is moved is nothing.
        lanes: makes it have the lanes ``prefill`` and ``decode``, which share the machine.
    """

    def __init__(
        self,
        cost: StepTime,
        token: Callable[[SampleSpec], int] = pseudo_token,
        tiers: TierTime | None = None,
        lanes: LaneTime | None = None,
    ) -> None:
        self.lanes = ((MIXED,) if lanes is None else COMPUTING) + (() if tiers is None else (TIER,))
        self._tiers = tiers
        self._lanes = lanes
        self._computing: dict[str, Computing] = {}
        self._cost = cost
        self._token = token
        self._clock = 0.0
        self._events: list[_Event] = []
        self._sequence = count()
        self._woken = False
        self.num_extrapolated = 0
        """Steps whose predicted time lies outside the cost tables."""

    @property
    def has_events(self) -> bool:
        """Whether anything is still to happen by itself."""
        return bool(self._events or self._computing)

    def at(self, time: float, run: Callable[[], None]) -> None:
        """Have ``run()`` called when the clock reaches ``time`` (an arrival, the end of a tool call)."""
        if time < self._clock:
            raise ValueError(f"time must be at least now ({self._clock}), got {time}")
        self._push(time, EXTERNAL, None, run)

    def now(self) -> float:
        return self._clock

    def submit(self, plan: StepPlan) -> None:
        if plan.lane == TIER:
            assert self._tiers is not None, "there is no tier below the device"
            seconds = self._tiers.step(plan.moves)
            moved = StepResult(plan.step_id, plan.lane, self._clock, seconds, {})
            self._push(self._clock + seconds, STEP_ENDS, moved, None)
            return
        estimate = price(self._cost, plan.works)
        self.num_extrapolated += estimate.extrapolated
        tokens = {
            work.request_id: SampledToken(self._token(work.sample))
            for work in plan.works
            if work.sample is not None
        }
        scores = {w.request_id: pseudo_scores(w.score) for w in plan.works if w.score is not None}
        pooled = {w.request_id: [float(sum(w.token_ids))] for w in plan.works if w.pooling is not None}
        result = StepResult(plan.step_id, plan.lane, self._clock, 0.0, tokens, scores=scores, pooled=pooled)
        units = plan.units or (1 if self._lanes is None else self._lanes.num_units)
        step = Computing(plan, result, units, next(self._sequence), estimate.seconds, self._clock)
        self._computing[plan.lane] = step
        self._pace()

    def reshare(self, lane: str, units: int) -> None:
        self._computing[lane].units = units
        self._pace()

    def _pace(self) -> None:
        """Who computes has changed, so how fast they do may have, too."""
        units = {lane: step.units for lane, step in self._computing.items()}
        for lane, step in self._computing.items():
            step.pace(1.0 if self._lanes is None else self._lanes.slowness(lane, units), self._clock)

    def wait(self, until: float | None) -> list[StepResult]:
        """Jump to the next event, at most to ``until``.

        Raises:
            SimulationEndError: there is no event and no ``until``.
        """
        if self._woken:
            self._woken = False
            return []
        if not self.has_events and until is None:
            raise SimulationEndError("nothing is in flight and nothing will arrive")
        step = min(self._computing.values(), key=lambda step: (step.end, step.sequence), default=None)
        ahead = self._events[0][:3] if self._events else (math.inf, EXTERNAL, 0)
        first = ahead if step is None else min(ahead, (step.end, STEP_ENDS, step.sequence))
        if until is not None and first[0] > until:
            self._clock = max(self._clock, until)
            return []
        self._clock = first[0]
        if step is not None and first is not ahead:
            del self._computing[step.plan.lane]
            self._pace()
            return [step.ended()]
        event = heapq.heappop(self._events)
        if event.run is not None:
            event.run()
        return [] if event.result is None else [event.result]

    def wake(self) -> None:
        self._woken = True

    def _push(
        self, time: float, kind: int, result: StepResult | None, run: Callable[[], None] | None
    ) -> None:
        heapq.heappush(self._events, _Event(time, kind, next(self._sequence), result, run))
