"""Steps of a model whose experts do not all fit into fast memory, in virtual time.

The decisions are those of the server: the cache of experts, the table of slots, the plan of a layer, the prefetcher.
What is not simulated: batches that come and go, attention's growing KV, and kernels that share a side.

The course of a layer: everything but experts on the fast side; then the router has chosen, and the layer's experts are
computed and fetched as planned; while the link has nothing to do until the next layer's router has chosen, it fetches
early what is foreseen to pay, and, where misses are computed below without ever being fetched, those that are worth a
slot. The time that planning takes is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from math import isinf

from braid.core.experts import ExpertShape
from braid.policy.experts.catalog import STATIC, expert_cache
from braid.policy.experts.dispatch import landings, makespan, plan
from braid.policy.experts.policy import Activated, DispatchPlan, ExpertCache, ExpertTimes, Routed
from braid.policy.experts.prefetch import Prefetcher
from braid.policy.experts.slots import ABSENT, SlotTable
from braid.sim.experts.foretelling import Oracle
from braid.sim.experts.machines import LayerCosts
from braid.sim.experts.steps import Step


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What is switched on.

    Args:
        schedule: plans over both sides and the link; without it what is held is computed on the fast side and all else
            below, or, where nothing is computed below, after everything was fetched.
        prefetch: ``off``, ``on`` or ``auto``.
        policy, scope: of the cache; ``static`` never changes what is held.
    """

    schedule: bool = True
    prefetch: str = "on"
    policy: str = "mrs"
    scope: str = "global"


@dataclass(slots=True)
class Sums:
    """Of all steps of one phase. Seconds, and experts counted once per layer and step."""

    steps: int = 0
    rows: int = 0
    seconds: float = 0.0
    wanted: int = 0
    hits: int = 0
    """They were held."""
    slow: int = 0
    """They were computed below."""
    fetched: int = 0
    early: int = 0
    """Transfers that nobody had demanded, and that began in this phase."""
    fast_busy_s: float = 0.0
    slow_busy_s: float = 0.0
    by_step: list[float] = field(default_factory=list)


class _EarlyBuffer:
    """A few slots for what is fetched early where the others never change; as a ``Residency`` and a holder."""

    def __init__(self, table: SlotTable, size: int) -> None:
        self._table = table
        self._size = size
        self.held: set[int] = set()

    @property
    def shape(self) -> ExpertShape:
        return self._table.shape

    @property
    def cache(self) -> ExpertCache:
        return self._table.cache

    def slot_of(self, expert: int) -> int:
        return 0 if expert in self.held else self._table.slot_of(expert)

    def has_room(self, expert: int) -> bool:
        return len(self.held) < self._size

    def victim_of(self, expert: int) -> int | None:
        return None


