"""Rows for records: aligned, growing in place, given back; on a device by way of a buffer of each thread."""

from __future__ import annotations

import errno
import mmap
import threading

import pytest
import torch

from braid.core.experts import PAGE
from braid.runner.experts import arena
from braid.runner.experts.arena import Arena, DeviceArena, HostArena, open_arena

from .conftest import SHAPE, Bare, route

SIZE = 3 * PAGE
CPU = torch.device("cpu")


def fill(made: Arena, row: int, byte: int) -> None:
    made.buffer(row)[:] = bytes([byte]) * SIZE
    made.landed(row)


@pytest.mark.parametrize("made", [HostArena(3, SIZE, 8), DeviceArena(3, SIZE, CPU)], ids=["host", "device"])
def test_rows_keep_what_they_hold_while_others_are_filled_and_more_are_made(made: Arena) -> None:
    for row in range(3):
        fill(made, row, row + 1)
    made.grow(8)
    assert made.num_rows == 8
    fill(made, 7, 9)
    fill(made, 1, 5)
    made.used()
    made.grow(2)
    assert made.num_rows == 8
    assert [int(made.rows_RB[row].unique()) for row in (0, 1, 2, 7)] == [1, 5, 3, 9]


def test_rows_in_main_memory_begin_on_pages_and_stay_where_they_are() -> None:
    made = HostArena(2, SIZE, 5)
    before = made.rows_RB.data_ptr()
    assert before % PAGE == 0
    made.grow(5)
    assert made.rows_RB.data_ptr() == before
    assert made.is_in_place


def test_a_row_that_is_given_back_takes_no_memory_and_can_be_used_again() -> None:
    made = HostArena(4, SIZE, 4)
    for row in range(4):
        fill(made, row, 7)
    made.give_back(2)
    assert [bool(made.rows_RB[row].any()) for row in range(4)] == [True, True, False, True]
    fill(made, 2, 8)
    assert int(made.rows_RB[2].unique()) == 8


def test_a_limit_on_addresses_leaves_what_is_asked_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    inner = arena.addresses

    def limited(num_bytes: int) -> mmap.mmap:
        if num_bytes > 4 * SIZE:
            raise OSError(errno.ENOMEM, "no addresses")
        return inner(num_bytes)

    monkeypatch.setattr(arena, "addresses", limited)
    assert HostArena(4, SIZE, 100).capacity == 4
    with pytest.raises(OSError, match="no addresses"):
        HostArena(5, SIZE, 100)


def test_every_thread_fills_through_a_buffer_of_its_own() -> None:
    made = DeviceArena(2, SIZE, CPU)
    mine = made.buffer(0)
    mine[:] = b"\1" * SIZE
    other = threading.Thread(target=fill, args=(made, 1, 2))
    other.start()
    other.join(60)
    made.landed(0)
    assert [int(row.unique()) for row in made.rows_RB] == [1, 2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_experts_on_a_gpu_are_those_in_its_memory(bare: Bare) -> None:
    """Slots, waves and sizes that change, with copies behind the kernels that still read."""
    device = torch.device("cuda", 0)
    stores = [bare.store(slots, staging=2, device=device) for slots in (24, 3)]
    for step in range(12):
        layer = step % SHAPE.layers
        x_TD, routed = route(1 + step, step)
        there = [tensor.to(device) for tensor in routed]
        outs = [store.compute(layer, x_TD.to(device), type(routed)(*there), act="silu") for store in stores]
        assert torch.equal(*outs)
        assert torch.allclose(outs[0].cpu(), bare.expected(layer, x_TD, routed), rtol=1e-3, atol=1e-3)
        stores[1].resize(3 + step % 4)
    for store in stores:
        store.check_integrity(records=True)
        store.close()


def test_the_device_says_where_rows_are() -> None:
    assert isinstance(open_arena(1, SIZE, 2, CPU), HostArena)
