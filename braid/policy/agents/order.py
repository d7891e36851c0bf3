"""In which order waiting turns start: the published orders, each a key within a line and a line per turn.

The client's priority stands above all of them. Where a paper knows programs but no families of programs, a sub-agent
is a program of its own; the orders that come from no paper let it queue with the seniority of its family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import log2

from braid.core.request import Status
from braid.policy.agents.policy import AnyTurn, OrderKey
from braid.policy.agents.program import Turn


def by_program(turn: Turn) -> OrderKey:
    """First come, first served among programs, and among the turns of one."""
    request = turn.request
    return (request.priority, turn.program.first_arrival, request.arrival_time, turn.number)


def by_family(turn: Turn) -> OrderKey:
    """The same, where sub-agents count as old as the program at the root of their family."""
    request = turn.request
    return (request.priority, turn.program.seniority, request.arrival_time, turn.number)


def by_request(turn: Turn) -> OrderKey:
    request = turn.request
    return (request.priority, request.arrival_time, turn.number)


def is_preempted(turn: Turn) -> bool:
    return turn.request.status is Status.PREEMPTED


class Lines:
    """Lines that are tried one after the other: who stands in a lower one goes first, whatever its key.

    Args:
        key: the place within a line.
        line: from 0 to ``num_lines - 1``.
        started: who else is told of starts.
    """

    def __init__(
        self,
        key: Callable[[Turn], OrderKey],
        num_lines: int = 1,
        line: Callable[[Turn], int] = lambda turn: 0,
        started: Callable[[Turn], None] = lambda turn: None,
    ) -> None:
        self.num_lines = num_lines
        self._key, self._line, self._started = key, line, started

    def key(self, turn: Turn) -> OrderKey:
        return self._key(turn)

    def line(self, turn: Turn) -> int:
        return self._line(turn)

    def ranked(self, heads: Sequence[AnyTurn], now: float) -> Iterable[AnyTurn]:
        return sorted(heads, key=lambda turn: (turn.request.priority, self._line(turn)))

    def started(self, turn: Turn, now: float) -> None:
        self._started(turn)


def program_first() -> Lines:
    """Older programs first."""
    return Lines(by_family)


def resident_first() -> Lines:
    """Turns that find at least half of what they can reuse on the device; older programs first among equals."""
    return Lines(by_family, 2, lambda turn: 0 if turn.is_resident else 1)


def original_arrival(started: Callable[[Turn], None] = lambda turn: None) -> Lines:
    """InferCept (arXiv 2402.01869): a request keeps its arrival through all its interceptions. What is an interception
    there is the gap between two turns here, and what is one request there is a program here: so a turn counts as
    arrived when its program did.
    """
    return Lines(by_program, started=started)


def held_first() -> Lines:
    """Continuum's released code: programs whose KV is held, then the others; older programs first among equals."""
    return Lines(by_program, 2, lambda turn: 0 if turn.is_held else 1)


def continuum() -> Lines:
    """Continuum (arXiv 2511.02230 v6): preempted turns, programs whose KV is held, others; in each of these classes by
    the program's first arrival and then the request's own."""
    return Lines(by_program, 3, lambda turn: 0 if is_preempted(turn) else 1 if turn.is_held else 2)


class LeastService:
    """Autellix (arXiv 2502.13965), program-level attained service: the less service the ended turns of its program have
    had, the earlier a turn; first come, first served where that is alike.

    Own reading of the paper: level 0 holds programs below ``quantum_s``, and each next threshold is twice as high. A
    level's head that has waited ``promote_ratio`` times as long as its program was served (one quantum at least) goes
    before all levels, longest wait first. A turn is not moved while it runs.
    """

    def __init__(self, num_levels: int, quantum_s: float, promote_ratio: float) -> None:
        self.num_lines = num_levels
        self._quantum_s, self._ratio = quantum_s, promote_ratio

    def key(self, turn: Turn) -> OrderKey:
        return by_request(turn)

    def line(self, turn: Turn) -> int:
        quanta = turn.program.service / self._quantum_s
        return 0 if quanta < 1 else min(self.num_lines - 1, int(log2(quanta)) + 1)

    def ranked(self, heads: Sequence[AnyTurn], now: float) -> Iterable[AnyTurn]:
        return sorted(heads, key=lambda turn: self._rank(turn, now))

    def started(self, turn: Turn, now: float) -> None:
        pass

    def _rank(self, turn: Turn, now: float) -> OrderKey:
        request = turn.request
        waited = now - request.arrival_time
        starves = waited >= self._ratio * max(turn.program.service, self._quantum_s)
        level = -1 if starves else self.line(turn)
        return (request.priority, level, request.arrival_time, turn.number)
