"""The threads that read: order, taking back, and how many there are."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from braid.core.faults import Fault, FaultKind, Faults
from braid.runner.experts import depth
from braid.runner.experts.arena import HostArena
from braid.runner.experts.depth import DEFAULT, DEPTHS, measured_depth
from braid.runner.experts.reader import Cause, ExpertReadError, Read, Reader, Stage
from braid.runner.experts.source import FileSource

from .conftest import Bare

WAIT_S = 60
ROWS = 8


@dataclass
class Rig:
    """A reader of one thread whose first read waits for ``opened``."""

    reader: Reader
    opened: threading.Event
    reached: threading.Event
    ended: list[Read] = field(default_factory=list)

    def wait(self, count: int) -> list[int]:
        for _ in range(WAIT_S * 1000):
            if len(self.ended) >= count:
                return [read.expert for read in self.ended]
            threading.Event().wait(0.001)
        raise AssertionError(f"only {self.ended} have ended")


@pytest.fixture
def rig(bare: Bare) -> Iterator[Rig]:
    opened, reached = threading.Event(), threading.Event()

    def hold(seconds: float) -> None:
        reached.set()
        opened.wait(WAIT_S)

    faults = Faults([Fault(point="experts.read", kind=FaultKind.DELAY)], sleep=hold)
    ended: list[Read] = []
    arena = HostArena(ROWS, bare.file.layout.record_bytes, ROWS)
    reader = Reader(bare.file, FileSource(bare.file, arena, faults=faults), ended.append, threads=1)
    made = Rig(reader, opened, reached, ended)
    yield made
    opened.set()
    reader.close()


def reads(*experts: int, cause: Cause) -> list[Read]:
    return [Read(expert, expert % ROWS, cause) for expert in experts]


def test_the_urgent_are_read_first_and_those_that_become_urgent_move_up(rig: Rig) -> None:
    early, prompts, decodes = (
        reads(1, cause=Cause.PREFETCH),
        reads(2, 3, 4, cause=Cause.PREFILL),
        reads(5, 6, cause=Cause.DEMAND),
    )
    rig.reader.submit(reads(0, cause=Cause.PREFILL))
    assert rig.reached.wait(WAIT_S)
    rig.reader.submit(early)
    rig.reader.submit(prompts)
    rig.reader.submit(decodes)
    rig.reader.urge(prompts[2], Cause.DEMAND)
    rig.reader.urge(decodes[0], Cause.PREFILL)
    assert not rig.reader.is_idle
    rig.opened.set()
    assert rig.wait(7) == [0, 5, 6, 4, 2, 3, 1]
    assert rig.reader.is_idle
    size = rig.reader._file.layout.record_bytes
    assert rig.reader.times().bytes == {Cause.DEMAND: 2 * size, Cause.PREFILL: 4 * size, Cause.PREFETCH: size}
    assert min(rig.reader.times().busy_s, rig.reader.times().read_s) > 0
    assert rig.reader.record_s > 0


def test_what_nobody_waits_for_is_read_alone(rig: Rig) -> None:
    """Not even a second one of its kind begins beside it."""
    early = reads(1, 2, cause=Cause.PREFETCH)
    rig.reader.submit(early)
    assert rig.reached.wait(WAIT_S)
    assert rig.reader.is_idle, "no step waits"
    assert [read.stage for read in early] == [Stage.READING, Stage.QUEUED]
    rig.opened.set()
    assert rig.wait(2) == [1, 2]


def test_a_read_is_taken_back_as_long_as_it_has_not_begun(rig: Rig) -> None:
    first, second, third = reads(0, 1, 2, cause=Cause.DEMAND)
    rig.reader.submit([first, second, third])
    assert rig.reached.wait(WAIT_S)
    assert not rig.reader.drop(first)
    assert rig.reader.drop(second)
    assert not rig.reader.drop(second)
    rig.opened.set()
    assert rig.wait(2) == [0, 2]
    assert second.stage is Stage.DROPPED


def test_what_is_queued_at_the_end_fails(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("braid.runner.experts.reader.CLOSE_S", 0.01)
    rig.reader.submit(reads(0, 1, cause=Cause.DEMAND))
    assert rig.reached.wait(WAIT_S)
    rig.reader.close()
    assert [read.expert for read in rig.ended] == [1]
    assert "closed" in str(rig.ended[0].error)
    with pytest.raises(ExpertReadError, match="closed"):
        rig.reader.submit(reads(2, cause=Cause.DEMAND))


def test_the_depth_is_measured_where_files_are_large(bare: Bare, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured_depth(bare.file) == DEFAULT
    monkeypatch.setattr(depth, "MIN_BYTES", 0)
    assert measured_depth(bare.file) in (DEFAULT, *DEPTHS)
    rates = {2: 1.0, 3: 2.0, 4: 2.05}
    monkeypatch.setattr(depth, "_rate", lambda file, descriptor, number: rates[number])
    opened = bare.file.open_file(direct=True)
    assert measured_depth(bare.file) == (3 if opened.direct else DEFAULT)
