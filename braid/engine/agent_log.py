"""The log of turns as a file: one JSON line per turn's start, stop and kind of end, for ``braid sim regret``.

Lines are made and written by a thread of their own; the loop only hands events over. Whatever goes wrong there ends the
log with one warning, never a turn. What is in a line: ``braid.sched.event_log``; no text, no token, no plain id.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from queue import Full, Queue
from typing import BinaryIO

from braid.core.errors import BraidError
from braid.core.hashing import Hasher
from braid.policy.agents.program import Finish, ProgramId
from braid.policy.phases.policy import Decided
from braid.sched.event_log import EventLines, Line, head
from braid.sched.observer import TurnStart, TurnStop

logger = logging.getLogger(__name__)

MOST_PER_SECOND = 2000
"""Lines that are written; what comes beyond is dropped and counted."""
_QUEUED = 512
_CLOSE_SECONDS = 5.0

_Event = Callable[[], Line]


class AgentLog:
    """An ``Observer`` that writes.

    Args:
        path: appended to; only the owner may read it.
        num_blocks, block_size: of the device's KV store.
        policy: its name.

    Raises:
        BraidError: ``path`` cannot be written.
    """

    def __init__(self, path: Path, *, num_blocks: int, block_size: int, policy: str) -> None:
        self._path = path
        hasher = Hasher()
        self._lines = EventLines(lambda program: hasher.name(*program), num_blocks=num_blocks)
        self._queue: Queue[_Event | None] = Queue(_QUEUED)
        self._off = False
        self._second = self._num_in_second = 0
        self.num_dropped = 0
        self._num_told = 0
        """Of the dropped ones, how many the log itself tells of."""
        try:
            self._file = _open(path)
            self._write(head(block_size, num_blocks, policy))
        except OSError as error:
            raise BraidError(f"cannot write the agent log {path}: {error.strerror or error}") from None
        self._thread = threading.Thread(target=self._run, name="agent-log", daemon=True)
        self._thread.start()

    def started(self, turn: TurnStart) -> None:
        self._put(turn.now, lambda: self._lines.started(turn))

    def stopped(self, turn: TurnStop) -> None:
        self._put(turn.now, lambda: self._lines.stopped(turn))

    def told(self, program: ProgramId, finish: Finish, now: float) -> None:
        self._put(now, lambda: self._lines.told(program, finish, now))

    def decided(self, decided: Decided) -> None:
        """How the phases share the machine has changed."""
        self._put(decided.demand.now, lambda: self._lines.decided(decided))

    def close(self) -> None:
        """Write what is queued."""
        with contextlib.suppress(Full):
            self._queue.put(None, timeout=_CLOSE_SECONDS)
        self._thread.join(_CLOSE_SECONDS)

    def _put(self, now: float, event: _Event) -> None:
        """Never blocks, never raises. Called by one thread only."""
        second = int(now)
        if second != self._second:
            self._second, self._num_in_second = second, 0
        self._num_in_second += 1
        if self._off or self._num_in_second > MOST_PER_SECOND:
            self.num_dropped += 1
            return
        try:
            self._queue.put_nowait(event)
        except Full:
            self.num_dropped += 1

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            if self._off:
                continue
            try:
                self._tell_dropped()
                self._write(event())
            except Exception as error:
                self._off = True
                logger.warning("the agent log is off from here on: %s: %s", self._path, error)
        self._file.close()

    def _tell_dropped(self) -> None:
        dropped = self.num_dropped - self._num_told
        if dropped:
            self._num_told += dropped
            self._write({"event": "dropped", "lines": dropped})

    def _write(self, line: Line) -> None:
        """Whole lines only, unbuffered: a full disk shows here, and a killed engine loses nothing."""
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        size = self._file.tell()
        if self._file.write(data) != len(data):
            self._file.truncate(size)
            raise OSError("the disk took only a part of a line")


def _open(path: Path) -> BinaryIO:
    """Unbuffered, at the end."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    file = os.fdopen(descriptor, "ab", buffering=0)
    file.seek(0, os.SEEK_END)
    return file
