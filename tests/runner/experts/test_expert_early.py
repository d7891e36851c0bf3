"""Reads ahead of need: who is foreseen, and that each is counted once as useful, late or wasted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from braid.core.faults import Fault, FaultKind, Faults
from braid.layers.moe import Router, Routing
from braid.layers.norm import RMSNorm
from braid.policy.experts.policy import ExpertTimes
from braid.policy.experts.prefetch import Prefetch
from braid.policy.experts.slots import SlotTable
from braid.runner.experts.early import Predicted
from braid.runner.experts.ledger import PAUSE_S
from braid.runner.experts.module import Foresight
from braid.runner.experts.store import ExpertStore

from .conftest import SHAPE, Bare, route

WAIT_S = 60


def test_a_later_router_sees_what_its_own_norm_would_make_of_the_residual_stream() -> None:
    generator = torch.Generator().manual_seed(3)
    own, theirs, router = RMSNorm(64, 1e-6), RMSNorm(64, 1e-6), Router(64, Routing(8, 2))
    for norm in (own, theirs):
        norm.weight = torch.nn.Parameter(1 + torch.randn(64, generator=generator) * 0.3, requires_grad=False)
    router.weight = torch.nn.Parameter(torch.randn(8, 64, generator=generator), requires_grad=False)
    stream_TD = torch.randn(5, 64, generator=generator)
    found = Foresight(4, 2, router, own, theirs).predict(own(stream_TD))
    expected = router(theirs(stream_TD))
    assert (found.layer, found.distance) == (4, 2)
    assert torch.equal(found.routed.ids_Tk, expected.ids_Tk)
    assert torch.allclose(found.routed.scores_TX, expected.scores_TX, atol=1e-6)


def test_what_a_norm_has_taken_away_is_left_out() -> None:
    own, theirs, router = RMSNorm(4, 1e-6), RMSNorm(4, 1e-6), Router(4, Routing(2, 1))
    own.weight = torch.nn.Parameter(torch.tensor([1.0, 0.0, 2.0, 1.0]), requires_grad=False)
    theirs.weight = torch.nn.Parameter(torch.ones(4), requires_grad=False)
    router.weight = torch.nn.Parameter(
        torch.tensor([[1.0, 9.0, 1.0, 1.0], [0.0, 0.0, 0.0, 1.0]]), requires_grad=False
    )
    found = Foresight(1, 1, router, own, theirs).predict(torch.tensor([[1.0, 0.0, 2.0, 1.0]]))
    assert torch.allclose(found.routed.scores_TX, torch.tensor([[3.0, 1.0]]).softmax(-1))


def play(store: ExpertStore, bare: Bare, foretell: Callable[[int, int], list[int]], steps: int) -> None:
    """Decodes of one row; before layer ``l + 1`` of step ``s``, ``foretell(s, l + 1)`` is what is predicted for it."""
    for step in range(steps):
        for layer in range(SHAPE.layers):
            x_TD, routed = route(1, 50 * step + layer)

            def predict(step: int = step, layer: int = layer) -> Sequence[Predicted]:
                if layer + 1 == SHAPE.layers:
                    return []
                _, later = route(1, 50 * step + layer + 1, foretell(step, layer + 1))
                return [Predicted(layer + 1, 1, later)]

            out_TD = store.compute(layer, x_TD, routed, act="silu", predict=predict)
            assert torch.equal(out_TD, bare.expected(layer, x_TD, routed))


def true(step: int, layer: int) -> list[int]:
    _, routed = route(1, 50 * step + layer)
    found: list[int] = routed.ids_Tk[0].tolist()
    return found


def wrong(step: int, layer: int) -> list[int]:
    needed = true(step, layer)
    return [expert for expert in range(SHAPE.per_layer) if expert not in needed][:2]


class Eager:
    """A prefetcher for which whatever is foreseen and missing pays."""

    is_on = True

    def __init__(self, table: SlotTable) -> None:
        self._table = table
        self._foretold: dict[int, list[int]] = {}
        self._in_flight: int | None = None

    def routed(self, layer: int, loads: Mapping[int, int], num_missing: int) -> None:
        self._foretold.pop(layer, None)

    def predicted(self, layer: int, distance: int, loads: Mapping[int, int], *more: object) -> None:
        self._foretold[layer] = list(loads)

    def next(self, times: ExpertTimes, *, link_idle: bool) -> Prefetch | None:
        assert link_idle
        assert min(times.link_s, times.fast_s) > 0
        if self._in_flight is not None:
            return None
        missing = [e for foretold in self._foretold.values() for e in foretold if self._table.slot_of(e) < 0]
        if not missing:
            return None
        self._in_flight = missing[0]
        return Prefetch(missing[0], None, 1.0)

    def landed(self, expert: int) -> None:
        if self._in_flight == expert:
            self._in_flight = None

    def step_took(self, seconds: float, rows: int) -> None:
        assert seconds > 0
        assert rows == 1


def eager_store(bare: Bare, num_slots: int, **options: Any) -> ExpertStore:
    store = bare.store(num_slots, "lru", prefetch="on", **options)
    store._ledger.early._prefetcher = Eager(store.table)  # type: ignore[assignment]
    return store


def wait(store: ExpertStore, until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not store._ledger.snapshot(until):
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("num_slots", [3, 12])
@pytest.mark.parametrize("foretell", [true, wrong])
def test_every_early_read_is_useful_late_or_wasted(
    bare: Bare, num_slots: int, foretell: Callable[[int, int], list[int]]
) -> None:
    store = eager_store(bare, num_slots)
    play(store, bare, foretell, 8)
    wait(store, lambda: not store._ledger._reads)
    store.check_integrity(records=True)
    early, stats, num_reads = store.table.prefetches, store.stats(), store._ledger.reader.times().reads
    assert early.started > 0
    assert stats.prefetched == {"useful": early.useful, "late": early.late, "wasted": early.wasted}
    assert early.started == early.useful + early.late + early.wasted + early.failed + early.pending
    size = bare.file.layout.record_bytes
    assert stats.bytes_by_cause["prefetch"] == (early.started - early.failed) * size
    read = sum(layer.misses + layer.bypasses for layer in stats.layers)
    assert stats.bytes_by_cause["demand"] == read * size
    assert sum(stats.bytes_by_cause.values()) == num_reads * size
    if foretell is true:
        assert not early.wasted
    store.close()


def test_what_is_there_in_time_is_useful_and_what_is_not_is_waited_for_once(bare: Bare) -> None:
    reached, opened = threading.Event(), threading.Event()

    def hold(seconds: float) -> None:
        reached.set()
        opened.wait(WAIT_S)

    plan = [Fault(point="experts.read", phase="prefetch", first=2, kind=FaultKind.DELAY)]
    store = eager_store(bare, 8, readers=1, faults=Faults(plan, sleep=hold))
    x_TD, routed = route(1, 1, [0, 1])
    later = [Predicted(1, 1, route(1, 1, [2, 3])[1])]
    store.compute(0, x_TD, routed, act="silu", predict=lambda: later)
    wait(store, lambda: store._ledger.tally.fast.count > 0)
    store.compute(0, x_TD, routed, act="silu", predict=lambda: later)
    assert reached.wait(WAIT_S)
    outs: list[torch.Tensor] = []

    def compute() -> None:
        with torch.inference_mode():
            outs.append(store.compute(1, *route(1, 1, [2, 3]), act="silu"))

    thread = threading.Thread(target=compute)
    thread.start()
    wait(store, lambda: bool(store._ledger._tasks))
    opened.set()
    thread.join(WAIT_S)
    assert torch.equal(outs[0], bare.expected(1, *route(1, 1, [2, 3])))
    assert store.stats().prefetched == {"useful": 1, "late": 1, "wasted": 0}
    assert store._ledger.reader.times().reads == 4
    store.check_integrity(records=True)
    store.close()


def test_an_early_read_that_fails_fails_nobody_who_does_not_need_it(bare: Bare) -> None:
    faults = Faults([Fault(point="experts.read", phase="prefetch", count=99)])
    now = [0.0]
    store = eager_store(bare, 8, faults=faults, clock=lambda: now[0])
    play(store, bare, wrong, 3)
    wait(store, lambda: not store._ledger._reads)
    assert store.stats().failed_reads == 1, "after one that failed there is a pause"
    now[0] += PAUSE_S
    play(store, bare, wrong, 3)
    wait(store, lambda: not store._ledger._reads)
    assert store.stats().failed_reads == 2
    assert not faults.unstruck
    store.check_integrity(records=True)
    store.close()
