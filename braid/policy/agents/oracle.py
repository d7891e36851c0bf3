"""Retention that knows the future, for the simulator: bounds to compare with, not policies to serve with.

In a closed loop the future depends on the policy, so the rank is a reference, not a proven optimum.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from braid.policy.agents.costs import Costs
from braid.policy.agents.holds import Continuum
from braid.policy.agents.policy import Keep, Rank
from braid.policy.agents.program import Finish, Program
from braid.policy.agents.ttl import ContinuumTTL

NextUse = Callable[[Program, float], float]
"""``next_use(program, now)``: when an idle program's next turn comes, in seconds on the same clock; infinite if none
does."""


class Belady:
    """The blocks whose next use is farthest go first (Belady 1966)."""

    is_ranked = True

    def __init__(self, next_use: NextUse) -> None:
        self._next_use = next_use

    def arrived(self, program: Program, gap_s: float, now: float) -> None:
        pass

    def started(self, program: Program, waited_s: float, found: float, now: float) -> None:
        pass

    def ended(self, program: Program, now: float) -> Keep:
        return Keep()

    def left(self, program: Program, now: float) -> None:
        pass

    def rank(self, program: Program, now: float) -> Rank:
        if not program.is_idle:
            return Rank(2, -program.seniority, 1.0 if program.num_running else 0.0)
        next_use = self._next_use(program, now)
        return Rank(0, -inf, 0.0) if next_use == inf else Rank(1, -next_use, 1.0)


class TrueContinuum:
    """Continuum with the true gap in place of its law: P is 1 from the gap on, so the best hold is the gap itself where
    B(r) is worth more, and none where it is not. T and eta are learnt as there.
    """

    is_ranked = False

    def __init__(self, costs: Costs, next_use: NextUse, ttl: ContinuumTTL | None = None) -> None:
        self._learnt = Continuum(costs, ttl)
        self._next_use = next_use
        self.arrived = self._learnt.arrived
        self.started = self._learnt.started
        self.left = self._learnt.left
        self.rank = self._learnt.rank

    def ended(self, program: Program, now: float) -> Keep:
        if program.tool is None or program.finish is Finish.ABORT:
            return Keep()
        gap_s = self._next_use(program, now) - now
        benefit = self._learnt.ttl.benefit(self._learnt.rebuild_s(program))
        return Keep(hold_s=gap_s if benefit > gap_s else 0.0, source="hint")
