"""Records of experts from the tier below into rows, by threads of their own.

What steps of decodes wait for is read first, then what those of prompts wait for. What nobody waits for yet is read
only while nothing else is, one record at a time.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from heapq import heappop, heappush
from typing import Protocol

from braid.checkpoint.expert_file import ExpertFile
from braid.core.errors import BraidError

logger = logging.getLogger(__name__)

CLOSE_S = 2.0
"""Seconds that reads under way get at the end; a disk may hang for ever."""


class ExpertReadError(BraidError):
    """An expert could not be read, or is not what was written; the text names it."""


class Cause(IntEnum):
    """Why a record is read; the smaller, the sooner."""

    DEMAND = 0
    PREFILL = 1
    PREFETCH = 2

    @property
    def label(self) -> str:
        return self.name.lower()


class Stage(Enum):
    """Of a read. It ends as one of the last three."""

    QUEUED = "queued"
    READING = "reading"
    DONE = "done"
    FAILED = "failed"
    DROPPED = "dropped"


@dataclass(slots=True, eq=False)
class Read:
    """One record on its way into a row. Whoever else needs it waits for the same one.

    Args:
        cause: why it was asked for; ``urgency``: that of the most urgent of those who wait now.
        stage: for the reader alone; ``is_settled``: the read is over, and its store has taken note.
        link_s: that the link to a device took for it, where there is one; ``is_busy``: the CPU computed meanwhile.
    """

    expert: int
    row: int
    cause: Cause
    stage: Stage = Stage.QUEUED
    error: ExpertReadError | None = None
    is_settled: bool = False
    link_s: float = 0.0
    is_busy: bool = False
    urgency: Cause = field(init=False)

    def __post_init__(self) -> None:
        self.urgency = self.cause


@dataclass(slots=True)
class ReaderTimes:
    """Since the start. ``busy_s``: at least one read was under way; ``read_s``: the sum over all reads.

    ``bytes`` by cause.
    """

    reads: int = 0
    failed: int = 0
    busy_s: float = 0.0
    read_s: float = 0.0
    bytes: dict[Cause, int] = field(default_factory=lambda: dict.fromkeys(Cause, 0))


class Source(Protocol):
    """Where records come from; any thread may ask."""

    @property
    def is_direct(self) -> bool:
        """The file is read past the page cache."""
        ...

    def fill(self, read: Read) -> None:
        """Put the record into the row: kernels may read it when this returns. Raises what is wrong with it."""
        ...

    def close(self) -> None:
        """Nobody asks any more."""
        ...


class Reader:
    """Threads that bring records from ``source``.

    Args:
        file: names them.
        threads: reads under way at the same time.
        ended: called with every read that is done or has failed, on the thread that read. Not with dropped ones.
    """

    def __init__(
        self, file: ExpertFile, source: Source, ended: Callable[[Read], None], *, threads: int
    ) -> None:
        self._file, self._source, self._ended = file, source, ended
        self._wanted = threading.Condition()
        self._queue: list[tuple[Cause, int, Read]] = []
        self._pushed = 0
        self._under_way: dict[Cause, int] = dict.fromkeys(Cause, 0)
        self._busy_since = 0.0
        self._is_closed = False
        self._times = ReaderTimes()
        self._threads = [
            threading.Thread(target=self._serve, name=f"experts-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def is_direct(self) -> bool:
        """Whether reads go past the page cache."""
        return self._source.is_direct

    @property
    def depth(self) -> int:
        return len(self._threads)

    @property
    def is_idle(self) -> bool:
        """Nothing is queued or under way that a step waits for."""
        with self._wanted:
            return not (self._num_demands or self._queued(Cause.PREFETCH))

    @property
    def record_s(self) -> float:
        """Seconds of the link per record, so far; 0 before the first."""
        times = self.times()
        return times.busy_s / times.reads if times.reads else 0.0

    def times(self) -> ReaderTimes:
        """A copy, to this moment."""
        with self._wanted:
            now, times = time.perf_counter(), self._times
            busy_s = times.busy_s + (now - self._busy_since if any(self._under_way.values()) else 0.0)
            return ReaderTimes(times.reads, times.failed, busy_s, times.read_s, dict(times.bytes))

    def submit(self, reads: list[Read]) -> None:
        """Queue reads, the first of the same cause first.

        Raises:
            ExpertReadError: the reader was closed.
        """
        if not reads:
            return
        with self._wanted:
            if self._is_closed:
                raise ExpertReadError("the store of experts is closed")
            for read in reads:
                self._push(read)
            self._wanted.notify(len(reads))

    def urge(self, read: Read, cause: Cause) -> None:
        """Somebody with this cause waits for it too."""
        with self._wanted:
            if read.stage is Stage.QUEUED and cause < read.urgency:
                read.urgency = cause
                self._push(read)
                self._wanted.notify()

    def drop(self, read: Read) -> bool:
        """Take back a read that has not begun; False if it has."""
        with self._wanted:
            if read.stage is not Stage.QUEUED:
                return False
            read.stage = Stage.DROPPED
            return True

    def close(self) -> None:
        """Let queued reads fail and stop. A read that hangs is left behind, with the file and the memory it uses."""
        with self._wanted:
            self._is_closed = True
            left = [read for _, _, read in self._queue if read.stage is Stage.QUEUED]
            self._queue.clear()
            for read in left:
                read.stage, read.error = Stage.FAILED, ExpertReadError("the store of experts is closed")
            self._wanted.notify_all()
        for read in left:
            self._ended(read)
        deadline = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if any(thread.is_alive() for thread in self._threads):
            logger.warning("%s: a read hangs; it is left behind", self._file.path)
        else:
            self._source.close()

    @property
    def _num_demands(self) -> int:
        return self._under_way[Cause.DEMAND] + self._under_way[Cause.PREFILL]

    def _push(self, read: Read) -> None:
        self._pushed += 1
        heappush(self._queue, (read.urgency, self._pushed, read))

    def _queued(self, below: Cause) -> bool:
        """Is there a read in the queue that is more urgent than ``below``?"""
        queue = self._queue
        while queue and (queue[0][2].stage is not Stage.QUEUED or queue[0][2].urgency is not queue[0][0]):
            heappop(queue)
        return bool(queue) and queue[0][0] < below

    def _take(self) -> Read | None:
        """The next read that may begin now."""
        is_free = not any(self._under_way.values())
        if not self._queued(Cause.PREFETCH) and not (is_free and self._queue):
            return None
        return heappop(self._queue)[2]

    def _serve(self) -> None:
        while (read := self._next()) is not None:
            begin = time.perf_counter()
            try:
                self._source.fill(read)
                error = None
            except BaseException as reason:  # of this expert alone, whatever it is: the thread lives on
                error = self._name(read, reason)
            self._end(read, error, begin)
            self._ended(read)

    def _next(self) -> Read | None:
        with self._wanted:
            while not self._is_closed:
                read = self._take()
                if read is not None:
                    read.stage = Stage.READING
                    if not any(self._under_way.values()):
                        self._busy_since = time.perf_counter()
                    self._under_way[read.urgency] += 1
                    return read
                self._wanted.wait()
            return None

    def _end(self, read: Read, error: ExpertReadError | None, begin: float) -> None:
        with self._wanted:
            now, times = time.perf_counter(), self._times
            self._under_way[read.urgency] -= 1  # which changes only while it is queued
            if not any(self._under_way.values()):
                times.busy_s += now - self._busy_since
                self._wanted.notify()  # the link is free for what nobody waits for
            times.reads += 1
            times.read_s += now - begin
            times.bytes[read.cause] += self._file.layout.record_bytes
            read.error = error
            read.stage = Stage.DONE if error is None else Stage.FAILED
            times.failed += error is not None

    def _name(self, read: Read, reason: BaseException) -> ExpertReadError:
        """Clients hear of the record, the log of the file as well: where it lies is nobody else's business."""
        where = f"{self._file.path}: "
        said = reason.strerror or repr(reason) if isinstance(reason, OSError) else repr(reason)
        text = f"{self._file.name(read.expert)} cannot be read: {said}"
        if isinstance(reason, BraidError):
            text = str(reason).removeprefix(where)
        logger.error("%s%s", where, text)
        return ExpertReadError(text)
