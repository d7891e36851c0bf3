"""How a run goes while it goes: the senders' counters, added up, for whoever shows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from braid.lab.replay.files import COUNTERS, RECENT

FAILED = ("refused", "error", "timed_out", "cut", "unreachable", "rubbish")
"""Counters of what the server, or the way to it, is to blame for."""
_SUMMED = tuple(name for name in COUNTERS if name not in ("lag_max_us", "beat_us"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """The counters of all senders at one time.

    Args:
        elapsed_s: since the run's start; negative before it.
        span_s: from the run's start to the last planned one of a request that waits for nothing; 0 in concurrency
            mode.
        planned: requests in the plan.
        counts: by the names of ``files.COUNTERS``, without the clock and the lag.
        lag_max_s: the largest send lag so far.
        recent_ttft_s: of the last answered requests, in no order.
        silent_s: since the sender that was silent longest has written its counters.
    """

    elapsed_s: float
    span_s: float
    planned: int
    counts: dict[str, int]
    lag_max_s: float
    recent_ttft_s: npt.NDArray[np.float64]
    silent_s: float

    @property
    def failed(self) -> dict[str, int]:
        """Failures by kind, those that happened."""
        return {name: self.counts[name] for name in FAILED if self.counts[name]}

    @property
    def ended(self) -> int:
        """Requests with an outcome."""
        return sum(self.counts[name] for name in ("ok", "cancelled", "unsent", *FAILED))


class Live(Protocol):
    """Hears how a run goes, a few times a second."""

    def update(self, reading: Reading) -> None: ...

    def stopping(self, why: str) -> None:
        """The run is being stopped."""
        ...


class NoLive:
    def update(self, reading: Reading) -> None:
        pass

    def stopping(self, why: str) -> None:
        pass


class Board:
    """Reads ``status-K.npy`` of every sender of a folder."""

    def __init__(self, folder: Path, num_senders: int, planned: int, span_s: float) -> None:
        self._paths = [folder / f"status-{number}.npy" for number in range(num_senders)]
        self._planned, self._span_s = planned, span_s

    def read(self, elapsed_s: float) -> Reading:
        """As it is now, at ``elapsed_s`` of the run."""
        rows = [row for path in self._paths if (row := _status(path)) is not None]
        counts = {name: sum(int(row[COUNTERS.index(name)]) for row in rows) for name in _SUMMED}
        lag = max((int(row[COUNTERS.index("lag_max_us")]) for row in rows), default=0)
        beats = [int(row[COUNTERS.index("beat_us")]) / 1e6 for row in rows]
        recent = np.concatenate([row[len(COUNTERS) :] for row in rows]) if rows else np.empty(0)
        return Reading(
            elapsed_s=elapsed_s,
            span_s=self._span_s,
            planned=self._planned,
            counts=counts,
            lag_max_s=lag / 1e6,
            recent_ttft_s=recent[recent > 0] / 1e6,
            silent_s=max(0.0, elapsed_s - min(beats, default=elapsed_s)),
        )


def _status(path: Path) -> npt.NDArray[np.int64] | None:
    """None while there is none, or only part of one."""
    try:
        row: npt.NDArray[np.int64] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return row if row.shape == (len(COUNTERS) + RECENT,) else None
