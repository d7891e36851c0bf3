"""Teams of cores: measured by what threads have computed, pinned where that was asked for."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import torch

from braid.core.step import StepPlan, StepResult
from braid.runner import partition_cpu
from braid.runner.lane import LaneThread
from braid.runner.partition import Seat, UnavailableError
from braid.runner.partition_cpu import CpuPartition, PinnedSeat
from braid.sched.config import DECODE, PREFILL

CPU = torch.device("cpu")
needs_two = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")


class Lanes:
    """Two threads that run calls on a partition's seats."""

    def __init__(self, partition: CpuPartition) -> None:
        self.seats = {lane: partition.seat(lane) for lane in (PREFILL, DECODE)}
        self.threads = {lane: thread(lane, seat) for lane, seat in self.seats.items()}
        self.errands = {lane: made.call for lane, made in self.threads.items()}

    def close(self) -> None:
        for made in self.threads.values():
            made.close()


def thread(lane: str, seat: Seat) -> LaneThread:
    def result(plan: StepPlan, error: BaseException | None = None) -> StepResult:
        return StepResult(plan.step_id, plan.lane, 0.0, 0.0, {})

    return LaneThread(lane, result, result, lambda found: None, seat)


@pytest.fixture
def make() -> Iterator[Callable[..., Lanes]]:
    made: list[Lanes] = []

    def lanes(**options: Any) -> Lanes:
        made.append(Lanes(CpuPartition(CPU, 2, 2, **options)))
        return made[-1]

    yield lanes
    for each in made:
        each.close()


@needs_two
def test_what_lanes_get_is_measured(make: Callable[..., Lanes]) -> None:
    found = CpuPartition(CPU, 2, 2).granted(make().errands)
    for lane, line in zip((PREFILL, DECODE), found, strict=True):
        # What a team gets within milliseconds is the machine's to say.
        teams = r"cores asked for and measured: 1 -> \d+ threads, [0-9.]+ CPU; 2 -> \d+ threads, [0-9.]+ CPU"
        assert re.fullmatch(rf"lane {lane}(, {teams}|: its share cannot be measured on this system)", line)


def test_a_team_that_does_not_follow_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(partition_cpu, "_share", lambda seat, units: (2, 1.9))

    def here(call: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(call())
        return future

    with caplog.at_level(logging.WARNING):
        (line,) = CpuPartition(CPU, 2, 2).granted({DECODE: here})
    assert "1 -> 2 threads, 1.90 CPU" in line
    assert "1 wanted, 2 computed" in caplog.text


def test_what_cannot_be_measured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_cpu, "_cpu_seconds", lambda: None)

    def here(call: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(call())
        return future

    before = torch.get_num_threads()
    try:
        (line,) = CpuPartition(CPU, 2, 2).granted({DECODE: here})
    finally:
        torch.set_num_threads(before)
    assert "cannot be measured" in line


def affinities(lanes: Lanes, lane: str, units: int) -> list[frozenset[int]]:
    """Where each member of the lane's team may run, after a step of so many units."""

    def look() -> list[frozenset[int]]:
        with lanes.seats[lane].step(units):
            members = partition_cpu._census()(units)
        assert len(members) == units
        return [frozenset(os.sched_getaffinity(member)) for member in sorted(members)]

    return lanes.errands[lane](look).result(60)


@needs_two
def test_pinned_lanes_sit_on_disjoint_cores_and_move_with_the_split(make: Callable[..., Lanes]) -> None:
    cores = sorted(os.sched_getaffinity(0))[:2]
    lanes = make(is_pinned=True)
    for _ in range(3):
        for lane in (PREFILL, DECODE):
            assert affinities(lanes, lane, 2) == [frozenset(cores)] * 2
        assert affinities(lanes, PREFILL, 1) == [frozenset(cores[:1])]
        assert affinities(lanes, DECODE, 1) == [frozenset(cores[1:])]
    assert len(os.sched_getaffinity(0)) >= 2  # this thread's own is as it was


def test_a_pinned_seat_moves_only_when_its_size_changes() -> None:
    moves: list[tuple[int, bool]] = []
    before = torch.get_num_threads()
    try:
        seat = PinnedSeat(2, lambda units, is_first: moves.append((units, is_first)), is_first=True)
        for units in (1, 1, 2, 0, 1):
            with seat.step(units):
                pass
        seat.begin()  # a new thread on the same seat
        with seat.step(1):
            pass
    finally:
        torch.set_num_threads(before)
    assert moves == [(1, True), (2, True), (1, True), (1, True)]


def test_more_threads_than_cores_cannot_be_pinned() -> None:
    with pytest.raises(UnavailableError, match="cannot each have a core"):
        CpuPartition(CPU, 1000, 1000, is_pinned=True)


def test_an_errand_that_fails_ends_nobody(make: Callable[..., Lanes]) -> None:
    lanes = make()

    def wrong() -> None:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        lanes.errands[DECODE](wrong).result(60)
    assert lanes.errands[DECODE](threading.get_native_id).result(60) != threading.get_native_id()
