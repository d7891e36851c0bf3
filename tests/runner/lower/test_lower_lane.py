"""The thread that copies: results for every plan, and tiers that fail."""

from __future__ import annotations

import logging
import queue
import threading
from pathlib import Path
from typing import Any

import pytest

from braid.core.faults import Fault, FaultKind, Faults
from braid.core.step import Move, StepPlan, StepResult
from braid.runner.kv_store import KVStore
from braid.runner.lower import host as host_module
from braid.runner.lower.disk import PAGE, DiskSlots
from braid.runner.lower.host import HostSlots
from braid.runner.lower.lane import TierLane
from braid.runner.lower.views import HostBlocks

from .conftest import content, same

KEYS = [bytes([n]) * 16 for n in range(6)]


def disk(kv: KVStore, folder: Path) -> DiskSlots:
    return DiskSlots(HostBlocks(kv), folder, PAGE * 9, bytes(32))


def test_slots_in_memory_lie_in_parts(kv: KVStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_module, "PART_BYTES", 2 * 448)
    host = HostSlots(kv, 5)
    before = [content(kv, block) for block in range(3)]
    for block, slot in enumerate((0, 3, 4)):
        host.store(slot, KEYS[slot], block)
    for block, slot in enumerate((0, 3, 4)):
        assert host.load(slot, KEYS[slot], 5)
        assert same(content(kv, 5), before[block])
    assert not host.load(1, KEYS[1], 5)


def plan(*moves: Move, step_id: int = 0) -> StepPlan:
    return StepPlan(step_id, "tier", (), moves=moves)


def store(block: int, slot: int, tier: str = "disk") -> Move:
    return Move(block, tier, slot, KEYS[slot], is_load=False)


def load(block: int, slot: int, tier: str = "disk") -> Move:
    return Move(block, tier, slot, KEYS[slot], is_load=True)


def test_both_tiers_copy_on_a_thread_of_their_own(kv: KVStore, tmp_path: Path) -> None:
    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    lane = TierLane([HostSlots(kv, 3), disk(kv, tmp_path)], results.put)
    first, second = content(kv, 0), content(kv, 1)
    lane.submit(plan(store(0, 2, "host"), store(1, 3), step_id=5))
    lane.submit(plan(load(4, 2, "host"), load(5, 3), step_id=6))
    for step_id in (5, 6):
        result: StepResult = results.get(timeout=20)
        assert (result.step_id, result.lane, result.failed_moves) == (step_id, "tier", frozenset())
        assert result.duration >= 0
    assert same(content(kv, 4), first)
    assert same(content(kv, 5), second)
    lane.close()


def test_a_miss_is_that_moves_own(kv: KVStore, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lane = TierLane([HostSlots(kv, 4), disk(kv, tmp_path)])
    lane.execute(plan(store(0, 0), store(1, 1)))
    with caplog.at_level(logging.WARNING):
        result = lane.execute(plan(load(3, 0), load(4, 3), load(5, 1), load(2, 3, "host")))
    assert result.failed_moves == {1, 3}
    assert result.broken_tiers == frozenset()
    assert len(caplog.records) == 2
    assert "blocks in the KV tier disk are damaged: 1; they are computed again" in caplog.text
    lane.close()


@pytest.mark.parametrize("kind", [FaultKind.ERROR, FaultKind.MEMORY])
@pytest.mark.parametrize("place", ["tier.store", "tier.load"])
def test_a_tier_that_fails_is_turned_off_with_one_warning(
    kv: KVStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str, kind: FaultKind
) -> None:
    faults = Faults([Fault(point=place, first=2, kind=kind)])
    lane = TierLane([disk(kv, tmp_path)], faults=faults)
    moves = [store(0, 0), store(1, 1)] if place == "tier.store" else [load(3, 0), load(4, 1)]
    lane.execute(plan(store(0, 0)))
    with caplog.at_level(logging.WARNING):
        results = [lane.execute(plan(*moves)) for _ in range(2)]
    assert results[0].broken_tiers == {"disk"}
    assert results[1].failed_moves == {0, 1}
    assert caplog.text.count("is off until the next start") == 1
    assert not faults.unstruck
    lane.close()


def test_a_step_that_is_stuck_is_warned_of_once(kv: KVStore, caplog: pytest.LogCaptureFixture) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Stuck(HostSlots):
        def store(self, slot: int, key: bytes, block: int) -> None:
            begun.set()
            go_on.wait(20)

    lane = TierLane([Stuck(kv, 1)])
    lane.watch(0)
    lane.submit(plan(store(0, 0, "host")))
    assert begun.wait(20)
    with caplog.at_level(logging.WARNING):
        lane.watch(1000)
        assert not caplog.text
        for _ in range(2):
            lane.watch(0)
    go_on.set()
    lane.close()
    assert caplog.text.count("are stuck") == 1


def test_a_lane_that_dies_says_so(kv: KVStore) -> None:
    class Dying(HostSlots):
        def store(self, slot: int, key: bytes, block: int) -> None:
            raise SystemExit("injected")

    results: queue.SimpleQueue[Any] = queue.SimpleQueue()
    lane = TierLane([Dying(kv, 1)], results.put)
    lane.submit(plan(store(0, 0, "host")))
    assert isinstance(results.get(timeout=20), SystemExit)
    lane.close()