class Timeline:
    """Args:
    num_slots: of all layers together.
    placement: who is held at first.
    """

    def __init__(
        self,
        shape: ExpertShape,
        costs: LayerCosts,
        num_slots: int,
        parts: Parts,
        placement: Collection[int] = (),
        *,
        seed: int = 0,
    ) -> None:
        self.now = 0.0
        self.sums = {"prefill": Sums(), "decode": Sums()}
        self._shape, self._costs, self._parts = shape, costs, parts
        self._is_static = parts.policy == STATIC
        buffer = min(shape.top_k, num_slots) if self._is_static and parts.prefetch != "off" else 0
        held = list(placement)[: num_slots - buffer] if self._is_static else placement
        cache = expert_cache(
            parts.policy, shape, scope=parts.scope, experts=held if self._is_static else None
        )
        self._table = SlotTable(shape, num_slots - buffer, cache)
        self._buffer = _EarlyBuffer(self._table, buffer)
        self._prefetcher = Prefetcher(self._buffer if self._is_static else self._table, mode=parts.prefetch)
        self._oracle = Oracle(shape, seed=seed)
        self._link_free_s = 0.0
        self._asked_s = 0.0
        """When the latest router had chosen."""
        self._landing: dict[int, float] = {}
        self._missed: list[int] = []
        """Of the latest layer, computed below; the heaviest last."""
        for expert in held:
            if self._table.prefetch(expert) is not None:
                self._table.loaded(expert)

    @property
    def table(self) -> SlotTable:
        return self._table

    @property
    def prefetcher(self) -> Prefetcher:
        return self._prefetcher

    def run(self, steps: Iterable[Step]) -> None:
        for step in steps:
            self._step(step)

    def _step(self, step: Step) -> None:
        begin = self.now
        sums = self.sums["prefill" if step.is_prefill else "decode"]
        for place, routed in enumerate(step.layers):
            self._layer(routed, step, place, sums)
        seconds = self.now - begin
        self._prefetcher.step_took(seconds, step.rows, is_prefill=step.is_prefill)
        sums.steps += 1
        sums.rows += step.rows
        sums.seconds += seconds
        sums.by_step.append(seconds)

    def _layer(self, routed: Routed, step: Step, place: int, sums: Sums) -> None:
        costs = self._costs
        dense_s = costs.dense_s + costs.dense_row_s * step.rows
        predicts = self._prefetcher.trial.is_on if step.is_prefill else self._prefetcher.is_on
        if predicts:
            dense_s += costs.predict_s * len(self._prefetcher.distances)
        chosen_s = self.now + dense_s
        sums.early += self._use_idle_link(chosen_s)
        self._land(chosen_s)
        needed = [
            Activated(expert, load, self._ready_s(expert, chosen_s)) for expert, load in routed.loads.items()
        ]
        backlog_s = max(0.0, self._link_free_s - chosen_s)
        found = self._plan(needed, backlog_s)
        self._prefetcher.routed(routed.layer, routed.loads, sum(one.ready_s is None for one in needed))
        demand = self._table.use(routed, frozenset(found.fetch))
        self._count(needed, found, sums)
        if found.fetch:
            ends = landings(needed, costs.times, found, backlog_s=backlog_s)
            self._link_free_s = chosen_s + max(ends.values())
        self.now = chosen_s + found.makespan_s
        self._asked_s = chosen_s
        for load in demand.loads:
            self._table.loaded(load.expert)
        self._land(self.now)
        self._table.release(routed.loads)
        self._forget(routed.layer)
        # A prompt needs the layers to come as much as this one: nobody goes there for what it has missed.
        missed = sorted(() if step.is_prefill else found.slow, key=lambda expert: routed.loads[expert])
        self._missed = [expert for expert in missed if self._table.slot_of(expert) == ABSENT]
        if predicts:
            self._foretell(step, place)

    def _ready_s(self, expert: int, now: float) -> float | None:
        if expert in self._landing:
            return self._landing[expert] - now
        if expert in self._buffer.held or self._table.slots[expert] != ABSENT:
            return 0.0
        return None

    def _plan(self, needed: list[Activated], backlog_s: float) -> DispatchPlan:
        times = self._costs.times
        if self._parts.schedule:
            return plan(needed, times, backlog_s=backlog_s)
        held = tuple(one.expert for one in needed if one.ready_s == 0)
        others = tuple(one.expert for one in needed if one.ready_s != 0)
        if isinf(times.slow_s):
            return self._one_after_the_other(needed, held + others, backlog_s)
        seconds = makespan(needed, times, fast=held, slow=others, fetch=(), backlog_s=backlog_s)
        return DispatchPlan(held, others, (), seconds, "all-slow")

    def _one_after_the_other(
        self, needed: list[Activated], fast: tuple[int, ...], backlog_s: float
    ) -> DispatchPlan:
        """Nothing is computed before everything is there."""
        times = self._costs.times
        fetch = tuple(one.expert for one in needed if one.ready_s is None)
        there_s = max([backlog_s if fetch else 0.0, *(one.ready_s or 0.0 for one in needed)])
        rows = sum(one.load for one in needed)
        seconds = there_s + len(fetch) * times.link_s + len(needed) * times.fast_s + rows * times.fast_row_s
        return DispatchPlan(fast, (), fetch, seconds, "all-fetched")

    def _use_idle_link(self, until_s: float) -> int:
        """Fetch early until the next router has chosen; how many transfers began."""
        begun = 0
        while (begin := max(self._link_free_s, self._asked_s)) < until_s:
            expert = self._early()
            if expert is None:
                expert = self._worth_a_slot()
            if expert is None:
                break
            begun += 1
            self._link_free_s = begin + self._costs.times.link_busy_s
            self._landing[expert] = self._link_free_s
            self._land(min(self._link_free_s, until_s))
        return begun

    def _early(self) -> int | None:
        found = self._prefetcher.next(self._costs.times, link_idle=True)
        if found is None:
            return None
        if self._is_static:
            self._buffer.held.add(found.expert)
        elif self._table.prefetch(found.expert) is None:
            self._prefetcher.landed(found.expert)
            return None
        return found.expert

    def _worth_a_slot(self) -> int | None:
        """A miss that was computed below, if it would be missed more than who would go for it."""
        if self._is_static or self._parts.schedule:
            return None
        table = self._table
        while self._missed:
            expert = self._missed.pop()
            victim = table.victim_of(expert)
            is_worth = table.has_room(expert) or (
                victim is not None and table.cache.worth(victim) < table.cache.worth(expert)
            )
            if is_worth and table.prefetch(expert) is not None:
                return expert
        return None

    def _land(self, now: float) -> None:
        for expert, landing in list(self._landing.items()):
            if landing <= now:
                del self._landing[expert]
                self._prefetcher.landed(expert)
                if expert not in self._buffer.held:
                    self._table.loaded(expert)

    def _forget(self, layer: int) -> None:
        """What was fetched early for this layer has been used, or never will be."""
        self._buffer.held = {
            expert
            for expert in self._buffer.held
            if self._shape.layer_of(expert) != layer or expert in self._landing
        }

    def _foretell(self, step: Step, place: int) -> None:
        for distance in self._prefetcher.distances:
            if place + distance < len(step.layers):
                later = step.layers[place + distance]
                self._prefetcher.predicted(
                    later.layer,
                    distance,
                    self._oracle.foretell(later, distance),
                    seconds=self._costs.predict_s,
                )

    def _count(self, needed: list[Activated], found: DispatchPlan, sums: Sums) -> None:
        times: ExpertTimes = self._costs.times
        loads = {one.expert: one.load for one in needed}
        sums.wanted += len(needed)
        sums.hits += sum(one.ready_s == 0 for one in needed)
        sums.slow += len(found.slow)
        sums.fetched += len(found.fetch)
        sums.fast_busy_s += sum(times.fast_s + times.fast_row_s * loads[expert] for expert in found.fast)
        if found.slow:
            rows = sum(loads[expert] for expert in found.slow)
            sums.slow_busy_s += times.slow_first_s + len(found.slow) * times.slow_s + rows * times.slow_row_s
