"""Which experts of a layer the slow side computes: from a plan to experts, beside the slots that there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from typing import Protocol

from braid.policy.experts.dispatch import plan
from braid.policy.experts.policy import Activated, DispatchPlan, ExpertTimes, Routed
from braid.policy.experts.slots import SlotTable, State
from braid.policy.experts.times import LearntTimes

PROBE = 251
"""One layer in so many is planned as if nothing had been measured: a side that is never used is never measured, and
what was believed of it would stay. No multiple of the number of layers, so that every layer has its turn."""


class Sides(Protocol):
    """Used under the lock of who holds the slots."""

    @property
    def times(self) -> ExpertTimes: ...

    def slow(self, routed: Routed, pending: Collection[int]) -> frozenset[int]:
        """Experts of a step that the slow side is to compute; all others that have no slot are fetched.

        Args:
            pending: experts on their way into slots, the first first.
        """
        ...

    def fetched(self, seconds: float, *, is_busy: bool) -> None:
        """As in `braid.policy.experts.times.LearntTimes`."""
        ...

    def measured_fast(self, seconds: float, experts: int, rows: int) -> None: ...

    def measured_slow(self, seconds: float, experts: int, rows: int) -> None: ...


class PlannedSides:
    """By the plan that is done first with the times that were learnt, and two rules that look beyond the layer.

    Of experts with the same load a plan says how many are fetched, and those go that are worth most to the cache. And
    slots that are free are filled: what is fetched now is there the next time.

    Args:
        is_below: whether the slow side has an expert at hand; one that has a slot is given to it only then.
    """

    def __init__(self, table: SlotTable, learnt: LearntTimes, is_below: Callable[[int], bool]) -> None:
        self._table, self._learnt, self._is_below = table, learnt, is_below
        self._num_planned = 0
        self.fetched = learnt.fetched
        self.measured_fast, self.measured_slow = learnt.fast, learnt.slow

    @property
    def times(self) -> ExpertTimes:
        return self._learnt.times

    def slow(self, routed: Routed, pending: Collection[int]) -> frozenset[int]:
        self._num_planned += 1
        times = self._learnt.times if self._num_planned % PROBE else self._learnt.prior
        coming = {expert: (place + 1) * times.link_s for place, expert in enumerate(pending)}
        activated = [
            Activated(expert, load, self._ready_s(expert, coming)) for expert, load in routed.loads.items()
        ]
        made = plan(activated, times, backlog_s=len(coming) * times.link_s)
        missing = [one.expert for one in activated if one.ready_s is None]
        absent = frozenset(missing)
        held = {expert for expert in made.slow if expert not in absent and self._is_below(expert)}
        return absent - self._fetched(routed, missing, made) | held

    def _ready_s(self, expert: int, coming: dict[int, float]) -> float | None:
        state = self._table.state(expert)
        if state is State.ABSENT:
            return None
        return 0.0 if state is State.READY else coming.get(expert, 0.0)

    def _fetched(self, routed: Routed, missing: list[int], made: DispatchPlan) -> set[int]:
        """As many of each load as planned, and as many as there are free slots; those that are worth most."""
        worth = self._table.cache.worth
        missing = sorted(missing, key=lambda expert: (-worth(expert), expert))
        fetched = set(missing[: self._table.room(routed)])
        left = Counter(routed.loads[expert] for expert in made.fetch)
        for expert in missing:
            load = routed.loads[expert]
            if left[load]:
                left[load] -= 1
                fetched.add(expert)
        return fetched
