"""What happens without regard to programs, as in most engines: first come, first served, and the least recently used
block goes first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from braid.policy.agents.policy import AgentPolicy, AnyTurn, Keep, OrderKey, Rank, SetLoad
from braid.policy.agents.program import Program, Turn


class FirstCome:
    """By priority, then arrival, then the order of adding."""

    num_lines = 1

    def key(self, turn: Turn) -> OrderKey:
        request = turn.request
        return (request.priority, request.arrival_time, turn.number)

    def line(self, turn: Turn) -> int:
        return 0

    def ranked(self, heads: Sequence[AnyTurn], now: float) -> Iterable[AnyTurn]:
        return heads

    def started(self, turn: Turn, now: float) -> None:
        pass


class OpenGate:
    """Whoever finds a seat and memory may enter."""

    is_open = True

    def admits(self, turn: Turn, load: SetLoad, now: float) -> bool:
        return True


class LastInOrder:
    """The one that would run last: the earliest turn always advances, so preemption cannot livelock."""

    def choose(self, running: Sequence[AnyTurn]) -> AnyTurn:
        return running[-1]


class LeastRecent:
    """Nothing is kept for anybody, and nothing learnt."""

    is_ranked = False

    def arrived(self, program: Program, gap_s: float, now: float) -> None:
        pass

    def started(self, program: Program, waited_s: float, found: float, now: float) -> None:
        pass

    def ended(self, program: Program, now: float) -> Keep:
        return Keep()

    def left(self, program: Program, now: float) -> None:
        pass

    def rank(self, program: Program, now: float) -> Rank:
        return Rank(0, 0.0, 1.0)


def lru() -> AgentPolicy:
    """Continuous batching with a prefix cache, and no more."""
    return AgentPolicy("lru", FirstCome(), OpenGate(), LastInOrder(), LeastRecent())
