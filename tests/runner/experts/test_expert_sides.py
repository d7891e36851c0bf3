"""Main memory below a device's slots, and the CPU computing a part: here with a CPU on both sides, and the same bits
whoever computes what.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from braid.core.experts import ExpertLayout
from braid.core.faults import Fault, FaultKind, Faults
from braid.policy.experts.catalog import expert_cache
from braid.policy.experts.policy import ExpertTimes
from braid.policy.experts.policy import Routed as Told
from braid.policy.experts.sides import PlannedSides, Sides
from braid.policy.experts.slots import SlotTable
from braid.policy.experts.times import LearntTimes
from braid.runner.experts import arena, ledger, reader
from braid.runner.experts.arena import DeviceArena, HostArena
from braid.runner.experts.host import HostTier
from braid.runner.experts.reader import ExpertReadError
from braid.runner.experts.store import ExpertStore

from .conftest import HIDDEN, SHAPE, SIZE, Bare, Family, make_bare, route
from .test_expert_faults import alter
from .test_expert_lanes import start
from .test_expert_models import FAMILIES, played

WAIT_S = 60
TIMES = ExpertTimes(1e-3, 1e-3, 1e-5, 0.0, 1e-3, 0.0)
"""A CPU as quick as the link."""


class Given:
    """The CPU computes what ``choose`` says, whatever is best."""

    times = TIMES

    def __init__(self, table: SlotTable, choose: Callable[[Told], Collection[int]]) -> None:
        self.choose = choose
        self.links: list[float] = []
        self.fasts: list[tuple[float, int, int]] = []
        self.slows: list[tuple[float, int, int]] = []

    def slow(self, routed: Told, pending: Collection[int]) -> frozenset[int]:
        return frozenset(self.choose(routed))

    def fetched(self, seconds: float, *, is_busy: bool) -> None:
        self.links.append(seconds)

    def measured_fast(self, seconds: float, experts: int, rows: int) -> None:
        self.fasts.append((seconds, experts, rows))

    def measured_slow(self, seconds: float, experts: int, rows: int) -> None:
        self.slows.append((seconds, experts, rows))


def at_random(seed: int) -> Callable[[Told], Collection[int]]:
    rng = random.Random(seed)
    return lambda routed: [expert for expert in routed.loads if rng.random() < 0.5]


def two_tiers(
    bare: Bare,
    slots: int,
    host_slots: int,
    sides: Callable[[SlotTable], Sides] | None,
    *,
    cache: str = "mrs",
    faults: Faults | None = None,
    **options: Any,
) -> ExpertStore:
    below = bare.store(host_slots, cache, staging=2, faults=faults, clock=lambda: 0.0)
    options = {"staging": 2, "readers": 3, "clock": lambda: 0.0} | options
    return bare.store(slots, cache, host=HostTier(below), sides=sides, faults=faults, **options)


def given(choose: Callable[[Told], Collection[int]]) -> Callable[[SlotTable], Sides]:
    return partial(Given, choose=choose)


def run(store: ExpertStore, bare: Bare, steps: int = 4, seed: int = 0) -> None:
    """Steps of all layers, of one to nine rows, each compared with what all experts in memory give."""
    for step in range(steps):
        for layer in range(SHAPE.layers):
            rows = (1, 5, 2, 9)[step % 4]
            x_TD, routed = route(rows, 31 * step + layer + seed)
            out_TD = store.compute(layer, x_TD, routed, act="silu", is_prefill=rows > 4)
            assert torch.equal(out_TD, bare.expected(layer, x_TD, routed))


def warm(store: ExpertStore, experts: range) -> None:
    """Give these slots."""
    for expert in experts:
        x_TD, routed = route(1, expert)
        store.compute(0, x_TD, routed._replace(ids_Tk=torch.tensor([[expert, expert]])), act="silu")


@pytest.mark.parametrize("num_held", [0, 1, 3, 6])
@pytest.mark.parametrize("host_slots", [0, 3, 24])
def test_every_mix_of_held_fetched_and_computed_below(bare: Bare, num_held: int, host_slots: int) -> None:
    """Six experts are needed, ``num_held`` have slots; the CPU computes any number of them, also of those held."""
    x_TD, routed = route(3, 77)
    routed = routed._replace(ids_Tk=torch.tensor([[0, 5], [3, 1], [4, 2]]))
    for num_slow in range(7):
        for slow in (range(num_slow), range(6 - num_slow, 6)):
            chosen: list[int] = []
            store = two_tiers(
                bare, max(num_held, 2), host_slots, given(lambda told, c=chosen: c), cache="lru", floor=0
            )
            warm(store, range(num_held))
            before = store.stats()
            assert before.layers[0].resident == num_held
            chosen += slow
            assert torch.equal(store.compute(0, x_TD, routed, act="silu"), bare.expected(0, x_TD, routed))
            after = store.stats()
            assert after.computed["host"] == num_slow
            assert after.computed["device"] - before.computed["device"] == 6 - num_slow
            assert after.layers[0].hits - before.layers[0].hits == num_held
            store.check_integrity(records=True)
            store.close()


@pytest.mark.parametrize(
    ("slots", "host_slots", "staging", "cache"),
    [
        (0, 0, 1, "lru"),
        (1, 0, 1, "mrs"),
        (5, 2, 2, "mrs"),
        (5, 24, 1, "ewma"),
        (12, 6, 2, "lfu"),
        (24, 24, 3, "static"),
    ],
)
def test_bits_do_not_depend_on_tiers_or_sides(
    bare: Bare, slots: int, host_slots: int, staging: int, cache: str
) -> None:
    store = two_tiers(bare, slots, host_slots, given(at_random(1)), cache=cache, staging=staging)
    assert store.host is not None
    run(store, bare, 8)
    store.check_integrity(records=True)
    stats, below = store.stats(), store.host.store
    assert min(stats.computed.values()) > 0
    used = sum(layer.hits + layer.misses + layer.bypasses for layer in stats.layers)
    assert sum(stats.computed.values()) == used
    assert below.stats().resident <= host_slots
    assert below.num_bytes == (host_slots + 2) * bare.file.layout.record_bytes
    store.close()


@pytest.mark.parametrize("form", ["bfloat16", "int8", "int4"])
def test_bits_of_other_formats(tmp_path: Path, form: str) -> None:
    bare = make_bare(tmp_path / "experts.braid", ExpertLayout(form, HIDDEN, SIZE))
    store, whole = two_tiers(bare, 3, 4, given(at_random(3))), bare.store(24)
    for layer in range(SHAPE.layers):
        x_TD, routed = route(5, layer)
        outs = [one.compute(layer, x_TD, routed, act="gelu_tanh") for one in (store, whole)]
        assert torch.equal(*outs)
    assert store.stats().computed["host"] > 0
    store.close()
    whole.close()


def test_all_is_fetched_where_nobody_plans_and_read_from_the_file_once(bare: Bare) -> None:
    store = two_tiers(bare, 2, 24, None)
    run(store, bare, 8)
    stats = store.stats()
    assert store.host is not None
    resident = store.host.store.stats().resident
    assert stats.computed["host"] == 0
    assert sum(stats.bytes_by_cause.values()) == resident * bare.file.layout.record_bytes
    assert store.detail()["reads"] > resident  # type: ignore[operator]
    store.check_integrity(records=True)
    store.close()


class NotedTimes(LearntTimes):
    """Notes what it is told of the link."""

    def __init__(self) -> None:
        super().__init__(TIMES)
        self.links: list[float] = []

    def fetched(self, seconds: float, *, is_busy: bool) -> None:
        self.links.append(seconds)
        super().fetched(seconds, is_busy=is_busy)


def test_a_plan_uses_both_sides_and_learns_what_the_link_costs(bare: Bare) -> None:
    learnt = NotedTimes()
    below = bare.store(24, "mrs")
    store = bare.store(
        3,
        "mrs",
        host=HostTier(below),
        sides=partial(PlannedSides, learnt=learnt, is_below=below.has),
        readers=2,
    )
    run(store, bare, 16)
    stats = store.stats()
    assert min(stats.computed.values()) > 0
    assert stats.resident > 0
    assert learnt.links
    assert min(learnt.links) > 0
    assert store.detail()["times"] == learnt.times._asdict()
    store.check_integrity(records=True)
    store.close()


def test_what_is_measured_is_what_was_done(bare: Bare) -> None:
    store = two_tiers(bare, 4, 24, given(lambda told: [2, 3] if {2, 3} <= told.loads.keys() else []))
    sides = store._sides
    assert isinstance(sides, Given)
    warm(store, range(2))
    x_TD, routed = route(3, 1)
    routed = routed._replace(ids_Tk=torch.tensor([[0, 2], [2, 3], [4, 2]]))
    sides.fasts.clear()
    num_links = len(sides.links)
    store.compute(0, x_TD, routed, act="silu")
    assert [one[1:] for one in sides.slows] == [(2, 4)]
    assert sorted(one[1:] for one in sides.fasts) == [(1, 1), (1, 1)]
    assert len(sides.links) == num_links + 1
    assert min([*sides.links, sides.slows[0][0], *(one[0] for one in sides.fasts)]) > 0
    store.close()


def test_what_the_cpu_computes_is_time_in_which_steps_compute(bare: Bare) -> None:
    store = two_tiers(bare, 4, 24, given(lambda told: told.loads))
    run(store, bare, 2)
    sides, stats = store._sides, store.stats()
    assert isinstance(sides, Given)
    assert stats.compute_s == pytest.approx(sum(seconds for seconds, _, _ in sides.slows))
    assert (stats.computed["device"], stats.resident) == (0, 0)
    store.close()


@pytest.mark.parametrize("case", FAMILIES)
def test_bits_of_whole_models(case: str, family: Callable[[str], Family], harness: ModuleType) -> None:
    made = family(case)
    shape = made.file.shape
    expected = played(harness, made.resident)
    for slots, host_slots, prefetch in ((1, 2, "off"), (shape.total // 2, shape.total, "on")):
        below = ExpertStore(made.file, host_slots, expert_cache("mrs", shape), readers=2, staging=2)
        model, store = made.stored(
            slots, prefetch=prefetch, host=HostTier(below), sides=given(at_random(slots))
        )
        for ours, theirs in zip(played(harness, model), expected, strict=True):
            assert torch.equal(ours, theirs)
        assert min(store.stats().computed.values()) > 0
        store.check_integrity(records=True)
        store.close()


@pytest.mark.parametrize("host_slots", [0, 3, 24])
def test_two_lanes_at_once(bare: Bare, host_slots: int) -> None:
    store = two_tiers(bare, 3, host_slots, given(at_random(9)))

    def steps(seed: int, rows: int, count: int) -> None:
        for step in range(count):
            for layer in range(SHAPE.layers):
                x_TD, routed = route(rows, 1000 * seed + 10 * step + layer)
                out_TD = store.compute(layer, x_TD, routed, act="silu", is_prefill=rows > 1)
                assert torch.equal(out_TD, bare.expected(layer, x_TD, routed))

    lanes = [start(partial(steps, 1, 1, 6)), start(partial(steps, 2, 16, 2)), start(partial(steps, 3, 2, 4))]
    for thread, errors in lanes:
        thread.join(WAIT_S)
        assert not thread.is_alive(), "wedged"
        assert not errors, errors
    store.check_integrity(records=True)
    store.close()


@pytest.mark.parametrize("is_slow", [False, True])
def test_a_record_that_is_altered_costs_those_who_need_it(bare: Bare, is_slow: bool) -> None:
    """On either side: by name, again and again, and nobody else."""
    alter(bare, 8 + 2)
    store = two_tiers(bare, 4, 6, given(lambda told: [10] if is_slow and 10 in told.loads else []))
    x_TD, routed = route(1, 5)
    for _ in range(3):
        with pytest.raises(ExpertReadError, match=r"record 10 \(expert 2 of MoE layer 1\) does not match"):
            store.compute(1, x_TD, routed._replace(ids_Tk=torch.tensor([[2, 4]])), act="silu")
    others = routed._replace(ids_Tk=torch.tensor([[3, 4]]))
    assert torch.equal(store.compute(1, x_TD, others, act="silu"), bare.expected(1, x_TD, others))
    assert store.stats().failed_reads == 2, "the third was told that it had just failed"
    store.check_integrity(records=True)
    store.close()


def test_a_fetch_that_fails_once_fails_one_call(bare: Bare) -> None:
    faults = Faults([Fault(point="experts.fetch", first=2)])
    store = two_tiers(bare, 4, 24, given(lambda told: []), faults=faults, readers=1)
    x_TD, routed = route(1, 5, [3, 4])
    with pytest.raises(ExpertReadError, match=r"injected at experts\.fetch"):
        store.compute(0, x_TD, routed, act="silu")
    for _ in range(2):
        assert torch.equal(store.compute(0, x_TD, routed, act="silu"), bare.expected(0, x_TD, routed))
    assert not faults.unstruck
    store.check_integrity(records=True)
    store.close()


@pytest.mark.parametrize("is_slow", [False, True])
def test_who_waits_for_the_disk_below_is_told_of_the_end(
    bare: Bare, is_slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "CLOSE_S", 0.05)
    reached, opened = threading.Event(), threading.Event()

    def hold(seconds: float) -> None:
        reached.set()
        opened.wait(WAIT_S)

    faults = Faults([Fault(point="experts.read", kind=FaultKind.DELAY)], sleep=hold)
    store = two_tiers(bare, 4, 6, given(lambda told: told.loads if is_slow else []), faults=faults)
    x_TD, routed = route(1, 5)
    thread, errors = start(lambda: store.compute(0, x_TD, routed, act="silu"))
    assert reached.wait(WAIT_S)
    closing = threading.Thread(target=store.close)
    closing.start()
    thread.join(WAIT_S)
    assert "closed" in str(errors[0])
    opened.set()
    closing.join(WAIT_S)
    assert not closing.is_alive()


@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize("host_slots", [0, 6])
def test_a_disk_that_hangs_fails_those_who_need_it_in_the_end(
    bare: Bare, is_slow: bool, host_slots: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging = threading.Event()
    faults = Faults(
        [Fault(point="experts.read", kind=FaultKind.DELAY)],
        sleep=lambda seconds: hanging.wait(WAIT_S) and None,
    )
    store = two_tiers(bare, 4, host_slots, given(lambda told: told.loads if is_slow else []), faults=faults)
    assert store.host is not None
    x_TD, routed = route(1, 5)
    three, four, five = (torch.tensor([[expert, expert]]) for expert in (3, 4, 5))
    with monkeypatch.context() as patch:
        patch.setattr(ledger, "HANG_S", 0.05)
        with pytest.raises(ExpertReadError, match=r"record 3 .* could not be read within 0\.05 s"):
            store.compute(0, x_TD, routed._replace(ids_Tk=three), act="silu")
    for ids_Tk in (four, five):
        others = routed._replace(ids_Tk=ids_Tk)
        assert torch.equal(store.compute(0, x_TD, others, act="silu"), bare.expected(0, x_TD, others))
    hanging.set()
    for tier in (store.host.store, store):
        while tier._ledger.snapshot(lambda tier=tier: bool(tier._ledger._stuck or tier._ledger._reads)):
            threading.Event().wait(0.001)
    again = routed._replace(ids_Tk=three)
    assert torch.equal(store.compute(0, x_TD, again, act="silu"), bare.expected(0, x_TD, again))
    store.check_integrity(records=True)
    store.close()


class FakeCuda:
    """What pins memory, and what it was told."""

    def __init__(self, error: int = 0) -> None:
        self.error = error
        self.pinned: dict[int, int] = {}

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
        self.pinned[address] = num_bytes
        return self.error

    def cudaHostUnregister(self, address: int) -> int:
        del self.pinned[address]
        return 0


def test_pinned_rows_stay_what_and_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    monkeypatch.setattr(arena.torch.cuda, "cudart", lambda: cuda)
    made = HostArena(3, 4096, 8, pinned=True)
    assert cuda.pinned == {made.rows_RB.data_ptr(): 3 * 4096}
    assert made.capacity == 3
    made.buffer(1)[:] = b"\1" * 4096
    made.give_back(1)
    assert int(made.rows_RB[1].unique()) == 1, "a GPU would go on reading the old pages"
    made.close()
    made.close()
    assert not cuda.pinned
    monkeypatch.setattr(arena.torch.cuda, "cudart", lambda: FakeCuda(error=2))
    with pytest.raises(RuntimeError, match="12288 bytes of main memory cannot be pinned: CUDA error 2"):
        HostArena(3, 4096, 8, pinned=True)


def test_a_row_of_a_device_is_filled_from_main_memory() -> None:
    made = DeviceArena(2, 4096, torch.device("cpu"))
    made.put(1, torch.full((4096,), 7, dtype=torch.uint8))
    assert [int(row.unique()) for row in made.rows_RB] == [0, 7]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_and_its_cpu_give_what_all_experts_in_memory_give(bare: Bare) -> None:
    """Within 1e-3: the two sides add up in different orders."""
    device = torch.device("cuda", 0)
    below = bare.store(10, "mrs", staging=2, pinned=True)
    store = bare.store(
        5, "mrs", staging=2, device=device, host=HostTier(below), sides=given(at_random(2)), readers=3
    )
    for step in range(30):
        layer = step % SHAPE.layers
        x_TD, routed = route(1 + step % 9, step)
        there = type(routed)(*(tensor.to(device) for tensor in routed))
        out_TD = store.compute(layer, x_TD.to(device), there, act="silu")
        assert torch.allclose(out_TD.cpu(), bare.expected(layer, x_TD, routed), rtol=1e-3, atol=1e-3)
    stats = store.stats()
    assert min(stats.computed.values()) > 0
    times = store.detail()["times"]
    assert isinstance(times, dict)
    store.check_integrity(records=True)
    store.close()
