"""Who may enter although there is a seat: Braid's gate on working sets.

Without it every newcomer pushes out what others come back for, and all are prefilled again and again. Published
retention does the same by holding blocks against newcomers; a gate says it, and can be bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from weakref import WeakSet

from braid.policy.agents.costs import Costs
from braid.policy.agents.order import is_preempted
from braid.policy.agents.policy import SetLoad
from braid.policy.agents.program import Program, Turn

Guests = WeakSet[Program]
"""Programs whose turn was let through by force: it is served, and that is all. A guest's idle blocks go first, its next
turn asks the gate again even if its blocks are there, and stands in line with those whose blocks are not. Otherwise
whoever has waited for long would be in for good, and under overload the gate would hold nobody back."""


class Budget:
    """How much of the machine's time goes to turns that are let through by force.

    Args:
        after_s: a turn must have waited so long.
        share: of the time: after a turn whose prompt takes t seconds to prefill, none for t / ``share``.
    """

    def __init__(self, costs: Costs, *, after_s: float, share: float) -> None:
        self._costs = costs
        self._after_s, self._share = after_s, share
        self._next = -inf
        self._last: str | None = None
        self.num_forced = 0

    def has(self, turn: Turn, now: float) -> bool:
        """Take the turn's part if there is one. Who was let through and found no memory is let through again."""
        request = turn.request
        if request.request_id == self._last:
            return True
        if now - request.arrival_time < self._after_s or now < self._next:
            return False
        self._last = request.request_id
        self._next = now + self._costs.prefill_s(request.num_tokens) / self._share
        self.num_forced += 1
        return True


class WorkingSetGate:
    """Programs may enter while what they need fits.

    Turns whose blocks are there, and those that were in already, pass, unless they are guests. Who has waited for too
    long is let through as a guest: newcomers out of one budget, others out of another. So nobody waits for ever, and
    the gate still holds under overload.

    Args:
        share, lower_share: of the blocks of the device, and of the tier below it, that may be needed.
        guests: filled here; order and retention look at it.
    """

    is_open = False

    def __init__(
        self, *, share: float, lower_share: float, newcomers: Budget, overdue: Budget, guests: Guests
    ) -> None:
        self._share, self._lower_share = share, lower_share
        self._newcomers, self._overdue = newcomers, overdue
        self._guests = guests

    def admits(self, turn: Turn, load: SetLoad, now: float) -> bool:
        if not load.num_running or is_preempted(turn):
            return True
        program = turn.program
        room = self._share * load.num_blocks + self._lower_share * load.num_lower_blocks
        if load.needed + load.added <= room:
            self._guests.discard(program)
            return True
        if turn.is_resident and program not in self._guests:
            return True
        # Who can never fit would else be overdue with every turn.
        budget = self._newcomers if is_new(turn) or load.added > room else self._overdue
        if not budget.has(turn, now):
            return False
        self._guests.add(program)
        return True

    def describe(self) -> Mapping[str, float]:
        return {"gate_forced": self._newcomers.num_forced + self._overdue.num_forced}


def is_new(turn: Turn) -> bool:
    """Whether its program has had nothing yet, and nobody has it for a sub-agent."""
    return not turn.program.num_turns and turn.program.parent is None
