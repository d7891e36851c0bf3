from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from braid.lab.replay.busy import Busy


class Loop:
    """Runs what is to be run before the next wait when told so."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def turn(self) -> None:
        while self.soon:
            self.soon.pop()()


def test_the_wait_for_other_work_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    loop: Any = Loop()
    busy = Busy(loop)
    now_s = 10.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)

    assert busy.enter(10.0) == 0.0  # woken by it
    assert busy.enter(10.5) == 0.5  # was there since then, perhaps
    now_s = 10.75
    loop.turn()
    assert len(loop.soon) == 0

    # Found at once: it may have come when the turn before had only begun to work.
    assert busy.enter(10.75) == 0.75
    assert busy.enter(11.0) == 1.0
    now_s = 11.0
    loop.turn()

    assert busy.enter(11.00001) == pytest.approx(0.25001)
    now_s = 11.0001
    loop.turn()

    assert busy.enter(12.0) == 0.0  # woken by it again


def test_each_turn_is_asked_for_once() -> None:
    loop: Any = Loop()
    busy = Busy(loop)
    for now_s in range(3):
        busy.enter(float(now_s))
    assert len(loop.soon) == 1
