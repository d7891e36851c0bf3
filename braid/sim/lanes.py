"""Two lanes on one machine, in virtual time: how much slower each is than one step alone on all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from braid.core.step import StepPlan, StepResult
from braid.policy.phases.curves import Curves
from braid.sched.config import MIXED, PREFILL


@dataclass(frozen=True, kw_only=True, slots=True)
class LaneTime:
    """Args:
    num_units: of the machine, as in ``SchedulerConfig``: cores, or groups of SMs.
    curves: what a part of them costs, and company.
    prefill_part: of what was given to both lanes, what prompts get of it.
    """

    num_units: int
    curves: Curves
    prefill_part: float = 0.5

    def slowness(self, lane: str, units: Mapping[str, int]) -> float:
        """Seconds per second of the same step alone on the whole machine.

        Args:
            units: by lane that computes, ``lane`` among them.
        """
        if lane == MIXED:
            return 1.0
        curves = self.curves
        curve, shared, part = curves.decode, curves.decode_shared, 1 - self.prefill_part
        if lane == PREFILL:
            curve, shared, part = curves.prefill, curves.prefill_shared, self.prefill_part
        both = max(0, sum(units.values()) - self.num_units)
        mine = max(units[lane] - both * (1 - part), 0.5)
        return curve.factor(mine, self.num_units) * (shared if len(units) > 1 else 1.0)


@dataclass(slots=True, eq=False)
class Computing:
    """A step on its way.

    Args:
        result: but for its duration.
        units: that it has.
        left_s: that it would still take alone on the whole machine, at ``since``.
        slowness: from then on.
        duration: foreseen, from its start.
    """

    plan: StepPlan
    result: StepResult
    units: int
    sequence: int
    left_s: float
    since: float
    slowness: float = 1.0
    duration: float = 0.0

    @property
    def end(self) -> float:
        return self.since + self.left_s * self.slowness

    def pace(self, slowness: float, now: float) -> None:
        """From now on; what was done so far was done at the old pace."""
        begins = now == self.result.start
        if not begins and slowness == self.slowness:
            return
        self.left_s = max(0.0, self.left_s - (now - self.since) / self.slowness)
        self.since, self.slowness = now, slowness
        self.duration = self.left_s * slowness if begins else self.end - self.result.start

    def ended(self) -> StepResult:
        return self.result._replace(duration=self.duration)
