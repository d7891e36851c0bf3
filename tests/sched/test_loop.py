"""The loop's four rules, with the simulator as the executor."""

from __future__ import annotations

import threading

import pytest

from braid.core.errors import InvalidParameterError
from braid.core.request import Delta, FinishReason
from braid.core.step import StepPlan, StepResult
from braid.policy.admission import PoolLoad
from braid.sched.config import Policies, SchedulerConfig
from braid.sched.loop import Loop, StallError
from braid.sched.scheduler import Scheduler
from braid.sim.executor import FixedTime, SimExecutor

CONFIG = SchedulerConfig(
    num_blocks=16, block_size=4, max_num_seqs=4, max_num_batched_tokens=16, max_model_len=40
)


class Rig:
    def __init__(self, policies: Policies | None = None) -> None:
        self.scheduler = Scheduler(CONFIG, policies)
        self.executor = SimExecutor(FixedTime(1.0))
        self.deltas: list[Delta] = []
        self.loop = Loop(self.scheduler, self.executor, self.deltas.extend)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def test_runs_until_idle(rig, new_request) -> None:
    added = rig.loop.add(new_request("a", 6, max_tokens=3))
    rig.loop.run_until_idle()
    assert added.result(0) is None
    assert [delta.finish_reason for delta in rig.deltas] == [None, None, FinishReason.LENGTH]
    assert rig.executor.now() == 3.0
    assert rig.loop.is_idle


def test_a_refusal_reaches_the_caller_and_harms_nobody(rig, new_request) -> None:
    refused = rig.loop.add(new_request("long", 60))
    rig.loop.add(new_request("a", 6, max_tokens=1))
    rig.loop.run_until_idle()
    with pytest.raises(InvalidParameterError, match="60 tokens"):
        refused.result(0)
    assert [delta.request_id for delta in rig.deltas] == ["a"]


def test_abort_and_stats_are_commands(rig, new_request) -> None:
    rig.loop.add(new_request("a", 6, max_tokens=30))
    rig.loop.run_once()
    rig.loop.run_once()
    stats, aborted, unknown = rig.loop.stats(), rig.loop.abort("a"), rig.loop.abort("b")
    rig.loop.run_until_idle()
    assert stats.result(0).num_running == 1
    assert (aborted.result(0), unknown.result(0)) == (True, False)
    assert len(rig.deltas) < 30


def test_a_cancelled_command_is_not_run(rig, new_request) -> None:
    added = rig.loop.add(new_request("a", 6))
    assert added.cancel()
    rig.loop.run_until_idle()
    assert rig.deltas == []


class NobodyEnters:
    def has_seat(self, num_running: int) -> bool:
        return True

    def admits(self, load: PoolLoad) -> bool:
        return False


def test_a_stall_is_an_error_with_the_state(new_request) -> None:
    rig = Rig(Policies(admission=NobodyEnters()))
    rig.loop.add(new_request("a", 6))
    with pytest.raises(StallError, match="a: waiting, 0/6 tokens computed"):
        rig.loop.run_until_idle()
    later = rig.loop.stats()
    with pytest.raises(StallError):
        later.result(0)


def test_a_dying_loop_answers_every_command(rig, new_request) -> None:
    def explode(deltas: list[Delta]) -> None:
        waiting.append(loop.stats())
        raise RuntimeError("sink")

    waiting = []
    loop = Loop(rig.scheduler, rig.executor, explode)
    loop.add(new_request("a", 6))
    with pytest.raises(RuntimeError, match="sink"):
        loop.run_until_idle()
    with pytest.raises(RuntimeError, match="sink"):
        waiting[0].result(0)


def test_integrity_is_checked_when_idle(rig, new_request) -> None:
    rig.loop.add(new_request("a", 6, max_tokens=1))
    rig.loop.run_until_idle()
    rig.scheduler._pool.allocate(1)
    rig.executor.at(9.0, lambda: None)
    with pytest.raises(AssertionError, match="references and tables"):
        rig.loop.run_once()


def test_others_are_checked_too(rig, new_request) -> None:
    calls: list[float] = []
    loop = Loop(rig.scheduler, rig.executor, rig.deltas.extend, (lambda: calls.append(rig.executor.now()),))
    loop.add(new_request("a", 6, max_tokens=1))
    loop.run_until_idle()
    assert calls == []
    rig.executor.at(9.0, lambda: None)
    loop.run_once()
    assert len(calls) == 1


class ThreadExecutor:
    """Steps end on another thread, at once; ``wait`` really blocks."""

    lanes = ("mixed",)

    def __init__(self) -> None:
        self._inner = SimExecutor(FixedTime(1.0))
        self._wakes = threading.Semaphore(0)
        self._done: list[StepResult] = []

    def now(self) -> float:
        return self._inner.now()

    def submit(self, plan: StepPlan) -> None:
        self._inner.submit(plan)
        threading.Thread(target=self._end).start()

    def _end(self) -> None:
        self._done += self._inner.wait(None)
        self._wakes.release()

    def wait(self, until: float | None) -> list[StepResult]:
        assert self._wakes.acquire(timeout=30)
        results, self._done = self._done, []
        return results

    def wake(self) -> None:
        self._wakes.release()


def test_commands_may_come_from_other_threads(new_request) -> None:
    executor, deltas, stopping, all_done = ThreadExecutor(), [], threading.Event(), threading.Event()

    def sink(batch: list[Delta]) -> None:
        deltas.extend(batch)
        if sum(delta.finish_reason is not None for delta in deltas) == 8:
            all_done.set()

    loop = Loop(Scheduler(CONFIG), executor, sink)
    thread = threading.Thread(target=loop.run, args=(stopping.is_set,))
    thread.start()
    posts = [loop.add(new_request(f"r{i}", 6, max_tokens=3)) for i in range(8)]
    for post in posts:
        post.result(30)
    assert all_done.wait(30)
    stopping.set()
    executor.wake()
    thread.join(30)
    assert not thread.is_alive()
    assert len(deltas) == 24
