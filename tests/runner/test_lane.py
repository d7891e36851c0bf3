"""Each lane has as many threads as its step says, whatever the other lane has. Judged by what threads have computed."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import braid.kernels as ops
from braid.core.step import StepPlan, StepResult
from braid.runner.lane import LaneThread
from braid.runner.partition import TeamSeat

WAIT_S = 120
pytestmark = pytest.mark.skipif(
    not Path("/proc/thread-self/schedstat").exists(),
    reason="this system does not tell what threads have computed",
)


def cpu_ns() -> dict[int, int]:
    """What every thread of this process has computed so far."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        try:
            found[int(task.name)] = int((task / "schedstat").read_text().split()[0])
        except OSError:  # it has just ended
            continue
    return found


def workers(work: Callable[[], None]) -> list[float]:
    """CPU time of every thread that takes part in what is done by this one, over its own; the largest first."""
    own, before = threading.get_native_id(), cpu_ns()
    work()
    after = cpu_ns()
    mine = after[own] - before[own]
    others = [(ns - before.get(thread, 0)) / mine for thread, ns in after.items() if thread != own]
    return sorted((share for share in others if share > 0.1), reverse=True)


def torch_work() -> None:
    x = torch.ones(1 << 20)
    for _ in range(60):
        x.exp()


WEIGHT = torch.ones(2048, 2048)
"""Made here, since torch fills it with a team of its own."""


def native_work() -> None:
    x = torch.ones(1, 2048)
    for _ in range(60):
        ops.linear(x, WEIGHT)


class Lane:
    """A lane whose steps are functions; each waits until it is asked for what it has found."""

    def __init__(self, name: str) -> None:
        self._work: queue.SimpleQueue[Callable[[], list[float]]] = queue.SimpleQueue()
        self._found: queue.SimpleQueue[list[float]] = queue.SimpleQueue()
        self._begun = threading.Event()
        self._number = 0
        self.told: queue.SimpleQueue[StepResult | BaseException] = queue.SimpleQueue()
        self.thread = LaneThread(name, self._execute, _bury, self.told.put, TeamSeat(2))

    def begin(self, units: int) -> None:
        """A step of so many units; returns when it has begun."""
        self._begun.clear()
        self._number += 1
        self.thread.submit(StepPlan(self._number, "decode", (), units=units))
        assert self._begun.wait(WAIT_S)

    def finish(self, work: Callable[[], None]) -> list[float]:
        """What the step does; see ``workers``."""
        self._work.put(lambda: workers(work))
        assert isinstance(self.told.get(timeout=WAIT_S), StepResult)
        return self._found.get()

    def _execute(self, plan: StepPlan) -> StepResult:
        self._begun.set()
        self._found.put(self._work.get(timeout=WAIT_S)())
        return StepResult(plan.step_id, plan.lane, 0.0, 0.0, {})


def _bury(plan: StepPlan, error: BaseException) -> StepResult:
    raise error


@pytest.fixture
def lanes() -> Iterator[tuple[Lane, Lane]]:
    made = Lane("one"), Lane("other")
    yield made
    for lane in made:
        lane.thread.close()


@pytest.fixture(params=[torch_work, native_work], ids=["torch", "native"])
def work(request: pytest.FixtureRequest) -> Callable[[], None]:
    found: Callable[[], None] = request.param
    if found is native_work and not ops.describe().startswith("native"):
        pytest.skip("no native kernels here")
    return found


def test_a_step_has_as_many_threads_as_it_says(lanes: tuple[Lane, Lane], work: Callable[[], None]) -> None:
    lane, _ = lanes
    for units in (2, 1, 2, 1):
        lane.begin(units)
        assert_team(lane.finish(work), units, work)


def test_resizing_one_lane_does_not_change_the_other(
    lanes: tuple[Lane, Lane], work: Callable[[], None]
) -> None:
    """The other one is resized while a step is under way, and does nothing until that has been measured."""
    for first, second in (lanes, lanes[::-1]):
        for mine, yours in ((1, 2), (2, 1)):
            first.begin(mine)
            second.begin(yours)
            assert_team(first.finish(work), mine, work)
            assert_team(second.finish(work), yours, work)


def test_a_step_goes_on_with_the_units_that_it_is_given_meanwhile(
    lanes: tuple[Lane, Lane], work: Callable[[], None]
) -> None:
    lane, _ = lanes

    def breathe_and_work() -> None:
        lane.thread.breathe()
        work()

    for before, after in ((1, 2), (2, 1)):
        lane.begin(before)
        lane.thread.reshare(after)
        assert_team(lane.finish(work), before, work)
        lane.begin(before)
        lane.thread.reshare(after)
        assert_team(lane.finish(breathe_and_work), after, work)
        lane.begin(before)
        assert_team(lane.finish(breathe_and_work), before, work)


def test_a_lane_does_not_follow_the_process(lanes: tuple[Lane, Lane], work: Callable[[], None]) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        lanes[0].begin(1)
        torch.set_num_threads(2)
        assert_team(lanes[0].finish(work), 1, work)
    finally:
        torch.set_num_threads(before)


def assert_team(found: list[float], units: int, work: Callable[[], None]) -> None:
    """torch divides work evenly; native kernels leave it to whoever is there, so that a helper may come late."""
    if units == 1:
        assert found == []
    elif work is torch_work:
        assert len(found) == units - 1
        assert all(0.3 < share < 3 for share in found), found
    else:
        assert len(found) <= units - 1
