"""Lanes on a CPU: every lane's thread has an OpenMP team of its own, as large as its step says.

Teams are unpinned unless asked for: the kernel keeps two teams of no more threads than cores apart by itself. Pinned
ones sit on disjoint cores, prefill on the first and decode on the last, and then a new split also moves the threads.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from braid.runner.partition import Errands, Seat, TeamSeat, UnavailableError
from braid.sched.config import PREFILL

logger = logging.getLogger(__name__)

PROBE_S = 0.02
"""Seconds of arithmetic from which a share is read."""
_BUSY = 0.25
"""Of the busiest thread's time: who computed less than that was not in the team."""
_TASKS = Path("/proc/self/task")


class CpuPartition:
    """Lanes that share the cores.

    Args:
        threads: cores that may compute.
        cores: that this process may keep busy.

    Raises:
        UnavailableError: the model is elsewhere, there are not two cores, or threads cannot be pinned here.
    """

    has_lanes = can_reshare = True

    def __init__(self, device: torch.device, threads: int, cores: int, *, is_pinned: bool = False) -> None:
        if device.type != "cpu":
            raise UnavailableError(f"the model is on {device}, and lanes of cores need it on the CPU")
        if min(threads, cores) < 2:
            raise UnavailableError(
                f"two lanes need two cores, and there {'is' if min(threads, cores) == 1 else 'are'} "
                f"{min(threads, cores)} (usable: {cores}, threads: {threads})"
            )
        self.name = "cpu-pinned" if is_pinned else "cpu"
        self.num_units = threads
        self._pin = _pinner(threads) if is_pinned else None

    def seat(self, lane: str) -> Seat:
        if self._pin is None:
            return TeamSeat(self.num_units)
        return PinnedSeat(self.num_units, self._pin, is_first=lane == PREFILL)

    def granted(self, errands: Errands) -> list[str]:
        """Measured by the CPU time of threads: how many computed, and how many cores' worth they got."""
        sizes = sorted({1, self.num_units - 1, self.num_units})
        found: list[str] = []
        for lane, call in errands.items():
            seat = self.seat(lane)
            shares = [(units, call(partial(_share, seat, units)).result()) for units in sizes]
            found.append(_told(lane, shares))
        return found

    def lines(self) -> list[str]:
        how = "each lane pinned to its cores" if self._pin is not None else "not pinned"
        return [f"partition: {self.name}, {self.num_units} cores, {how}"]


def _told(lane: str, shares: Sequence[tuple[int, tuple[int, float] | None]]) -> str:
    measured = [(units, share) for units, share in shares if share is not None]
    if not measured:
        return f"lane {lane}: its share cannot be measured on this system"
    wrong = [f"{units} wanted, {share[0]} computed" for units, share in measured if share[0] != units]
    if wrong:
        logger.warning("the team of lane %s does not follow its size: %s", lane, "; ".join(wrong))
    parts = [f"{units} -> {threads} threads, {cores:.2f} CPU" for units, (threads, cores) in measured]
    return f"lane {lane}, cores asked for and measured: {'; '.join(parts)}"


def _share(seat: Seat, units: int) -> tuple[int, float] | None:
    """On a lane's thread: how many threads compute in a step of ``units``, and their CPU seconds per second.

    Nothing else may compute in this process meanwhile. None where the kernel does not tell.
    """
    numbers = torch.full((1 << 20,), 0.5)
    with seat.step(units):
        numbers.sin_()  # the team is made
        before, begin = _cpu_seconds(), time.perf_counter()
        while time.perf_counter() - begin < PROBE_S:
            numbers.sin_()
        took, after = time.perf_counter() - begin, _cpu_seconds()
    if before is None or after is None:
        return None
    gained = [seconds - before.get(task, 0.0) for task, seconds in after.items()]
    busiest = max(gained)
    return sum(seconds > _BUSY * busiest for seconds in gained), sum(gained) / took


def _cpu_seconds() -> dict[int, float] | None:
    """By thread of this process, the time it has computed; None where that is not told."""
    try:
        return {int(task.name): _run_seconds(task) for task in _TASKS.iterdir()}
    except (OSError, ValueError, IndexError):
        return None


def _run_seconds(task: Path) -> float:
    try:
        return int((task / "schedstat").read_text().split()[0]) / 1e9
    except ProcessLookupError:  # it has ended meanwhile
        return 0.0


Pin = Callable[[int, bool], None]
"""Moves the calling thread and its team, of so many members, to the first or the last of the cores."""


class PinnedSeat(TeamSeat):
    """The same, on cores of its own."""

    def __init__(self, everything: int, pin: Pin, *, is_first: bool) -> None:
        super().__init__(everything)
        self._pin, self._is_first = pin, is_first
        self._units: int | None = None

    def begin(self) -> None:
        super().begin()
        self._units = None

    def resize(self, units: int) -> None:
        super().resize(units)
        if units != self._units:
            self._pin(units, self._is_first)
            self._units = units


def _pinner(threads: int) -> Pin:
    """What pins teams of this process.

    Raises:
        UnavailableError: there are fewer cores than threads, or torch's OpenMP runtime is not known.
    """
    get, put = getattr(os, "sched_getaffinity", None), getattr(os, "sched_setaffinity", None)
    cores = [] if get is None else sorted(get(0))
    if put is None or len(cores) < threads:
        raise UnavailableError(
            f"{threads} threads cannot each have a core, the process may run on {len(cores)}; use cpu"
        )
    members = _census()
    cores = cores[:threads]

    def pin(units: int, is_first: bool) -> None:
        own = cores[:units] if is_first else cores[len(cores) - units :]
        put(0, own)  # of this thread, and so of members that are still to come
        for member in members(units):
            put(member, own)

    return pin


def _census() -> Callable[[int], set[int]]:
    """What tells the native ids of the calling thread's team, by having each member say its own.

    Members that were there before do not follow their master to other cores, so each has to be told.
    """
    try:
        paths = {
            line.split(maxsplit=5)[-1].strip() for line in Path("/proc/self/maps").read_text().splitlines()
        }
        home = str(Path(torch.__file__).parent)
        runtime = min(
            (path for path in paths if Path(path).name.startswith(("libgomp", "libomp", "libiomp5"))),
            key=lambda path: not path.startswith((home, f"{home}.libs")),
        )
        parallel = ctypes.CDLL(runtime).GOMP_parallel
    except (OSError, ValueError, AttributeError) as error:
        raise UnavailableError(
            f"torch's OpenMP runtime cannot be asked who is in a team ({error}); use cpu"
        ) from None
    parallel.restype = None
    parallel.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)

    def members(count: int) -> set[int]:
        found: set[int] = set()
        say = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: found.add(threading.get_native_id()))
        parallel(ctypes.cast(say, ctypes.c_void_p), None, count, 0)
        return found

    return members
