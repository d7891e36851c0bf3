"""Who may enter although there is a seat: Braid's gate on working sets.

Without it every newcomer pushes out what others come back for, and all are prefilled again and again. Published
retention does the same by holding blocks against newcomers; a gate says it, and can be bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf

from braid.policy.agents.order import is_preempted
from braid.policy.agents.policy import SetLoad
from braid.policy.agents.program import Turn


class WorkingSetGate:
    """Programs may enter while what they need fits into the device and the tier below it.

    Turns whose blocks are there, and those that were in already, always pass. A turn that has waited ``deadline_s``
    passes by force, but only one in ``every_s``: so nobody waits for ever, and the gate still holds under overload.

    Args:
        share: of all blocks, that may be needed.
    """

    is_open = False

    def __init__(self, *, share: float, deadline_s: float, every_s: float) -> None:
        self._share = share
        self._deadline_s, self._every_s = deadline_s, every_s
        self._forced: str | None = None
        self._forced_at = -inf
        self.num_forced = 0

    def admits(self, turn: Turn, load: SetLoad, now: float) -> bool:
        if not load.num_running or turn.is_resident or is_preempted(turn):
            return True
        if load.needed + load.added <= self._share * (load.num_blocks + load.num_lower_blocks):
            return True
        return self._may_force(turn, now)

    def describe(self) -> Mapping[str, float]:
        return {"gate_forced": self.num_forced}

    def _may_force(self, turn: Turn, now: float) -> bool:
        """One that was let through and found no memory is let through again."""
        request = turn.request
        if request.request_id == self._forced:
            return True
        if now - request.arrival_time < self._deadline_s or now - self._forced_at < self._every_s:
            return False
        self._forced, self._forced_at = request.request_id, now
        self.num_forced += 1
        return True
