"""Who gives up its blocks when a running turn needs one and there is none.

Whatever is chosen, the turn that is first in order goes on, or a set of turns that only shrinks by their ends does: so
preemption cannot livelock.
"""

from __future__ import annotations

from collections.abc import Sequence

from braid.policy.agents.policy import AnyTurn
from braid.policy.agents.program import Turn


class LastProgram:
    """The turn of the program that came last, whatever the order says (Continuum); never the first in order where
    there are others.

    Args:
        spares_final: not one that its client calls the program's last, while another can be chosen: what Continuum's
            released code does. Such turns then go on until they end, and so does the queue.
    """

    def __init__(self, *, spares_final: bool = False) -> None:
        self._spares_final = spares_final

    def choose(self, running: Sequence[AnyTurn]) -> AnyTurn:
        if self._spares_final:
            others = [turn for turn in running if not _is_final(turn)]
            if others:
                return max(others, key=_came)
        return max(running[1:] or running, key=_came)


class Patient:
    """The last in order, but not one whose program has been preempted ``budget`` times, and not one that has just
    started: whose prompt is being computed yet, so that all of its work would be lost before it led to a token. Where
    no other is left, first those that have just started, then those over their budget. A turn that ends without being
    preempted gives its program one back: one that lives for long is not spared for ever.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget

    def choose(self, running: Sequence[AnyTurn]) -> AnyTurn:
        chosen, best = running[-1], (True, True)
        for turn in reversed(running[1:]):
            worth = (turn.program.num_preemptions >= self._budget, _has_just_started(turn))
            if worth < best:
                chosen, best = turn, worth
        return chosen


def _came(turn: Turn) -> tuple[float, ...]:
    return (turn.program.first_arrival, turn.request.arrival_time, turn.number)


def _is_final(turn: Turn) -> bool:
    return turn.request.program is not None and turn.request.program.final


def _has_just_started(turn: Turn) -> bool:
    request = turn.request
    return request.num_computed_tokens < request.num_tokens - 1
