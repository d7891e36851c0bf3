"""Which request of a sender becomes due when, given the ends of others. Pure: no clock, no socket."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import Any

import numpy as np
import numpy.typing as npt

from braid.core.errors import BraidError

Array = npt.NDArray[Any]


class ScheduleError(BraidError, ValueError):
    """A folder's requests cannot be scheduled; the text names one of them and the reason."""


@dataclass(slots=True)
class _Wait:
    """What a request still waits for."""

    num_left: int
    latest_s: float
    delay_s: float


class Schedule:
    """The requests of one sender: due at their time, after their predecessors, or when a slot is free.

    1. A request without predecessors is due at ``start_s``; if that is NaN, ``delay_s`` after its group gets a slot:
       groups get slots in the order of their first rows, and give them back when all of their requests have ended.
    2. One with predecessors is due ``delay_s`` after the last of their ends.
    3. With ``stop_on_failure``, what waits for a failed request, directly or through others, is never due.

    Args:
        requests: records of ``files.REQUEST``, those of all senders; ``after`` is what their ranges point into.
        sender, num_senders: groups with ``group % num_senders == sender`` are this sender's.
        num_slots: groups at a time of those that wait for slots; None where none does.

    Raises:
        ScheduleError: ranges or numbers that point nowhere, predecessors in another group, a slot that nobody gives.
    """

    def __init__(
        self,
        requests: Array,
        after: Array,
        *,
        sender: int = 0,
        num_senders: int = 1,
        num_slots: int | None = None,
        stop_on_failure: bool = False,
    ) -> None:
        self._groups = requests["group"]
        self._delays = requests["delay_s"]
        self._stop_on_failure = stop_on_failure
        mine = np.flatnonzero(self._groups % num_senders == sender)
        self.remaining = int(mine.size)
        self._followers: dict[int, list[int]] = {}
        self._waits: dict[int, _Wait] = {}
        waiting = requests["after_to"][mine] > requests["after_from"][mine]
        self._link(requests, after, mine[waiting])
        free = mine[~waiting]
        timed = ~np.isnan(requests["start_s"][free])
        self._heap = list(zip(requests["start_s"][free[timed]].tolist(), free[timed].tolist(), strict=True))
        heapify(self._heap)
        self._pending: dict[int, list[int]] = {}
        self._left: dict[int, int] = {}
        self._seat(mine, free[~timed], num_slots)
        self.next_s = self._heap[0][0] if self._heap else math.inf

    def _link(self, requests: Array, after: Array, waiting: Array) -> None:
        starts, ends = requests["after_from"], requests["after_to"]
        for number in waiting.tolist():
            first, last = int(starts[number]), int(ends[number])
            if first < 0 or last > after.size:
                raise ScheduleError(
                    f"request {number}: its predecessors [{first}, {last}) are not in after.npy"
                )
            awaited = set(after[first:last].tolist())
            for other in awaited:
                if other >= requests.size or self._groups[other] != self._groups[number]:
                    raise ScheduleError(f"request {number} waits for {other}, which is not of its group")
                self._followers.setdefault(other, []).append(number)
            self._waits[number] = _Wait(len(awaited), -math.inf, float(requests["delay_s"][number]))

    def _seat(self, mine: Array, slotted: Array, num_slots: int | None) -> None:
        for number in slotted.tolist():
            if num_slots is None:
                raise ScheduleError(
                    f"request {number} has neither a start nor predecessors, and there are no slots"
                )
            self._pending.setdefault(int(self._groups[number]), []).append(number)
        if self._pending and num_slots is not None and num_slots < 1:
            raise ScheduleError(
                f"{len(self._pending)} programs wait for slots, and this sender has {num_slots}"
            )
        if self._pending:
            of_slots = np.isin(self._groups[mine], list(self._pending))
            groups, counts = np.unique(self._groups[mine][of_slots], return_counts=True)
            self._left = dict(zip(groups.tolist(), counts.tolist(), strict=True))
        for _ in range(min(num_slots or 0, len(self._pending))):
            self._start_group(0.0)

    def _start_group(self, now_s: float) -> None:
        group = next(iter(self._pending))
        for number in self._pending.pop(group):
            heappush(self._heap, (now_s + float(self._delays[number]), number))

    def pop(self, now_s: float) -> tuple[float, int] | None:
        """The next request that is due by now, with its time; None if none is."""
        if not self._heap or self.next_s > now_s:
            return None
        due = heappop(self._heap)
        self.next_s = self._heap[0][0] if self._heap else math.inf
        return due

    def again(self, number: int, due_s: float) -> None:
        """A request that was popped is due once more."""
        heappush(self._heap, (due_s, number))
        self.next_s = self._heap[0][0]

    def ended(self, number: int, end_s: float, *, failed: bool = False) -> list[int]:
        """A request that was popped has ended. Those that will never be due because of it."""
        dropped: list[int] = []
        todo = deque([number])
        stop = failed and self._stop_on_failure
        while todo:
            done = todo.popleft()
            self.remaining -= 1
            for follower in self._followers.pop(done, ()):
                if stop and self._waits.pop(follower, None) is not None:
                    dropped.append(follower)
                    todo.append(follower)
                else:
                    self._end_of_one(follower, end_s)
            self._leave(done, end_s)
        self.next_s = self._heap[0][0] if self._heap else math.inf
        return dropped

    def _end_of_one(self, follower: int, end_s: float) -> None:
        wait = self._waits.get(follower)
        if wait is None:
            return
        wait.num_left -= 1
        wait.latest_s = max(wait.latest_s, end_s)
        if not wait.num_left:
            del self._waits[follower]
            heappush(self._heap, (wait.latest_s + wait.delay_s, follower))

    def _leave(self, number: int, end_s: float) -> None:
        """A group whose last request has ended gives its slot to the next one."""
        if not self._left:
            return
        group = int(self._groups[number])
        if group not in self._left:
            return
        self._left[group] -= 1
        if not self._left[group]:
            del self._left[group]
            if self._pending:
                self._start_group(end_s)

    def most_starts(self, span_s: float) -> int:
        """How many of those whose time is known are due within one stretch of ``span_s`` seconds, at most."""
        times = np.sort([time for time, _ in self._heap])
        return int((np.searchsorted(times, times + span_s) - np.arange(times.size)).max(initial=0))

    @property
    def is_all_out(self) -> bool:
        """Nothing is left that will be due."""
        return not (self._heap or self._waits or self._pending)

    @property
    def is_stuck(self) -> bool:
        """Nothing is due at any time before something ends."""
        return not self._heap

    def leftovers(self) -> list[int]:
        """All that were never popped (or wait to be popped again), in order."""
        slotted = [number for numbers in self._pending.values() for number in numbers]
        return sorted({number for _, number in self._heap} | self._waits.keys() | set(slotted))
