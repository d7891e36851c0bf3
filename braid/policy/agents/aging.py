"""Braid's own order: whoever is cheap to go on with, then older programs; and nobody waits for ever.

Three bounds, all in the number of starts and none by the load, so that under overload the order stays what it is and
does not turn into first come, first served:

1. Of ``newcomer_every`` starts one at least is a newcomer's, while any waits.
2. Of ``aged_every`` starts one at least is that of the head that came first, once that has waited ``aged_s``.
3. Seniority counts for ``seniority_s`` at most: within a line a turn is overtaken only by those that come within that
   time. So a program that lives for ever, or an id that is used for ever, gains no more than that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from braid.policy.agents.gate import Guests, is_new
from braid.policy.agents.order import is_preempted
from braid.policy.agents.policy import AnyTurn, OrderKey
from braid.policy.agents.program import Turn

PREEMPTED, RESIDENT, RETURNING, NEW = range(4)


class Aging:
    """Preempted, resident, returning, new; by the capped seniority of the program's family in each.

    A sub-agent's first turn is not new: its family is in already. A guest of the gate's is not resident.
    """

    num_lines = 4

    def __init__(
        self, *, newcomer_every: int, aged_every: int, aged_s: float, seniority_s: float, guests: Guests
    ) -> None:
        self._guests = guests
        self._newcomer_every, self._aged_every = newcomer_every, aged_every
        self._aged_s, self._seniority_s = aged_s, seniority_s
        self._since_newcomer = self._since_aged = 0
        self._oldest: float | None = None
        """Arrival of the aged head, when the heads were last ranked."""

    def key(self, turn: Turn) -> OrderKey:
        request = turn.request
        came = max(turn.program.seniority, request.arrival_time - self._seniority_s)
        return (request.priority, came, request.arrival_time, turn.number)

    def line(self, turn: Turn) -> int:
        if is_preempted(turn):
            return PREEMPTED
        if turn.is_resident and turn.program not in self._guests:
            return RESIDENT
        return NEW if is_new(turn) else RETURNING

    def ranked(self, heads: Sequence[AnyTurn], now: float) -> Iterable[AnyTurn]:
        """A client's priority stands above all shares."""
        first = min(turn.request.priority for turn in heads)
        oldest = min((turn for turn in heads if turn.request.priority == first), key=_arrival)
        is_aged = now - oldest.request.arrival_time >= self._aged_s
        self._oldest = oldest.request.arrival_time if is_aged else None

        def rank(turn: Turn) -> OrderKey:
            if is_aged and turn is oldest and self._since_aged + 1 >= self._aged_every:
                place = -2
            elif is_new(turn) and self._since_newcomer + 1 >= self._newcomer_every:
                place = -1
            else:
                place = self.line(turn)
            return (turn.request.priority, place)

        return sorted(heads, key=rank)

    def started(self, turn: Turn, now: float) -> None:
        """A start counts towards a share even while nobody waits for it: who comes then need not wait for the share to
        fill up."""
        self._since_newcomer = 0 if is_new(turn) else min(self._since_newcomer + 1, self._newcomer_every)
        was_aged = self._oldest is not None and turn.request.arrival_time <= self._oldest
        self._since_aged = 0 if was_aged else min(self._since_aged + 1, self._aged_every)


def _arrival(turn: Turn) -> OrderKey:
    return (turn.request.arrival_time, turn.number)
