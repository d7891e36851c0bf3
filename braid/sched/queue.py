"""Who waits: requests in the order in which they may start, and those parked behind a block that is being filled.

What may enter this file: which request is next. Whether it fits is the scheduler's question.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from operator import attrgetter

from braid.core.request import Status
from braid.policy.agents.policy import Order
from braid.policy.agents.program import Program
from braid.sched.block_pool import BlockPool
from braid.sched.entry import Entry
from braid.sched.prefix_cache import Fillings

by_order = attrgetter("order")


class WaitingQueue:
    """Requests without blocks and without a seat, in the lines of an ``Order``.

    Invariants:
        1. A request is in its line, aside or parked, and parked only behind a running one that is earlier in order.
        2. Whoever fills a block waits for nobody, so parking cannot block.
        3. Who is aside waits for blocks on their way up from a lower tier: ``braid.sched.transfers`` brings it back.
    """

    def __init__(self, order: Order, pool: BlockPool) -> None:
        self._order = order
        self._pool = pool
        self._lines: list[list[Entry]] = [[] for _ in range(order.num_lines)]
        self._of: dict[Program, list[Entry]] = {}
        self._fillings: Fillings[Entry] = Fillings()
        self._aside: dict[Entry, None] = {}
        self.num_tokens = 0
        """Of all that wait, prompts and what they had generated."""

    def __bool__(self) -> bool:
        """Whether somebody is in line."""
        return any(self._lines)

    def __iter__(self) -> Iterator[Entry]:
        """Everybody, in line, aside or parked."""
        for line in self._lines:
            yield from line
        yield from self._aside
        yield from (waiter for waiter, _ in self._fillings.waiting())

    def heads(self) -> list[Entry]:
        """The first of every line that is not empty."""
        return [line[0] for line in self._lines if line]

    def next(self, now: float) -> Iterable[Entry]:
        """The heads of the lines, in the order in which they are to be tried."""
        heads = [line[0] for line in self._lines if line]
        return self._order.ranked(heads, now) if len(heads) > 1 else heads

    def add(self, entry: Entry) -> None:
        """It waits from now on."""
        self._of.setdefault(entry.program, []).append(entry)
        self.num_tokens += entry.request.num_tokens
        self._watch(entry)
        entry.line = self._order.line(entry)
        self._join(entry)

    def remove(self, entry: Entry) -> None:
        """It starts, gives up, or failed before it started."""
        self.num_tokens -= entry.request.num_tokens
        if entry in self._aside:
            del self._aside[entry]
        elif entry.parked_on is None:
            self._take(entry)
        else:
            self._fillings.unpark(entry, entry.parked_on)
            entry.parked_on = None
        if entry.watched is not None:
            self._pool.unwatch(entry.watched, entry.seen)
            entry.watched = None
        mates = self._of[entry.program]
        mates.remove(entry)
        if not mates:
            del self._of[entry.program]

    def end_hold(self, program: Program) -> None:
        """Nothing is held any more for its turns."""
        for entry in self._of.get(program, ()):
            entry.is_held = False
            self._change_line(entry)

    def park(self, entry: Entry, key: bytes) -> bool:
        """Take it out of its line if an earlier request is filling ``key``, the block that it needs next.

        Waiting for a later one could starve it, as later requests may be served last.
        """
        filler = self._fillings.filler(key)
        if filler is None or filler.order > entry.order:
            return False
        self._take(entry)
        self._fillings.park(entry, key)
        entry.parked_on = key
        return True

    def set_aside(self, entry: Entry) -> None:
        """Take it out of its line until ``bring_back``: its blocks are on their way."""
        self._take(entry)
        self._aside[entry] = None

    def bring_back(self, entry: Entry) -> None:
        """It is in line again."""
        del self._aside[entry]
        self._join(entry)

    def is_aside(self, entry: Entry) -> bool:
        return entry in self._aside

    def announce(self, filler: Entry, keys: Sequence[bytes]) -> None:
        """``filler`` runs and will make ``keys`` READY."""
        self._fillings.announce(filler, keys)

    def resolve(self, filler: Entry, key: bytes) -> None:
        """``key`` is READY, or ``filler`` will not fill it after all: who waited for it is in line again."""
        for entry in self._fillings.resolve(filler, key):
            entry.parked_on = None
            self._join(entry)

    def check_integrity(self) -> None:
        """Prove the invariants.

        Raises:
            AssertionError: naming what does not add up; a bug in Braid.
        """
        assert self.num_tokens == sum(entry.request.num_tokens for entry in self), (
            "waiting tokens are miscounted"
        )
        for number, line in enumerate(self._lines):
            assert line == sorted(line, key=by_order), "a line is out of order"
            assert all(entry.line == number for entry in line), "somebody stands in a wrong line"
        for waiter, filler in self._fillings.waiting():
            assert filler.request.status is Status.RUNNING, "a filler does not run"
            assert filler.order < waiter.order, "an earlier request waits for a later one"

    def _watch(self, entry: Entry) -> None:
        """Half of what it can reuse decides whether it is resident."""
        if not entry.reusable or self._order.num_lines == 1:
            return
        entry.watched = entry.keys[-(-entry.reusable // 2) - 1]
        entry.is_resident = self._pool.find(entry.watched) is not None
        entry.seen = partial(self._see, entry)
        self._pool.watch(entry.watched, entry.seen)

    def _see(self, entry: Entry, is_there: bool) -> None:
        entry.is_resident = is_there
        self._change_line(entry)

    def _change_line(self, entry: Entry) -> None:
        line = self._order.line(entry)
        if line == entry.line:
            return
        if entry.parked_on is None and entry not in self._aside:
            self._take(entry)
            entry.line = line
            self._join(entry)
        else:
            entry.line = line

    def _join(self, entry: Entry) -> None:
        insort(self._lines[entry.line], entry, key=by_order)

    def _take(self, entry: Entry) -> None:
        line = self._lines[entry.line]
        place = bisect_left(line, entry.order, key=by_order)
        assert line[place] is entry, "a request is not where it stands"
        del line[place]
