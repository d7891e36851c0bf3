"""Green contexts and streams, as far as that can be told without a GPU: who gets which groups, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch

from braid.runner.partition import UnavailableError
from braid.runner.partition_gpu import Granted, GreenPartition, PriorityPartition, StreamSeat, divide
from braid.sched.config import DECODE, MIXED, PREFILL

DEVICE = torch.device("cuda", 0)


class FakeStream(NamedTuple):
    """Which SMs it runs on."""

    sms: frozenset[int]
    is_urgent: bool


class FakeSms:
    """A device whose driver grants ``extra`` SMs more than asked for to every context."""

    def __init__(self, num_sms: int = 132, least: int = 8, alignment: int = 8, extra: int = 0) -> None:
        self.num_sms, self.min_sms, self.alignment = num_sms, least, alignment
        self.num_splits, self._extra = 0, extra

    def split(self, sizes: Sequence[int]) -> Sequence[Any]:
        self.num_splits += 1
        starts = [sum(sizes[:index]) for index in range(len(sizes))]
        return [frozenset(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]

    def stream(self, groups: Sequence[Any], *, is_urgent: bool) -> Granted:
        sms = frozenset[int]().union(*groups)
        return Granted(FakeStream(sms, is_urgent), len(sms) + self._extra)

    def whole(self, *, is_urgent: bool) -> FakeStream:
        return FakeStream(frozenset(range(self.num_sms)), is_urgent)


class FakeCuda:
    """Writes down what happens in which order."""

    def __init__(self) -> None:
        self.told: list[str] = []
        told = self.told

        class Event:
            def record(self, stream: object) -> None:
                told.append(f"record on {stream}")

            def synchronize(self) -> None:
                told.append("synchronize event")

        class Stream:
            def __init__(self, device: torch.device, priority: int) -> None:
                self.priority = priority

            def __repr__(self) -> str:
                return f"priority {self.priority}"

            @staticmethod
            def priority_range() -> tuple[int, int]:
                return (0, -5)

        self.Event, self.Stream = Event, Stream

    def set_device(self, device: torch.device) -> None:
        self.told.append(f"device {device}")

    def synchronize(self, device: torch.device) -> None:
        self.told.append("synchronize device")

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        self.told.append(f"enter {stream}")
        yield
        self.told.append(f"leave {stream}")


def sms(partition: GreenPartition, lane: str, units: int) -> FakeStream:
    seat = partition.seat(lane)
    assert isinstance(seat, StreamSeat)
    stream: FakeStream = seat._streams[units]
    return stream


def test_every_split_is_disjoint_and_comes_from_one_division() -> None:
    source = FakeSms()
    partition = GreenPartition(DEVICE, source, FakeCuda())
    assert source.num_splits == 1
    assert partition.num_units == 8
    for units in range(1, 8):
        prefill, decode = sms(partition, PREFILL, units), sms(partition, DECODE, 8 - units)
        assert not prefill.sms & decode.sms
        assert (len(prefill.sms), len(decode.sms)) == (16 * units, 16 * (8 - units))
        assert (prefill.is_urgent, decode.is_urgent) == (False, True)
        assert sms(partition, MIXED, units) == sms(partition, DECODE, units)


def test_who_is_alone_has_the_whole_device() -> None:
    partition = GreenPartition(DEVICE, FakeSms(), FakeCuda())
    for lane in (PREFILL, DECODE, MIXED):
        assert len(sms(partition, lane, 8).sms) == len(sms(partition, lane, 0).sms) == 132


def test_what_is_told_are_the_drivers_numbers() -> None:
    partition = GreenPartition(DEVICE, FakeSms(), FakeCuda())
    assert partition.lines() == ["partition: green, 8 groups of 16 SMs (4 SMs idle while both lanes work)"]
    assert partition.granted({})[0].startswith("lane prefill, SMs by units: 1 -> 16, 2 -> 32")


def test_contexts_that_overlap_are_refused() -> None:
    with pytest.raises(UnavailableError, match="to lanes that share none"):
        GreenPartition(DEVICE, FakeSms(extra=8), FakeCuda())


def test_what_the_driver_says_reaches_the_user() -> None:
    class Old(FakeSms):
        def split(self, sizes: Sequence[int]) -> Sequence[Any]:
            raise RuntimeError("CUDA_ERROR_NOT_SUPPORTED")

    with pytest.raises(UnavailableError, match="CUDA_ERROR_NOT_SUPPORTED"):
        GreenPartition(DEVICE, Old(), FakeCuda())

    class Short(FakeSms):
        def split(self, sizes: Sequence[int]) -> Sequence[Any]:
            return super().split(sizes)[:-1]

    with pytest.raises(UnavailableError, match="the driver made 7"):
        GreenPartition(DEVICE, Short(), FakeCuda())


@pytest.mark.parametrize(
    ("num_sms", "least", "alignment", "expected"),
    [
        (132, 8, 8, (16, 8)),  # H100
        (108, 4, 2, (12, 9)),  # A100
        (142, 4, 2, (20, 7)),  # L40S
        (40, 2, 2, (4, 10)),  # T4
        (16, 8, 8, (8, 2)),
    ],
)
def test_groups_leave_few_sms_over(
    num_sms: int, least: int, alignment: int, expected: tuple[int, int]
) -> None:
    assert divide(num_sms, least, alignment) == expected


@pytest.mark.parametrize(("num_sms", "least", "alignment"), [(8, 8, 8), (15, 8, 8), (132, 8, 0), (0, 2, 2)])
def test_a_device_that_makes_no_two_groups_is_refused(num_sms: int, least: int, alignment: int) -> None:
    with pytest.raises(UnavailableError):
        divide(num_sms, least, alignment)


def test_a_step_is_over_when_its_stream_is() -> None:
    cuda = FakeCuda()
    seat = StreamSeat(DEVICE, {0: "all", 1: "half"}, cuda)
    seat.begin()
    with seat.step(1):
        cuda.told.append("compute")
    assert cuda.told == [
        "device cuda:0", "synchronize device", "enter half", "compute", "record on half", "synchronize event",
        "leave half",
    ]  # fmt: skip


def test_a_step_that_fails_is_waited_for_too() -> None:
    cuda = FakeCuda()
    with pytest.raises(SystemExit), StreamSeat(DEVICE, {0: "all"}, cuda).step(0):
        raise SystemExit
    assert cuda.told[-2:] == ["record on all", "synchronize event"]


def test_decodes_go_first_where_there_are_only_priorities() -> None:
    cuda = FakeCuda()
    partition = PriorityPartition(DEVICE, cuda)
    for lane, priority in ((PREFILL, 0), (DECODE, -5), (MIXED, -5)):
        with partition.seat(lane).step(1):
            pass
        assert f"enter priority {priority}" in cuda.told
        cuda.told.clear()
    assert "no isolation" in partition.lines()[0]
