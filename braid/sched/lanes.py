"""How the lanes that compute share the machine: what the policy is asked, who may start on how much, what is in flight.

Pure bookkeeping over the decisions of ``braid.policy.phases``; which requests a step holds is the scheduler's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import NamedTuple

from braid.core.step import Layers, StepPlan, StepResult
from braid.policy.agents.costs import attended_pairs
from braid.policy.phases.policy import Decided, Demand, Division, Phases, StepSeen
from braid.sched.config import COMPUTING, DECODE, MIXED, PREFILL
from braid.sched.entry import Entry
from braid.sched.queue import WaitingQueue


class Flight(NamedTuple):
    """A step that was planned and has not come back."""

    plan: StepPlan
    entries: list[Entry]


class Lanes:
    """The lanes that compute.

    Args:
        num_units: of the machine: cores, or groups of SMs.
        max_num_batched_tokens: of a step.
        decided: hears of every change.
    """

    def __init__(
        self,
        phases: Phases,
        num_units: int,
        max_num_batched_tokens: int,
        decided: Callable[[Decided], None] | None = None,
    ) -> None:
        self.phases, self._num_units, self._decided = phases, num_units, decided
        self._budget = max_num_batched_tokens
        self._told: tuple[bool, int, int] | None = None
        """The shape that ``decided`` has heard of last."""
        self.flights: dict[str, Flight] = {}
        self._shared: set[str] = set()
        """Lanes in flight beside which another one computed."""
        self._asked: tuple[Demand, Division] | None = None
        self.division: Division | None = None
        """The latest."""

    def ask_again(self) -> None:
        """Something has changed: the next plan begins with a new decision."""
        self._asked = None

    def divide(self, running: Sequence[Entry], waiting: WaitingQueue, now: float) -> tuple[Demand, Division]:
        """One division for all lanes that are planned together: else each could leave the work to another."""
        if self._asked is None:
            demand = demand_of(running, waiting, self._num_units, self._budget, now)
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
        in_use = {name: self.flights[name].plan.units for name in COMPUTING if name in self.flights}
        everything = self._num_units
        if lane == MIXED:
            return everything if division.is_mixed and not in_use else 0
        if MIXED in in_use:
            return 0
        if lane == PREFILL:
            if division.is_mixed or in_use.get(DECODE, 0) > division.decode_units:
                return 0
            return division.prefill_units if demand.num_decodes else everything
        if PREFILL not in in_use:
            # With one step for both, decodes go alone only while a last step of prompts is awaited.
            return 0 if division.is_mixed else everything
        return division.decode_units if in_use[PREFILL] <= division.prefill_units else 0

    def launch(self, plan: StepPlan, entries: list[Entry]) -> None:
        if self.flights:
            self._shared.update(self.flights, (plan.lane,))
        self.flights[plan.lane] = Flight(plan, entries)

    def land(self, result: StepResult) -> tuple[Flight, bool]:
        """The step that has come back, and whether another lane computed meanwhile."""
        self._asked = None
        flight = self.flights.pop(result.lane)
        is_shared = result.lane in self._shared
        self._shared.discard(result.lane)
        assert flight.plan.step_id == result.step_id, f"step {result.step_id} is not the one in flight"
        return flight, is_shared


def demand_of(
    running: Sequence[Entry], waiting: WaitingQueue, num_units: int, budget: int, now: float
) -> Demand:
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
        num_units,
        num_decodes,
        num_context,
        num_prefill,
        0 if first is None else first.num_remaining,
        0 if first is None else first.request.num_computed_tokens,
        now - oldest,
        tbt_s,
        ttft_s,
        budget,
    )


def next_layers(grants: Sequence[tuple[Entry, int]], wanted: int, num: int) -> Layers | None:
    """The layers, of ``num``, of all chunks among ``grants``; None for all. Where nothing is decoded meanwhile there is
    nobody to compute a few at a time for."""
    first = next((entry.begun.num_layers for entry, _ in grants if entry.begun is not None), 0)
    is_alone = not any(entry.request.num_computed_tokens and entry.num_remaining == 1 for entry, _ in grants)
    end = num if is_alone or not wanted else min(num, first + wanted)
    return None if end - first == num else Layers(first, end, num)


def step_seen(plan: StepPlan, seconds: float, *, is_shared: bool) -> StepSeen:
    """A step that is over, as policies see it. Of chunks whose layers are computed over several steps, these steps
    together have had the tokens."""
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
        is_shared,
    )
