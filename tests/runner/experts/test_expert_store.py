"""The store alone: the same bits whatever is resident, one read for all rows, waves, sizes that change, counts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from braid.core.errors import InvalidParameterError
from braid.core.experts import ExpertLayout
from braid.core.faults import Faults
from braid.runner.experts.store import ExpertStore

from .conftest import HIDDEN, SHAPE, SIZE, Bare, make_bare, route


class Watch(Faults):
    """Notes the experts in the order in which they are read."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[int] = []

    def around(self, point: str, call: Callable[..., Any], phase: object = "") -> Callable[..., Any]:
        def noted(read: Any) -> Any:
            self.order.append(read.expert)
            return call(read)

        return noted if point == "experts.read" else call


def run(store: ExpertStore, bare: Bare, steps: int = 4) -> None:
    """Steps of all layers, of one to nine rows, each compared with what all experts in memory give."""
    for step in range(steps):
        for layer in range(SHAPE.layers):
            rows = (1, 5, 2, 9)[step % 4]
            x_TD, routed = route(rows, 31 * step + layer)
            out_TD = store.compute(layer, x_TD, routed, act="silu", is_prefill=rows > 4)
            assert torch.equal(out_TD, bare.expected(layer, x_TD, routed))


@pytest.mark.parametrize(
    ("num_slots", "staging", "cache"),
    [
        (0, 1, "mrs"),
        (1, 1, "lru"),
        (5, 2, "lru"),
        (5, 3, "mrs"),
        (12, 1, "lfu"),
        (12, 8, "ewma"),
        (12, 2, "static"),
        (24, 8, "mrs"),
        (1000, 1, "lfru"),
    ],
)
def test_results_are_those_of_experts_in_memory(bare: Bare, num_slots: int, staging: int, cache: str) -> None:
    store = bare.store(num_slots, cache, staging=staging)
    run(store, bare)
    store.check_integrity(records=True)
    assert store.stats().resident <= store.stats().slots == min(num_slots, SHAPE.total)
    store.close()


def test_memory_beyond_slots_and_staging_is_never_touched(bare: Bare) -> None:
    """One copy of experts at most: addresses for all of them are taken, memory is not."""
    store = bare.store(3, "mrs", staging=2)
    run(store, bare)
    rows_RB = store._arena.rows_RB
    assert len(rows_RB) == SHAPE.total + 2
    assert all(bool(row_B.any()) for row_B in rows_RB[2:5])
    assert not bool(rows_RB[5:].any())
    assert store.num_bytes == 5 * bare.file.layout.record_bytes
    store.close()


def test_slots_of_their_own_for_every_layer(bare: Bare) -> None:
    store = bare.store(7, "mrs", scope="layer")
    run(store, bare)
    assert [layer.resident for layer in store.stats().layers] == [3, 2, 2]
    store.check_integrity(records=True)
    store.close()


@pytest.mark.parametrize("form", ["bfloat16", "int8", "int4"])
def test_other_formats_give_the_same_bits_from_one_slot_as_from_all(tmp_path: Path, form: str) -> None:
    bare = make_bare(tmp_path / "experts.braid", ExpertLayout(form, HIDDEN, SIZE))
    few, all_slots = bare.store(1, staging=1), bare.store(24)
    for layer in range(SHAPE.layers):
        x_TD, routed = route(5, layer)
        outs = [store.compute(layer, x_TD, routed, act="gelu_tanh") for store in (few, all_slots)]
        assert torch.equal(*outs)
        assert float(outs[0].abs().max()) > 0
    few.close()
    all_slots.close()


@pytest.mark.parametrize("num_held", range(7))
def test_layers_that_mix_hits_misses_and_bypasses_weigh_every_expert_rightly(
    bare: Bare, num_held: int
) -> None:
    """Six experts are needed, ``num_held`` of them are in slots, two get one, and the rest gets none."""
    store = bare.store(min(num_held + 2, 6), staging=2, floor=0)
    needed = [0, 1, 2, 3, 4, 5]
    for first in range(0, num_held, 2):
        pair = needed[first : min(first + 2, num_held)]
        x_TD, routed = route(1, first, [pair[0], pair[-1]])
        ids_Tk = torch.tensor([[pair[0], pair[-1]]])
        store.compute(0, x_TD, routed._replace(ids_Tk=ids_Tk), act="silu")
    before = store.stats().layers[0]
    assert before.resident == num_held
    x_TD, routed = route(3, 77)
    routed = routed._replace(ids_Tk=torch.tensor([[0, 5], [3, 1], [4, 2]]))
    assert torch.equal(store.compute(0, x_TD, routed, act="silu"), bare.expected(0, x_TD, routed))
    after = store.stats().layers[0]
    assert after.hits - before.hits == num_held
    assert after.misses - before.misses == min(2, 6 - num_held)
    assert after.bypasses - before.bypasses == max(0, 4 - num_held)
    store.check_integrity(records=True)
    store.close()


