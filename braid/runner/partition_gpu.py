"""Lanes on an NVIDIA GPU: green contexts on disjoint SMs, or streams of different priority.

None of this has been run on a GPU yet; what does not need one is tested with fakes.

The trap that ``GreenPartition`` avoids: up to torch 2.14 every ``torch.cuda.GreenContext.create(num_sms=...)`` divides
the whole device anew, so two of them may hold the same SMs, and it does not tell how many SMs were granted. Here the
device is divided once, into equal groups; every context is made of groups of that one division, and the number of SMs
is read back from it. That takes cuda.core; torch sees its streams as external ones.

Each lane's thread launches on streams of its own. Weights and KV are the same tensors in all lanes. The hand-over from
prefill to decode: at the end of a step an event is recorded, and the result is told only when the event has passed.
The scheduler calls blocks READY after that, so decodes never read what is still being written. A lane without a step
records nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch

from braid.runner.partition import Errands, FixedSeat, Seat, UnavailableError
from braid.sched.config import DECODE, MIXED, PREFILL

_CUDA: Any = torch.cuda
WANTED_GROUPS = 8
"""Splits that are worth telling apart; decode saturates below half of the SMs."""
MIN_GROUPS, MAX_GROUPS = 2, 16


class StreamSeat(FixedSeat):
    """A thread that launches on streams of its own, one for each size.

    Args:
        streams: by units; 0 for all.
        cuda: ``torch.cuda``, or what stands for it in tests.
    """

    def __init__(self, device: torch.device, streams: Mapping[int, Any], cuda: Any = _CUDA) -> None:
        self._device, self._streams, self._cuda = device, streams, cuda

    def begin(self) -> None:
        self._cuda.set_device(self._device)
        self._cuda.synchronize(self._device)  # weights were copied on another stream

    @contextmanager
    def step(self, units: int) -> Iterator[None]:
        """See ``Seat.step``; also after a failure, as kernels may still be writing blocks that are then freed."""
        stream = self._streams[units]
        with self._cuda.stream(stream):
            try:
                yield
            finally:
                done = self._cuda.Event()
                done.record(stream)
                done.synchronize()


class Granted(NamedTuple):
    """A stream that runs on ``num_sms`` SMs, as the driver says."""

    stream: Any
    num_sms: int


class SmSource(Protocol):
    """What divides a device's SMs."""

    @property
    def num_sms(self) -> int: ...

    @property
    def min_sms(self) -> int:
        """Of a group."""
        ...

    @property
    def alignment(self) -> int:
        """Groups have a multiple of so many SMs."""
        ...

    def split(self, sizes: Sequence[int]) -> Sequence[Any]:
        """Disjoint groups. May be called once: groups of two divisions overlap."""
        ...

    def stream(self, groups: Sequence[Any], *, is_urgent: bool) -> Granted:
        """A stream on these groups alone."""
        ...

    def whole(self, *, is_urgent: bool) -> Any:
        """A stream on the whole device."""
        ...


class GreenPartition:
    """Disjoint groups of SMs; prefill takes the first ones, decode (and mixed steps) the last ones.

    All units are the whole device and not a green context: no SM is lost while one phase is alone.

    Raises:
        UnavailableError: the device cannot be divided, or the driver grants what was not asked for.
    """

    name = "green"
    has_lanes = True
    can_reshare = False

    def __init__(self, device: torch.device, source: SmSource, cuda: Any = _CUDA) -> None:
        self._device, self._cuda = device, cuda
        self._size, self.num_units = divide(source.num_sms, source.min_sms, source.alignment)
        self._num_sms = source.num_sms
        groups = _guarded(lambda: source.split([self._size] * self.num_units))
        if len(groups) != self.num_units:
            raise UnavailableError(
                f"{self.num_units} groups of SMs were asked for, the driver made {len(groups)}"
            )
        self._sms: dict[tuple[str, int], int] = {}
        self._streams: dict[str, dict[int, Any]] = {}
        for lane in (PREFILL, DECODE):
            streams = self._streams[lane] = {}
            for units in range(1, self.num_units):
                own = groups[:units] if lane == PREFILL else groups[len(groups) - units :]
                granted = _guarded(partial(source.stream, own, is_urgent=lane == DECODE))
                streams[units], self._sms[lane, units] = granted
            streams[0] = streams[self.num_units] = source.whole(is_urgent=lane == DECODE)
        self._check()

    def _check(self) -> None:
        """Granted counts are the driver's: lanes that share no unit may not hold more SMs than there are."""
        for units in range(1, self.num_units):
            prefill, decode = self._sms[PREFILL, units], self._sms[DECODE, self.num_units - units]
            if min(prefill, decode) < 1 or prefill + decode > self._num_sms:
                raise UnavailableError(
                    f"the driver granted {prefill} and {decode} of {self._num_sms} SMs to lanes that share none"
                )

    def num_sms(self, lane: str, units: int) -> int:
        """As the driver reports, of a lane that does not have all units."""
        return self._sms[lane, units]

    def seat(self, lane: str) -> Seat:
        return StreamSeat(self._device, self._streams[DECODE if lane == MIXED else lane], self._cuda)

    def granted(self, errands: Errands) -> list[str]:
        """As the driver reports; that kernels keep to it is for a measurement on the device."""
        sizes = range(1, self.num_units)
        return [
            f"lane {lane}, SMs by units: {', '.join(f'{units} -> {self._sms[lane, units]}' for units in sizes)}"
            for lane in (PREFILL, DECODE)
        ]

    def lines(self) -> list[str]:
        left = self._num_sms - self._size * self.num_units
        return [
            f"partition: green, {self.num_units} groups of {self._size} SMs"
            f"{f' ({left} SMs idle while both lanes work)' if left else ''}"
        ]


