"""Who has which row, who reads what into it, and who waits: all that a store of experts decides, under one lock.

Rules:
    1. Nobody computes or waits for a disk while holding the lock (waiting lets it go).
    2. An expert is handed out only in a row whose read has ended well, and stays there until it is computed.
    3. Nobody waits for room while holding some: what finds no slot goes through the staging rows in turns.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from math import inf
from typing import NamedTuple, TypeVar

from braid.checkpoint.expert_file import ExpertFile
from braid.policy.experts.policy import Routed
from braid.policy.experts.sides import Sides
from braid.policy.experts.slots import SlotTable, State
from braid.runner.experts.arena import Arena
from braid.runner.experts.early import Early
from braid.runner.experts.reader import Cause, ExpertReadError, Read, Reader, Source
from braid.runner.experts.staging import Staging
from braid.runner.experts.tally import LayerSeconds, Tally
from braid.runner.experts.task import Task

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

PAUSE_S = 1.0
"""After reads of an expert have failed, so long nobody tries again: a broken disk is not asked by every request."""
PATIENCE = 2
"""Reads of an expert that fail before there is a pause. With the first the whole batch fails; its requests then run
alone, and the first of them that needs the expert tries once more."""

HANG_S = 20.0
"""A step that got nothing to compute with for so long fails. Less than what an engine may stand still."""
NAMED = 3


class _Failure(NamedTuple):
    reads: int
    at: float
    error: ExpertReadError


class Ledger:
    """Used by every thread that computes and every thread that reads.

    The course of one call of a layer::

        task = ledger.begin(routed, rows, since)
        try:
            group = {}
            while group := ledger.next(task, group, seconds):
                ...                                     # compute the experts in these rows
        finally:
            ledger.finish(task)

    Args:
        arena: its first rows are for staging, those after them are the slots.
        source: fills its rows.
        readers: reads under way at the same time.
        prefetch: ``off``, ``on`` or ``auto``.
        clock: what pauses after failures are measured with.
        sides: who says what the tier below computes; None: nothing.
    """

    def __init__(
        self,
        file: ExpertFile,
        table: SlotTable,
        arena: Arena,
        *,
        source: Source,
        staging: int,
        readers: int,
        prefetch: str,
        clock: Callable[[], float],
        sides: Sides | None = None,
    ) -> None:
        self._file = file
        self.table, self.tally = table, Tally([LayerSeconds() for _ in range(file.shape.layers)])
        self._arena, self._staging, self._sides = arena, Staging(staging), sides
        self.early = Early(table, prefetch, None if sides is None else lambda: sides.times)
        self._changed = threading.Condition()
        self._reads: dict[int, Read] = {}
        """Into slots, until they are settled."""
        self._failures: dict[int, _Failure] = {}
        self._stuck: set[int] = set()
        """Experts that somebody has given up waiting for, while their reads go on."""
        self._no_early_until = -inf
        self._tasks: list[Task] = []
        self._is_growing = self._is_closed = False
        self._clock = clock
        self.reader = Reader(file, source, self._settle, threads=readers)

    def begin(self, routed: Routed, rows: int, since: float, *, is_told: bool = False) -> Task:
        """Let the table decide, and start all reads that have a row.

        Args:
            rows: tokens of the batch.
            since: when planning began (``time.perf_counter``).
            is_told: the cache has heard of this step already (``hear``).

        Raises:
            ExpertReadError: an expert that is needed has just failed, or the store is closed.
        """
        cause = Cause.PREFILL if routed.is_prefill else Cause.DEMAND
        task = Task(routed.layer, routed.loads, cause)
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or not self._is_growing)
            self._check(routed.loads)
            self.early.routed(routed, rows)
            if self._sides is None:
                demand = self.table.use(routed, is_told=True) if is_told else self.table.use(routed)
            else:
                task.slow = self._sides.slow(routed, self._reads)
                demand = self.table.use(routed, routed.loads.keys() - task.slow).without(task.slow)
                self.tally.slow += len(task.slow)
            self._tasks.append(task)
            self.tally.needed(rows, len(routed.loads))
            for expert in demand.hits:
                task.ready[expert] = self._row(self.table.slots[expert])
            for expert in demand.joins:
                task.waiting[expert] = self._reads[expert]
                self.reader.urge(self._reads[expert], cause)
            reads = [Read(load.expert, self._row(load.slot), cause) for load in demand.loads]
            for read in reads:
                self._reads[read.expert] = task.waiting[read.expert] = read
            task.later.extend(demand.bypasses)
            if reads or task.later:
                self._take_back(task)
            self._start(task, reads)
            self.tally.layers[routed.layer].planning += time.perf_counter() - since
        return task

    def hear(self, routed: Routed) -> None:
        """The cache is to know of a step whose experts are asked for one by one (``is_told``)."""
        with self._changed:
            self.table.cache.routed(routed)

    def _check(self, experts: Collection[int]) -> None:
        """Raise rather than read again what has just failed."""
        if self._is_closed:
            raise ExpertReadError("the store of experts is closed")
        if not self._stuck.isdisjoint(experts):
            raise self._late(self._stuck.intersection(experts))
        for expert in experts if self._failures else ():
            failure = self._failures.get(expert)
            if failure and failure.reads >= PATIENCE and self._clock() - failure.at < PAUSE_S:
                raise ExpertReadError(str(failure.error))

    def _start(self, task: Task, reads: list[Read]) -> None:
        """Submit reads, and those for which there are staging rows; the heaviest begin."""
        while task.later:
            expert = task.later[0]
            read = self._staging.join(expert)
            if read is not None:
                self.reader.urge(read, task.cause)
            else:
                read = self._staging.claim(expert, task.cause, len(task.staged))
                if read is None:
                    break
                reads.append(read)
            task.later.popleft()
            task.staged.add(expert)
            task.waiting[expert] = read
        if reads:
            reads.sort(key=lambda read: -task.loads[read.expert])
            self.reader.submit(reads)

    def next(
        self, task: Task, done: Mapping[int, int], seconds: float, *, wait: bool = True
    ) -> Mapping[int, int]:
        """Rows of the experts to compute next, as soon as there are any; nothing if all are computed.

        Args:
            done: what this gave before: computed by now, in so many seconds.
            wait: else nothing also if there are none yet.

        Raises:
            ExpertReadError: one that is needed cannot be read.
        """
        with self._changed:
            since = 0.0
            if done:
                self._computed(task, done, seconds)
            try:
                while True:
                    self._start(task, [])
                    task.settle()
                    if task.ready:
                        return task.take(max(1, self._staging.num_rows // 2))
                    if task.is_over or not wait:
                        return {}
                    if self._is_closed:
                        raise ExpertReadError("the store of experts is closed")
                    since = since or time.perf_counter()
                    if not self._changed.wait(max(0.0, since + HANG_S - time.perf_counter())):
                        if any(read.is_settled for read in task.waiting.values()):
                            continue  # at the last moment
                        self._stuck |= task.waiting.keys()
                        raise self._late(task.waiting)
            finally:
                if since:
                    self.tally.layers[task.layer].stall += time.perf_counter() - since

    def _late(self, experts: Collection[int]) -> ExpertReadError:
        names = ", ".join(self._file.name(expert) for expert in sorted(experts)[:NAMED])
        what = f"{names} could not be read" if names else "there was no room for an expert"
        return ExpertReadError(f"{what} within {HANG_S:g} s: the disk hangs")

    def _computed(self, task: Task, group: Mapping[int, int], seconds: float) -> None:
        """Nobody reads their rows for this task any more."""
        self.tally.layers[task.layer].compute += seconds
        self.tally.fast.add(seconds / len(group))
        staged = task.staged & group.keys()
        for expert in staged:
            self._staging.leave(expert)
        task.staged -= staged
        if staged:
            self._changed.notify_all()

    def finish(self, task: Task) -> None:
        """However it ended."""
        with self._changed:
            for expert in task.staged:
                read = task.waiting.get(expert)
                if read is not None and self._staging.is_alone(expert) and self.reader.drop(read):
                    read.is_settled = True
                    self._stuck.discard(expert)
                self._staging.leave(expert)
            self.table.release(task.loads)
            self._tasks.remove(task)
            if task.is_over and task.cause is Cause.DEMAND:
                self.early.computed(task.layer)
            self._give_back()
            self._changed.notify_all()

    def _settle(self, read: Read) -> None:
        """On a reader's thread: a read has ended."""
        with self._changed:
            try:
                self._take_note(read)
                self._give_back()
                self._read_early()
            except Exception as error:
                logger.exception("the store of experts is broken")
                read.error = ExpertReadError(f"the store of experts is broken: {error!r}")
            finally:
                read.is_settled = True
                self._changed.notify_all()

    def _take_note(self, read: Read) -> None:
        expert = read.expert
        if self._sides is not None and read.link_s:
            self._sides.fetched(read.link_s, is_busy=read.is_busy)
        if read.error is None:
            self._failures.pop(expert, None)
        elif read.urgency is Cause.PREFETCH:  # who needs it later may find that it can be read
            self._no_early_until = self._clock() + PAUSE_S
        else:
            before = self._failures.get(expert)
            self._failures[expert] = _Failure(before.reads + 1 if before else 1, self._clock(), read.error)
        read.is_settled = True
        self._stuck.discard(expert)
        if self._reads.get(expert) is not read:
            self._staging.ended(read)
            return
        del self._reads[expert]
        if read.error is None:
            self.table.loaded(expert)
        else:
            self.table.failed(expert)
        self.early.landed(expert)

    def _row(self, slot: int) -> int:
        return self._staging.num_rows + slot

    def _give_back(self) -> None:
        for slot in self.table.take_retired():
            self._arena.give_back(self._row(slot))

    # -- reading early ---------------------------------------------------------------------------------------

    def foresee(self, predicted: Sequence[tuple[Routed, int]], seconds: float) -> None:
        """What later layers will need, with how many layers ahead that is, and how long it took to find out."""
        with self._changed:
            for routed, distance in predicted:
                self.early.predicted(routed, distance, seconds / len(predicted))
            self._read_early()

    def _read_early(self) -> None:
        """Begin one read that nobody waits for, if the disk has nothing else to do."""
        if (
            self._is_closed
            or self._is_growing
            or not self.early.is_on
            or self._clock() < self._no_early_until
        ):
            return
        if any(task.later for task in self._tasks) or not self.reader.is_idle:
            return
        load = self.early.next(self.tally, self.reader.record_s)
        if load is not None:
            read = Read(load.expert, self._row(load.slot), Cause.PREFETCH)
            self._reads[load.expert] = read
            self.reader.submit([read])

    def _take_back(self, task: Task) -> None:
        """Steps wait for the disk now: what nobody waits for, and has not begun, is not read."""
        for expert, read in list(self._reads.items()):
            if read.urgency is Cause.PREFETCH and expert not in task.waiting and self.reader.drop(read):
                read.is_settled = True
                del self._reads[expert]
                self.table.failed(expert)
                self.early.landed(expert)

    # -- from outside ----------------------------------------------------------------------------------------

    def resize(self, num_slots: int) -> None:
        """Another number of slots, which the arena has addresses for."""
        with self._changed:
            self.table.resize(num_slots)
            self._grow()
            self._give_back()

    def _grow(self) -> None:
        """Where rows are made anew, nobody may be at them."""
        needed = self._row(self.table.arena_slots)
        if needed <= self._arena.num_rows:
            return
        self._is_growing = True
        try:
            if not self._arena.is_in_place:
                self._changed.wait_for(lambda: not (self._tasks or self._reads or self._staging.num_used))
            self._arena.grow(needed)
        finally:
            self._is_growing = False
            self._changed.notify_all()

    def close(self) -> None:
        """Whoever waits gets an error; reads under way get a moment."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self.reader.close()

    def snapshot(self, make: Callable[[], Value]) -> Value:
        """What ``make`` returns, while nothing changes."""
        with self._changed:
            return make()

    def check_integrity(self) -> None:
        """
        Raises:
            AssertionError: what is kept here contradicts itself.
        """
        with self._changed:
            self.table.check_integrity()
            self._staging.check_integrity()
            loading = {
                expert
                for expert in range(self.table.shape.total)
                if self.table.state(expert) is State.LOADING
            }
            assert loading == self._reads.keys(), "a slot is filled by no read, or a read fills no slot"
            if not self._tasks:
                used = [expert for expert in range(self.table.shape.total) if self.table.is_in_use(expert)]
                assert not used, f"experts {used} are in use by nobody"