def test_rows_of_a_batch_share_one_read_and_the_heaviest_is_read_first(bare: Bare) -> None:
    watch = Watch()
    store = bare.store(4, readers=1, staging=8, faults=watch)
    x_TD, routed = route(6, 3)
    routed = routed._replace(ids_Tk=torch.tensor([[5, 2], [2, 5], [5, 7], [2, 5], [7, 5], [1, 5]]))
    assert torch.equal(store.compute(1, x_TD, routed, act="silu"), bare.expected(1, x_TD, routed))
    assert watch.order == [8 + 5, 8 + 2, 8 + 7, 8 + 1]
    store.close()


@pytest.mark.parametrize("staging", [1, 2, 5])
def test_a_prompt_that_needs_more_than_there_is_room_for_goes_in_waves(bare: Bare, staging: int) -> None:
    store = bare.store(2, staging=staging)
    x_TD, routed = route(64, 9)
    out_TD = store.compute(2, x_TD, routed, act="silu", is_prefill=True)
    assert torch.equal(out_TD, bare.expected(2, x_TD, routed))
    stats = store.stats()
    assert stats.bytes_by_cause == {"demand": 0, "prefill": 8 * bare.file.layout.record_bytes, "prefetch": 0}
    assert stats.layers[2].misses + stats.layers[2].bypasses == 8
    assert stats.layers[2].bypasses >= 6
    store.check_integrity(records=True)
    store.close()


def test_sizes_change_between_steps_and_memory_is_given_back(bare: Bare) -> None:
    store = bare.store(24)
    run(store, bare, 2)
    for num_slots in (20, 3, 9, 0, 24):
        store.resize(num_slots)
        store.check_integrity(records=True)
        assert store.stats().resident <= num_slots
        assert store.num_bytes == (num_slots + store.staging) * bare.file.layout.record_bytes
        if num_slots == 0:
            assert not bool(store._arena.rows_RB[store.staging :].any())
        run(store, bare, 2)
    store.resize(10_000)
    assert store.stats().slots == SHAPE.total
    with pytest.raises(InvalidParameterError, match="at least 0"):
        store.resize(-1)
    store.close()


def test_every_use_and_every_byte_is_counted_once(bare: Bare) -> None:
    store = bare.store(6, "mrs")
    needed = 0
    for step in range(8):
        for layer in range(SHAPE.layers):
            x_TD, routed = route(3, 100 * step + layer)
            needed += len(set(routed.ids_Tk.flatten().tolist()))
            store.compute(layer, x_TD, routed, act="silu")
    stats, detail = store.stats(), store.detail()
    layers = stats.layers
    assert sum(layer.hits + layer.misses + layer.bypasses for layer in layers) == needed
    read = sum(layer.misses + layer.bypasses for layer in layers)
    assert detail["reads"] == read
    assert sum(stats.bytes_by_cause.values()) == read * bare.file.layout.record_bytes
    assert detail["unions"] == {3: pytest.approx(needed / 24)}
    assert stats.cycle == 6
    assert min(stats.compute_s, stats.link_busy_s, stats.planning_s, stats.stall_s) > 0
    store.close()


def test_numbers_that_cannot_be_are_named(bare: Bare) -> None:
    with pytest.raises(InvalidParameterError, match="at least 0, got -1"):
        bare.store(-1)
    with pytest.raises(
        InvalidParameterError, match="staging rows and readers must be at least 1, got 0 and 2"
    ):
        bare.store(1, staging=0)
    with pytest.raises(InvalidParameterError, match="'always'"):
        bare.store(1, prefetch="always")
