"""How the lanes that compute share the machine: what the policy is asked, who may start on how much, what is in flight.

Pure bookkeeping over the decisions of ``braid.policy.phases``; which requests a step holds is the scheduler's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from braid.core.step import Layers, StepPlan, StepResult
from braid.policy.agents.costs import attended_pairs
from braid.policy.phases.policy import Decided, Demand, Division, Phases, StepSeen
from braid.sched.config import DECODE, MIXED, PREFILL, SchedulerConfig
from braid.sched.entry import Entry
from braid.sched.queue import WaitingQueue


@dataclass(slots=True)
class Flight:
    """A step that was planned and has not come back.

    Args:
        units: that it computes on now.
        is_shared: whether another lane has computed meanwhile.
        is_reshared: whether its units have changed since it began.
    """

    plan: StepPlan
    entries: list[Entry]
    units: int
    is_shared: bool = False
    is_reshared: bool = False


class Lanes:
    """The lanes that compute.

    Args:
        decided: hears of every change.
    """

    def __init__(
        self,
        phases: Phases,
        config: SchedulerConfig,
        decided: Callable[[Decided], None] | None = None,
    ) -> None:
        self.phases, self._decided = phases, decided
        self._config, self._num_units = config, config.num_units
        self._told: tuple[bool, int, int] | None = None
        """The shape that ``decided`` has heard of last."""
        self.flights: dict[str, Flight] = {}
        self._asked: tuple[Demand, Division] | None = None
        self.division: Division | None = None
        """The latest."""

    def ask_again(self) -> None:
        """Something has changed: the next plan begins with a new decision."""
        self._asked = None

    def divide(self, running: Sequence[Entry], waiting: WaitingQueue, now: float) -> tuple[Demand, Division]:
        """One division for all lanes that are planned together: else each could leave the work to another."""
        if self._asked is None:
            demand = demand_of(running, waiting, self._config, now)
            self.division = self.phases.divide(demand)
            self._asked = demand, self.division
            self._tell(demand, self.division)
        return self._asked

    def _tell(self, demand: Demand, division: Division) -> None:
        shape = (division.is_mixed, division.prefill_units, division.decode_units)
        if self._decided is not None and demand.num_prefill and demand.num_decodes and shape != self._told:
            self._told = shape
            self._decided(Decided(demand, division))

    def units(self, lane: str, division: Division, demand: Demand) -> int:
        """How much of the machine a free lane may have now; 0 if it is to wait."""
        in_use = {name: flight.units for name, flight in self.flights.items()}
        everything = self._num_units
        if lane == MIXED:
            return everything if division.is_mixed and not in_use else 0
        if MIXED in in_use:
            return 0
        if lane == PREFILL:
            if division.is_mixed or self._is_more(in_use.get(DECODE, 0), division.decode_units):
                return 0
            return division.prefill_units if demand.num_decodes else everything
        if PREFILL not in in_use:
            # With one step for both, decodes go alone only while a last step of prompts is awaited.
            return 0 if division.is_mixed else everything
        return 0 if self._is_more(in_use[PREFILL], division.prefill_units) else division.decode_units

    def _is_more(self, units: int, wanted: int) -> bool:
        """Whether a lane in flight has more than it should and cannot give it up before its step ends."""
        return units > wanted and not self._config.can_reshare

    def launch(self, plan: StepPlan, entries: list[Entry]) -> None:
        for other in self.flights.values():
            other.is_shared = True
        self.flights[plan.lane] = Flight(plan, entries, plan.units, bool(self.flights))

    def land(self, result: StepResult) -> Flight:
        """The step that has come back."""
        self._asked = None
        flight = self.flights.pop(result.lane)
        assert flight.plan.step_id == result.step_id, f"step {result.step_id} is not the one in flight"
        return flight

    def reshare(self) -> list[tuple[str, int]]:
        """Lanes in flight that should have another number of units from now on: that of the latest division, and
        everything for a phase that is alone."""
        if not self._config.can_reshare or self._asked is None:
            return []
        demand, division = self._asked
        both = PREFILL in self.flights and DECODE in self.flights
        found: list[tuple[str, int]] = []
        for lane, others, units in (
            (PREFILL, demand.num_decodes, division.prefill_units),
            (DECODE, demand.num_prefill, division.decode_units),
        ):
            flight = self.flights.get(lane)
            if flight is None:
                continue
            if division.is_mixed:  # the last steps of lanes that were given up stay as they are
                units = flight.units
            if not both and not others:
                units = self._num_units
            if units != flight.units:
                flight.units, flight.is_reshared = units, True
                found.append((lane, units))
        return found


def demand_of(running: Sequence[Entry], waiting: WaitingQueue, config: SchedulerConfig, now: float) -> Demand:
    """What there is to compute; see there."""
    num_decodes = num_context = num_prefill = 0
    oldest = now
    tbt_s = ttft_s = inf
    first: Entry | None = None
    for entry in running:
        request = entry.request
        if entry.num_remaining == 1 and request.num_computed_tokens:
            num_decodes += 1
            num_context += request.num_computed_tokens
            tbt_s = min(tbt_s, request.slo.tbt_s)
        else:
            first = first or entry
            num_prefill += entry.num_remaining
        if request.first_token_time is None:
            oldest = min(oldest, request.arrival_time)
            ttft_s = min(ttft_s, request.slo.ttft_s)
    num_prefill += waiting.num_tokens
    if first is None and waiting:
        first = waiting.heads()[0]
    return Demand(
        now,
        config.num_units,
        num_decodes,
        num_context,
        num_prefill,
        0 if first is None else first.num_remaining,
        0 if first is None else first.request.num_computed_tokens,
        now - oldest,
        tbt_s,
        ttft_s,
        config.max_num_batched_tokens,
        config.can_reshare,
    )


def next_layers(grants: Sequence[tuple[Entry, int]], wanted: int, num: int) -> Layers | None:
    """The layers, of ``num``, of all chunks among ``grants``; None for all. Where nothing is decoded meanwhile there is
    nobody to compute a few at a time for."""
    first = next((entry.begun.num_layers for entry, _ in grants if entry.begun is not None), 0)
    is_alone = not any(entry.request.num_computed_tokens and entry.num_remaining == 1 for entry, _ in grants)
    end = num if is_alone or not wanted else min(num, first + wanted)
    return None if end - first == num else Layers(first, end, num)


def step_seen(flight: Flight, seconds: float) -> StepSeen:
    """A step that is over, as policies see it. Of chunks whose layers are computed over several steps, these steps
    together have had the tokens."""
    plan = flight.plan
    num_tokens = num_chunks = 0
    num_pairs = 0.0
    for work in plan.works:
        if work.is_decode:
            continue
        count, layers = len(work.token_ids), work.layers or Layers(0, 1, 1)
        num_tokens += count * layers.end // layers.num - count * layers.first // layers.num
        num_pairs += layers.share * attended_pairs(count, work.start)
        num_chunks += 1
    return StepSeen(
        plan.lane,
        plan.units,
        num_tokens,
        num_pairs,
        len(plan.works) - num_chunks,
        sum(work.start for work in plan.works if work.is_decode),
        seconds,
        flight.is_shared,
        flight.is_reshared,
    )
