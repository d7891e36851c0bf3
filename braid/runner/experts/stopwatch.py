"""How long a device computes: on a GPU it says so itself, and later."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import NamedTuple

import torch


class Computed(NamedTuple):
    seconds: float
    experts: int
    rows: int


class _Begun(NamedTuple):
    begin: torch.cuda.Event
    end: torch.cuda.Event
    experts: int
    rows: int


class _Here(threading.local):
    """Of one thread, the oldest first: what the GPU may not be done with, and what is done."""

    def __init__(self) -> None:
        self.begun: deque[_Begun] = deque()
        self.done: list[Computed] = []


class Stopwatch:
    """Each thread measures what it launches itself, in its own stream."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._here = _Here()

    def begin(self) -> float | torch.cuda.Event:
        """Before the kernels are launched; for ``end``."""
        return self._event() if self._is_cuda else time.perf_counter()

    def end(self, begin: float | torch.cuda.Event, experts: int, rows: int) -> None:
        """After they were."""
        here = self._here
        if isinstance(begin, float):
            here.done.append(Computed(time.perf_counter() - begin, experts, rows))
        else:
            here.begun.append(_Begun(begin, self._event(), experts, rows))

    def take(self) -> list[Computed]:
        """What is known by now and was not told before; waits for nothing."""
        here = self._here
        while here.begun and here.begun[0].end.query():  # type: ignore[no-untyped-call]
            begin, end, experts, rows = here.begun.popleft()
            here.done.append(Computed(begin.elapsed_time(end) / 1000, experts, rows))
        done, here.done = here.done, []
        return done

    @staticmethod
    def _event() -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
