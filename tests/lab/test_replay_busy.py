from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from braid.lab.replay.sending.busy import Busy, ThreadCounts


class Loop:
    """Runs what is to be run before the next wait when told so."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def turn(self) -> None:
        while self.soon:
            self.soon.pop()()


class Thread(ThreadCounts):
    """A thread that sleeps, and waits for a core, as often as it is told."""

    sleeps = 0
    waited_s = 100.0

    def num_sleeps(self) -> int:
        return self.sleeps

    def core_wait_s(self) -> float:
        return self.waited_s


@pytest.fixture
def thread() -> Iterator[Thread]:
    thread = Thread()
    yield thread
    thread.close()


def test_the_wait_for_other_work_is_told(thread: Thread) -> None:
    loop: Any = Loop()
    busy = Busy(loop, thread)
    assert busy.enter(10.0) == 0.0  # woken by it
    assert busy.enter(10.5) == 0.5  # was there since then, perhaps
    loop.turn()

    # Found at once: it may have come when the turn before had only begun to work.
    assert busy.enter(10.75) == 0.75
    assert busy.enter(11.0) == 1.0
    loop.turn()
    assert busy.enter(11.25) == 0.5
    loop.turn()

    thread.sleeps += 1
    assert busy.enter(12.0) == 0.0  # woken by it again
    assert busy.enter(12.5) == 0.5
    loop.turn()


def test_a_wait_for_a_core_counts_but_not_before_the_last_turn(thread: Thread) -> None:
    loop: Any = Loop()
    busy = Busy(loop, thread)
    busy.enter(10.0)
    loop.turn()
    thread.sleeps, thread.waited_s = 1, 100.25
    assert busy.enter(11.0) == 0.25
    assert busy.enter(11.5) == 0.75
    loop.turn()
    thread.sleeps, thread.waited_s = 2, 900.0
    assert busy.enter(12.0) == 1.0


def test_each_turn_is_asked_for_once(thread: Thread) -> None:
    loop: Any = Loop()
    busy = Busy(loop, thread)
    for now_s in range(3):
        busy.enter(float(now_s))
    assert len(loop.soon) == 1


def test_what_the_system_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    counts = ThreadCounts()
    sleeps = counts.num_sleeps()
    time.sleep(0.001)
    assert counts.num_sleeps() > sleeps
    assert 0.0 <= counts.core_wait_s() <= counts.core_wait_s()
    last_s = counts.core_wait_s()
    counts.close()
    counts.close()
    assert counts.core_wait_s() == last_s
    monkeypatch.setattr("braid.lab.replay.sending.busy._SCHEDSTAT", tmp_path / "none")
    assert ThreadCounts().core_wait_s() == 0.0
