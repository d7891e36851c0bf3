"""How one machine's processors are shared by the lanes of a runner.

A ``Partition`` has units (cores, or groups of SMs) and a ``Seat`` for each lane; how many units a step may use is said
with every plan, so a new split costs what ``Seat.step`` costs and nothing else. What a lane really gets is measured or
read back, never taken from what was asked for.

Backends: ``serial`` (no lanes), ``cpu`` and ``cpu-pinned`` (``partition_cpu``), ``green`` and ``priority``
(``partition_gpu``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch

from braid.core.errors import InvalidParameterError
from braid.device.machine import usable_cores

Errands = Mapping[str, Callable[[Callable[[], Any]], Future[Any]]]
"""By lane, what runs a call on its thread."""

NOTHING: AbstractContextManager[None] = nullcontext()


class Seat(Protocol):
    """What the thread of one lane computes on. A thread that follows a dead one takes the same seat."""

    def begin(self) -> None:
        """On the lane's thread, before its first step."""
        ...

    def step(self, units: int) -> AbstractContextManager[object]:
        """Around every step, on the lane's thread. ``units`` is 0 for all.

        When it is left, whatever was computed inside can be read from every lane.
        """
        ...

    def resize(self, units: int) -> None:
        """Within a step, on the lane's thread: go on with so many units. Only where ``Partition.can_reshare``."""
        ...


class Partition(Protocol):
    """Who computes where."""

    @property
    def name(self) -> str: ...

    @property
    def num_units(self) -> int:
        """Cores, or groups of SMs; lanes whose units add up to no more do not share any (but see ``lines``)."""
        ...

    @property
    def has_lanes(self) -> bool:
        """Whether several lanes can compute at the same time."""
        ...

    @property
    def can_reshare(self) -> bool:
        """Whether ``Seat.resize`` works."""
        ...

    def seat(self, lane: str) -> Seat: ...

    def granted(self, errands: Errands) -> list[str]:
        """What lanes of some sizes really get, in words. Asked once, before anything is served."""
        ...

    def lines(self) -> list[str]:
        """What it is, for those who start an engine."""
        ...


class UnavailableError(Exception):
    """A backend cannot work here; the text says why, and what would help."""


class FixedSeat:
    """Gives a step the same units from its beginning to its end."""

    def resize(self, units: int) -> None:
        raise NotImplementedError("units change between two steps here")


class HereSeat(FixedSeat):
    """Whatever the thread would compute on anyway."""

    def begin(self) -> None:
        pass

    def step(self, units: int) -> AbstractContextManager[object]:
        return NOTHING


class TeamSeat:
    """A CPU thread with a team of its own.

    Args:
        everything: threads of a step that may use all.
    """

    def __init__(self, everything: int) -> None:
        self._everything = everything

    def begin(self) -> None:
        # A new thread takes over the process's setting when it first asks, and forgets what it was told before.
        torch.get_num_threads()

    def step(self, units: int) -> AbstractContextManager[object]:
        self.resize(units or self._everything)
        return NOTHING

    def resize(self, units: int) -> None:
        # Of this thread alone, and of native kernels too; it takes less than a microsecond.
        torch.set_num_threads(units)


class SerialPartition:
    """One lane, which has everything.

    Args:
        why: nothing else was chosen; empty where it was named.
    """

    name = "serial"
    has_lanes = can_reshare = False

    def __init__(self, device: torch.device, threads: int, why: str = "") -> None:
        self.num_units = threads if device.type == "cpu" else 1
        self._is_cpu, self._why = device.type == "cpu", why

    def seat(self, lane: str) -> Seat:
        return TeamSeat(self.num_units) if self._is_cpu else HereSeat()

    def granted(self, errands: Errands) -> list[str]:
        return []

    def lines(self) -> list[str]:
        return [f"partition: serial{f' ({self._why})' if self._why else ''}"]


def open_partition(
    name: str, device: torch.device, *, threads: int, needs_lanes: bool, cores: int | None = None
) -> Partition:
    """The partition of that name, or for ``auto`` the best that works here.

    Args:
        threads: cores that may compute, of a CPU.
        needs_lanes: whether prefill and decode may ever run beside each other.
        cores: that the process may keep busy; None asks the machine.

    Raises:
        InvalidParameterError: a backend was named that does not exist or does not work here.
    """
    cores = usable_cores() if cores is None else cores
    if name == "serial":
        return SerialPartition(device, threads)
    if name != "auto":
        try:
            return _open(name, device, threads, cores)
        except UnavailableError as reason:
            raise InvalidParameterError(f"partition {name!r}: {reason}", param="partition") from None
    if not needs_lanes:
        return SerialPartition(device, threads, "all phases share one lane")
    if device.type != "cpu":
        # Not ``priority``: a second stream alone does not protect decodes.
        return SerialPartition(
            device, threads, "auto: green has not been run on a GPU yet, so it must be named"
        )
    try:
        return _open("cpu", device, threads, cores)
    except UnavailableError as reason:
        return SerialPartition(device, threads, f"auto: cpu does not work here: {reason}")


def _open(name: str, device: torch.device, threads: int, cores: int) -> Partition:
    if name in ("cpu", "cpu-pinned"):
        from braid.runner.partition_cpu import CpuPartition

        return CpuPartition(device, threads, cores, is_pinned=name == "cpu-pinned")
    from braid.runner import partition_gpu

    if device.type != "cuda":
        raise UnavailableError("needs an NVIDIA GPU, and the model is on the CPU; use auto, serial or cpu")
    if name == "green":
        return partition_gpu.GreenPartition(device, partition_gpu.CudaCore(device))
    return partition_gpu.PriorityPartition(device)
