"""A lane's thread that ends: its step is answered, another thread follows, and what is broken for good is given up."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from braid.core.step import StepPlan, StepResult, Work
from braid.runner.lane import MAX_DEATHS, LaneThread

WAIT_S = 60
ERRORS = {"r": "buried"}


class Seat:
    """Calls what tests put in."""

    def __init__(self) -> None:
        self.num_begun = 0
        self.at_begin: Callable[[], None] = lambda: None
        self.at_end: Callable[[], None] = lambda: None

    def begin(self) -> None:
        self.num_begun += 1
        self.at_begin()

    @contextmanager
    def step(self, units: int) -> Iterator[None]:
        yield
        self.at_end()


class Rig:
    def __init__(self) -> None:
        self.seat = Seat()
        self.told: queue.SimpleQueue[StepResult | BaseException] = queue.SimpleQueue()
        self.at_step: Callable[[], None] = lambda: None
        self.at_burial: Callable[[], None] = lambda: None
        self.lane = LaneThread("test", self._execute, self._bury, self.told.put, self.seat)

    def step(self) -> StepResult | BaseException:
        self.lane.submit(StepPlan(7, "decode", (Work("r", [1], 0, [0], None),)))
        return self.told.get(timeout=WAIT_S)

    def _execute(self, plan: StepPlan) -> StepResult:
        self.at_step()
        return StepResult(plan.step_id, plan.lane, 0.0, 0.0, {})

    def _bury(self, plan: StepPlan, error: BaseException) -> StepResult:
        self.at_burial()
        return StepResult(plan.step_id, plan.lane, 0.0, 0.0, {}, ERRORS)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.lane.close()


def ends() -> None:
    raise SystemExit("the thread ends")


def fine() -> None:
    pass


def errors(outcome: StepResult | BaseException) -> dict[str, str]:
    assert isinstance(outcome, StepResult), outcome
    return dict(outcome.errors)


def test_a_dead_thread_is_followed_by_one_that_begins_anew(rig: Rig) -> None:
    assert errors(rig.step()) == {}
    rig.at_step = ends
    assert errors(rig.step()) == ERRORS
    rig.at_step = fine
    assert errors(rig.step()) == {}
    assert (rig.lane.num_restarts, rig.seat.num_begun) == (1, 2)


def test_a_step_that_is_served_ends_a_row_of_deaths(rig: Rig) -> None:
    for _ in range(3):
        rig.at_step = ends
        for _ in range(MAX_DEATHS - 1):
            assert errors(rig.step()) == ERRORS
        rig.at_step = fine
        assert errors(rig.step()) == {}


def test_a_seat_that_is_broken_costs_a_plan_each_time_and_then_the_lane(rig: Rig) -> None:
    rig.seat.at_begin = ends
    for _ in range(MAX_DEATHS - 1):
        assert errors(rig.step()) == ERRORS
    assert isinstance(rig.step(), SystemExit)


def test_what_a_device_says_at_the_end_of_a_step_is_heard(rig: Rig) -> None:
    """The step looked fine, but its kernels had failed: nothing of it is told."""
    rig.seat.at_end = ends
    assert errors(rig.step()) == ERRORS


def test_a_plan_that_cannot_be_buried_ends_the_lane(rig: Rig) -> None:
    rig.at_step = rig.at_burial = ends
    assert isinstance(rig.step(), SystemExit)


def test_a_thread_that_cannot_be_started_ends_the_lane(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(rig.lane, "_start", none)
    rig.at_step = ends
    outcome = rig.step()
    assert isinstance(outcome, RuntimeError)
    assert "can't start" in str(outcome)


def test_an_errand_on_a_broken_seat_is_answered(rig: Rig) -> None:
    rig.seat.at_begin = ends
    with pytest.raises(SystemExit):
        rig.lane.call(fine).result(WAIT_S)
    rig.seat.at_begin = fine
    assert rig.lane.call(lambda: 3).result(WAIT_S) == 3
    assert rig.lane.num_restarts == 0
