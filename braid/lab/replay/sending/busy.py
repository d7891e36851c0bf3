"""How long the event loop was busy with other things before it came to read what had arrived."""

from __future__ import annotations

import asyncio
import os
import resource
from pathlib import Path

_SCHEDSTAT = Path("/proc/thread-self/schedstat")


class Busy:
    """Knows, for what is read now, since when it may have been lying there.

    Loops have no hook around the wait for work, so it is seen from the callbacks: the first of a turn asks to be
    called before the next wait. What is found after that wait came
    - while waiting, if the wait put the thread to sleep, since it would not have slept otherwise: it was read at
      once, but for the time that the machine had no core for the thread;
    - or else while the turn before was at work: at the earliest when that turn found its own work.

    Args:
        thread: what the system counts of this thread.
    """

    __slots__ = ("_loop", "_since", "_sleeps", "_thread", "_waited_s", "_waiting", "_woke_s")

    def __init__(self, loop: asyncio.AbstractEventLoop, thread: ThreadCounts) -> None:
        self._loop = loop
        self._thread = thread
        self._waited_s = thread.core_wait_s()
        self._waiting = True
        self._sleeps = -1
        self._woke_s = self._since = float("-inf")

    def enter(self, now_s: float) -> float:
        """A callback begins, by ``time.monotonic()``: the longest that what it reads can have been there."""
        if self._waiting:
            self._waiting = False
            waited_s = self._thread.core_wait_s()
            self._since = self._woke_s
            if self._thread.num_sleeps() != self._sleeps:
                self._since = max(self._woke_s, now_s - (waited_s - self._waited_s))
            self._waited_s = waited_s
            self._woke_s = now_s
            self._loop.call_soon(self._turn)
        return now_s - self._since

    def _turn(self) -> None:
        self._sleeps = self._thread.num_sleeps()
        self._waiting = True


class ThreadCounts:
    """What the system counts of the thread that made this."""

    def __init__(self) -> None:
        # Of the process, where nobody counts threads: ours does nothing in others.
        self._who = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
        try:
            self._file = os.open(_SCHEDSTAT, os.O_RDONLY)
        except OSError:
            self._file = -1
        self._last_s = 0.0

    def num_sleeps(self) -> int:
        """How often it has waited for something, ever."""
        return resource.getrusage(self._who).ru_nvcsw

    def core_wait_s(self) -> float:
        """Seconds that it was ready and had no core, ever; 0 where nobody counts."""
        if self._file >= 0:
            self._last_s = int(os.pread(self._file, 64, 0).split()[1]) / 1e9
        return self._last_s

    def close(self) -> None:
        """``core_wait_s`` goes on to tell what it told last."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