class PriorityPartition:
    """Two streams; the device prefers blocks of decode's kernels when SMs become free. No isolation.

    Units are halves in name only: what a lane really gets depends on the other one's kernels.
    """

    name = "priority"
    has_lanes = True
    can_reshare = False
    num_units = 2

    def __init__(self, device: torch.device, cuda: Any = _CUDA) -> None:
        self._device, self._cuda = device, cuda
        self._urgent = min(cuda.Stream.priority_range())

    def seat(self, lane: str) -> Seat:
        priority = 0 if lane == PREFILL else self._urgent
        stream = self._cuda.Stream(self._device, priority=priority)
        return StreamSeat(self._device, dict.fromkeys(range(self.num_units + 1), stream), self._cuda)

    def granted(self, errands: Errands) -> list[str]:
        return []

    def lines(self) -> list[str]:
        return ["partition: priority (two streams, no isolation: shares are wishes)"]


def divide(num_sms: int, least: int, alignment: int) -> tuple[int, int]:
    """Size and number of equal groups: as few SMs left over as can be, then near ``WANTED_GROUPS`` groups.

    Raises:
        UnavailableError: not even two groups can be made.
    """
    if min(num_sms, least, alignment) < 1:
        raise UnavailableError(f"the driver reports {num_sms} SMs in groups of {least} by {alignment}")
    sizes = range(-(-least // alignment) * alignment, num_sms // MIN_GROUPS + 1, alignment)
    made = [(size, num_sms // size) for size in sizes if num_sms // size <= MAX_GROUPS]
    if not made:
        raise UnavailableError(
            f"{num_sms} SMs cannot be divided into groups of at least {least} by {alignment}"
        )
    return max(made, key=lambda pair: (pair[0] * pair[1], -abs(pair[1] - WANTED_GROUPS)))


class CudaCore:
    """The SMs of a device through cuda.core (1.0 and up).

    Raises:
        UnavailableError: it is not installed, or the driver knows no green contexts.
    """

    def __init__(self, device: torch.device) -> None:
        try:
            core: Any = importlib.import_module("cuda.core")
        except ImportError as error:
            raise UnavailableError(
                f"disjoint groups of SMs need cuda.core ({error}); install cuda-core with the extra of your CUDA, "
                "such as cuda-core[cu13]"
            ) from None
        self._core, self._torch_device = core, device
        self._device = _guarded(lambda: core.Device(device.index or 0))
        _guarded(self._device.set_current)
        self._sm = _guarded(lambda: self._device.resources.sm)
        self.num_sms = int(self._sm.sm_count)
        self.min_sms = int(self._sm.min_partition_size)
        self.alignment = int(self._sm.coscheduled_alignment)
        self._kept: list[Any] = []
        """Contexts and streams live as long as their handles are used."""

    def split(self, sizes: Sequence[int]) -> Sequence[Any]:
        groups, _ = self._sm.split(self._core.SMResourceOptions(count=list(sizes)))
        return list(groups)

    def stream(self, groups: Sequence[Any], *, is_urgent: bool) -> Granted:
        # Several SM resources make one context if they come from the same split.
        context = self._device.create_context(self._core.ContextOptions(resources=list(groups)))
        options = self._core.StreamOptions(nonblocking=True, priority=_priority(is_urgent))
        stream = context.create_stream(options)
        self._kept += [context, stream]
        external = _CUDA.ExternalStream(int(stream.handle), device=self._torch_device)
        return Granted(external, int(context.resources.sm.sm_count))

    def whole(self, *, is_urgent: bool) -> Any:
        return _CUDA.Stream(self._torch_device, priority=_priority(is_urgent))


def _priority(is_urgent: bool) -> int:
    return int((min if is_urgent else max)(_CUDA.Stream.priority_range()))  # lower numbers are more urgent


def _guarded(call: Callable[[], Any]) -> Any:
    """What the driver and its bindings raise has no common class."""
    try:
        return call()
    except Exception as error:
        raise UnavailableError(f"{type(error).__name__}: {error}") from error
