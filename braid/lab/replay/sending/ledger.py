"""What a sender writes while it runs: outcomes as they end, and counters for whoever watches."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np

from braid.lab.replay.files import COUNTERS, RECENT
from braid.lab.replay.outcome import Outcome

FLUSH_S = 1.0
"""Outcomes are on the disk, or with the kernel, after so long."""


class Ledger:
    """The two files of one sender. A context manager: what was added is written, however it is left.

    Raises:
        OSError: they cannot be written.
    """

    def __init__(self, folder: Path, sender: int) -> None:
        self.counts = dict.fromkeys(COUNTERS, 0)
        shape = (len(COUNTERS) + RECENT,)
        path = folder / f"status-{sender}.npy"
        self._status: Any = np.lib.format.open_memmap(path, mode="w+", dtype=np.int64, shape=shape)
        self._file = (folder / f"outcomes-{sender}.mp").open("wb", buffering=0)
        self._buffer = bytearray()
        self._encode = msgspec.msgpack.Encoder().encode
        self._flushed_s = 0.0

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        self._file.close()
        self._status.flush()

    def add(self, outcome: Outcome) -> None:
        """A request has ended."""
        record = self._encode(outcome)
        self._buffer += len(record).to_bytes(4, "little")
        self._buffer += record
        counts = self.counts
        if outcome.status == "ok" and outcome.chunk_times_s and outcome.scheduled_s is not None:
            ttft_us = int((outcome.chunk_times_s[0] - outcome.scheduled_s) * 1e6)
            self._status[len(COUNTERS) + counts["ok"] % RECENT] = ttft_us
        counts[outcome.status] += 1

    def beat(self, now_s: float) -> None:
        """Show the counters as they are, and write what has waited long enough."""
        self.counts["beat_us"] = int(now_s * 1e6)
        self._status[: len(COUNTERS)] = list(self.counts.values())
        if now_s - self._flushed_s >= FLUSH_S:
            self._flushed_s = now_s
            self._flush()

    def _flush(self) -> None:
        rest = memoryview(self._buffer)
        while rest:
            rest = rest[self._file.write(rest) :]
        rest.release()
        self._buffer = bytearray()
