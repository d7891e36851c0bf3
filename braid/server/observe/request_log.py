"""The request log: what came when and how long it was, one JSON line per prompt, for the workload lab.

No text and no token ids: prompts are lists of salted block hashes, programs are salted hashes. Lines are made and
written by a thread of their own. Whatever goes wrong there ends the log with one warning, never a request.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import OrderedDict
from pathlib import Path
from queue import Full, Queue
from typing import Any, BinaryIO

import msgspec

from braid.core.errors import BraidError
from braid.core.hashing import LOG_BLOCK_SIZE, Hasher
from braid.server.lifecycle import RequestRecord
from braid.server.observe.instruments import Counter
from braid.server.observe.report import CallReport

logger = logging.getLogger(__name__)

VERSION = 1
_QUEUED = 256
_PROGRAMS = 16_384
_LONGEST_NAME = 64
_CLOSE_SECONDS = 5.0


class _Entry(msgspec.Struct, frozen=True, gc=False):
    """A finished call, as the event loop hands it over."""

    arrival: float
    elapsed: float
    endpoint: str
    status: int
    stream: bool
    call: CallReport


class RequestLog:
    """Args:
        path: appended to.
        max_bytes: a file that would grow beyond is renamed to ``FILE.1`` and a new one begun.
        dropped: counts the calls that found the queue full or the log off.

    Raises:
        BraidError: ``path`` cannot be written.
    """

    def __init__(self, path: Path, max_bytes: int, hasher: Hasher, dropped: Counter) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._hasher = hasher
        self._dropped = dropped
        self._turns: OrderedDict[str, int] = OrderedDict()
        self._queue: Queue[_Entry | None] = Queue(_QUEUED)
        self._off = False
        try:
            self._file = _open(path)
        except OSError as error:
            raise BraidError(f"cannot write the request log {path}: {error.strerror}") from None
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()

    def note(self, record: RequestRecord, endpoint: str) -> None:
        """Hand a request over; those that generated nothing are left out. Never blocks, never raises."""
        if record.call is None:
            return
        elapsed = time.perf_counter() - record.start
        entry = _Entry(time.time() - elapsed, elapsed, endpoint, record.status, record.streamed, record.call)
        if self._off:
            self._dropped.inc()
            return
        try:
            self._queue.put_nowait(entry)
        except Full:
            self._dropped.inc()

    def close(self) -> None:
        """Write what is queued."""
        with contextlib.suppress(Full):
            self._queue.put(None, timeout=_CLOSE_SECONDS)
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        while (entry := self._queue.get()) is not None:
            if not self._off:
                self._try_write(entry)
        self._file.close()

    def _try_write(self, entry: _Entry) -> None:
        try:
            self._write(self._lines(entry))
        except Exception as error:
            self._off = True
            logger.warning("the request log is off from here on: %s: %s", self._path, error)

    def _write(self, data: bytes) -> None:
        """Whole calls only, unbuffered: a full disk shows here, and a killed server loses nothing."""
        size = self._file.tell()
        if size and size + len(data) > self._max_bytes:
            self._file.close()
            os.replace(self._path, self._path.with_name(self._path.name + ".1"))
            self._file = _open(self._path)
        written = self._file.write(data)
        if written != len(data):
            self._file.truncate(size)
            raise OSError("the disk took only a part of a line")

    def _lines(self, entry: _Entry) -> bytes:
        call = entry.call
        who = self._who(call)
        encode = msgspec.json.encode
        return b"".join(encode(self._line(entry, who, number)) + b"\n" for number in range(len(call.prompts)))

    def _who(self, call: CallReport) -> dict[str, Any]:
        """The program's part of a line. A turn is a call of a program that was logged, counted from 1."""
        program = call.program
        if program is None:
            return {"program": None, "parent": None, "turn": None, "final": False}
        name = self._hasher.name(program.owner, program.program)
        turn = self._turns.pop(name, 0) + 1
        self._turns[name] = turn
        if len(self._turns) > _PROGRAMS:
            self._turns.popitem(last=False)
        parent = None if program.parent is None else self._hasher.name(program.owner, program.parent)
        return {"program": name, "parent": parent, "turn": turn, "final": program.final}

    def _line(self, entry: _Entry, who: dict[str, Any], number: int) -> dict[str, Any]:
        call = entry.call
        choices = range(number * call.n, (number + 1) * call.n)
        prompt = call.prompts[number]
        return {
            "v": VERSION,
            "arrival": round(entry.arrival, 6),
            "scope": self._hasher.scope,
            **who,
            "endpoint": entry.endpoint,
            "model": call.model,
            "stream": entry.stream,
            "status": entry.status,
            "finish_reason": call.reason_of(choices),
            "n": call.n,
            "prompt_tokens": len(prompt),
            "cached_tokens": call.num_cached_tokens.get(choices[0], 0),
            "output_tokens": sum(call.num_tokens.get(choice, 0) for choice in choices),
            "ttft_s": None if call.ttft is None else round(call.ttft, 6),
            "elapsed_s": round(entry.elapsed, 6),
            "tools": [name[:_LONGEST_NAME] for name in call.call_names],
            "block_size": LOG_BLOCK_SIZE,
            "hash_ids": self._hasher.prefix_ids(prompt, call.cache_salt),
        }


def _open(path: Path) -> BinaryIO:
    """Unbuffered, at the end; only the owner may read it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    file = os.fdopen(descriptor, "ab", buffering=0)
    file.seek(0, os.SEEK_END)
    return file
