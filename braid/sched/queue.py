"""Who waits: requests in the order in which they may start, and those parked behind a block that is being filled.

What may enter this file: which request is next. Whether it fits is the scheduler's question.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator, Sequence
from operator import attrgetter

from braid.core.request import Status
from braid.sched.entry import Entry
from braid.sched.prefix_cache import Fillings

by_order = attrgetter("order")


class WaitingQueue:
    """Requests without blocks and without a seat.

    Invariants:
        1. A request is either in line or parked, and parked only behind a running one that is earlier in order.
        2. Whoever fills a block waits for nobody, so parking cannot block.
    """

    def __init__(self) -> None:
        self._line: list[Entry] = []
        self._fillings: Fillings[Entry] = Fillings()

    def __bool__(self) -> bool:
        """Whether somebody is in line."""
        return bool(self._line)

    def __iter__(self) -> Iterator[Entry]:
        """Everybody, in line or parked."""
        yield from self._line
        yield from (waiter for waiter, _ in self._fillings.waiting())

    @property
    def first(self) -> Entry:
        """The next one to start; the line must not be empty."""
        return self._line[0]

    def add(self, entry: Entry) -> None:
        insort(self._line, entry, key=by_order)

    def pop_first(self) -> Entry:
        return self._line.pop(0)

    def remove(self, entry: Entry) -> None:
        """It gives up, or failed before it started."""
        if entry.parked_on is None:
            self._line.remove(entry)
        else:
            self._fillings.unpark(entry, entry.parked_on)
            entry.parked_on = None

    def park_first(self, key: bytes) -> bool:
        """Take the first one out of the line if an earlier request is filling ``key``, the block that it needs next.

        Waiting for a later one could starve it, as later requests may be served last.
        """
        entry = self.first
        filler = self._fillings.filler(key)
        if filler is None or filler.order > entry.order:
            return False
        self._line.pop(0)
        self._fillings.park(entry, key)
        entry.parked_on = key
        return True

    def announce(self, filler: Entry, keys: Sequence[bytes]) -> None:
        """``filler`` runs and will make ``keys`` READY."""
        self._fillings.announce(filler, keys)

    def resolve(self, filler: Entry, key: bytes) -> None:
        """``key`` is READY, or ``filler`` will not fill it after all: who waited for it is in line again."""
        for entry in self._fillings.resolve(filler, key):
            entry.parked_on = None
            self.add(entry)

    def check_integrity(self) -> None:
        """Prove the invariants.

        Raises:
            AssertionError: naming what does not add up; a bug in Braid.
        """
        assert self._line == sorted(self._line, key=by_order), "the line is out of order"
        for waiter, filler in self._fillings.waiting():
            assert filler.request.status is Status.RUNNING, "a filler does not run"
            assert filler.order < waiter.order, "an earlier request waits for a later one"
