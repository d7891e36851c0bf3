"""Experts as records: the reference against formulas, native against the reference, and what bits may not depend on."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

import braid.kernels as ops
from braid.core.experts import FORMATS, QUANTISED, ExpertLayout
from braid.kernels import reference
from braid.kernels.loader import open_library, supported_isas
from braid.kernels.native import Native

DTYPES = [torch.float32, torch.bfloat16]
ISAS = supported_isas()

needs_native = pytest.mark.skipif(not ISAS, reason="native library not built")


@pytest.fixture(params=ISAS or ["none"])
def native(request: pytest.FixtureRequest) -> Native:
    return Native(open_library(request.param))


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def quantised(weight: Tensor, group: int, most: int) -> tuple[Tensor, Tensor]:
    """Whole numbers and bf16 scales of a matrix, group by group along its rows."""
    grouped = weight.float().view(len(weight), -1, group)
    scales = (grouped.abs().amax(-1, keepdim=True) / most).bfloat16()
    numbers = (grouped / scales.float()).round().clamp(-most, most)
    return numbers.view_as(weight), scales.flatten(1)


def matrix_bytes(weight: Tensor, layout: ExpertLayout) -> tuple[bytes, bytes]:
    """A matrix and its scales as `ExpertLayout` words it, number by number."""
    if not layout.is_quantised:
        return weight.to(getattr(torch, layout.format)).contiguous().view(torch.uint8).numpy().tobytes(), b""
    numbers, scales = quantised(
        weight, layout.group_of(weight.shape[1]), 127 if layout.format == "int8" else 7
    )
    packed = bytearray()
    for row in numbers.int().tolist():
        if layout.format == "int8":
            packed += bytes(q & 255 for q in row)
            continue
        for start in range(0, len(row), 32):
            packed += bytes(row[start + i] + 8 | row[start + i + 16] + 8 << 4 for i in range(16))
    return bytes(packed), scales.contiguous().view(torch.uint8).numpy().tobytes()


def record_of(gate_up: Tensor, down: Tensor, layout: ExpertLayout) -> Tensor:
    record = bytearray(layout.record_bytes)
    parts = (*matrix_bytes(gate_up, layout), *matrix_bytes(down, layout))
    for (offset, size), part in zip(layout.parts, parts, strict=True):
        assert len(part) == size
        record[offset : offset + size] = part
    return torch.frombuffer(record, dtype=torch.uint8)


def arena_of(gate_up_X2FD: Tensor, down_XDF: Tensor, layout: ExpertLayout) -> Tensor:
    return torch.stack([record_of(g, d, layout) for g, d in zip(gate_up_X2FD, down_XDF, strict=True)])


def experts(X: int, D: int, F: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    gate_up, down = (torch.randn(X, *s, generator=generator) / 4 for s in ((2 * F, D), (D, F)))
    return gate_up.to(dtype), down.to(dtype)


def rows(T: int, D: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(T, D, generator=torch.Generator().manual_seed(T)).to(dtype)


def routing(T: int, X: int, k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(T)
    return torch.rand(T, X, generator=generator).topk(k).indices, torch.rand(T, k, generator=generator)


@pytest.mark.parametrize("format", FORMATS)
def test_a_record_gives_back_what_was_put_in(format: str) -> None:
    layout = ExpertLayout(format, 96, 64)
    gate_up, down = (matrices[0] for matrices in experts(1, 96, 64))
    got = reference.expert_weights(record_of(gate_up, down, layout), layout)
    for matrix, weights in zip((gate_up, down), got, strict=True):
        if not layout.is_quantised:
            assert torch.equal(weights, matrix.to(getattr(torch, format)))
            continue
        group = layout.group_of(matrix.shape[1])
        numbers, scales = quantised(matrix, group, 127 if format == "int8" else 7)
        assert torch.equal(weights, numbers * scales.float().repeat_interleave(group, 1))
        assert (weights - matrix).abs().max() <= 0.51 * scales.float().max()


@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", FORMATS)
def test_pairs_are_each_experts_unweighted_output(format: str, dtype: torch.dtype, act: str) -> None:
    layout = ExpertLayout(format, 32, 64)
    arena, ids = arena_of(*experts(5, 32, 64), layout), routing(9, 5, 3)[0]
    x = rows(9, 32, dtype)
    pairs = torch.full((27, 32), torch.nan)
    slots = torch.tensor([4, 2, -1, 0, 1])
    reference.expert_pairs(x, ids, arena, slots, layout, pairs, act=act)
    for p, expert in enumerate(ids.flatten().tolist()):
        if slots[expert] < 0:
            assert pairs[p].isnan().all()
            continue
        gate_up, down = (w.double() for w in reference.expert_weights(arena[slots[expert]], layout))
        gate, up = (x[p // 3].double() @ gate_up.T).chunk(2)
        gelu = torch.nn.functional.gelu(gate, approximate="tanh")
        wanted = (gate * gate.sigmoid() if act == "silu" else gelu) * up @ down.T
        tolerance = 1e-5 if dtype is torch.float32 else 3e-2
        assert (pairs[p] - wanted).norm() <= tolerance * wanted.norm()


def test_the_sum_goes_by_the_order_of_the_choices() -> None:
    pairs = torch.tensor([[1e8], [1.0], [-1e8], [1.0], [1e8], [-1e8]])
    for combined in (reference.combine_pairs, ops.combine_pairs):
        out = combined(pairs, torch.ones(2, 3), torch.float32)
        assert out.tolist() == [[0.0], [0.0]]
        assert combined(pairs[[0, 2, 1]], torch.ones(1, 3), torch.bfloat16).tolist() == [[1.0]]


@pytest.mark.parametrize("T", [1, 6, 90])
@pytest.mark.parametrize("w_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kernels", [ops, reference], ids=["ops", "reference"])
def test_records_of_plain_numbers_give_what_matrices_give(
    kernels: ModuleType, dtype: torch.dtype, w_dtype: torch.dtype, T: int
) -> None:
    layout = ExpertLayout(str(w_dtype).removeprefix("torch."), 64, 48)
    gate_up, down = experts(8, 64, 48, w_dtype)
    arena, (ids, weights) = arena_of(gate_up, down, layout), routing(T, 8, 3)
    x, pairs = rows(T, 64, dtype), torch.empty(3 * T, 64)
    for half in (torch.arange(8) % 2 == 0, torch.arange(8) % 2 == 1):
        kernels.expert_pairs(x, ids, arena, torch.arange(8).masked_fill(half, -1), layout, pairs)
    assert torch.equal(
        kernels.combine_pairs(pairs, weights, dtype), kernels.moe_ffn(x, ids, weights, gate_up, down)
    )


def test_slots_and_experts_that_do_not_exist_are_refused() -> None:
    layout = ExpertLayout("int4", 32, 32)
    arena, x, pairs = arena_of(*experts(2, 32, 32), layout), torch.randn(1, 32), torch.empty(1, 32)
    for expert, slots in ((2, [0, 1]), (1, [0, 2])):
        for kernels in (ops, reference):
            with pytest.raises(IndexError):
                kernels.expert_pairs(x, torch.tensor([[expert]]), arena, torch.tensor(slots), layout, pairs)


# --- native ---


@needs_native
@pytest.mark.parametrize("act", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", FORMATS)
def test_native_equals_the_reference(native: Native, format: str, dtype: torch.dtype, act: str) -> None:
    layout = ExpertLayout(format, 96, 160)
    arena, ids, x = arena_of(*experts(4, 96, 160), layout), routing(30, 6, 2)[0], rows(30, 96, dtype)
    slots = torch.tensor([3, -1, 0, -1, 2, 1])
    got, wanted = torch.full((2, 60, 96), torch.nan)
    assert native.expert_pairs(x, ids, arena, slots, layout, got, act)
    reference.expert_pairs(x.float(), ids, arena, slots, layout, wanted, act=act)
    there = slots[ids.flatten()] >= 0
    assert got[~there].isnan().all()
    assert (got - wanted)[there].norm() <= 3e-6 * wanted[there].norm()


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("format", QUANTISED)
@pytest.mark.parametrize("size", [(64, 96), (1152, 32), (32, 2080)])
def test_a_row_has_the_bits_of_its_dequantised_weights_alone(
    native: Native, format: str, dtype: torch.dtype, size: tuple[int, int]
) -> None:
    """At every load, on both sides of where a kernel dequantises only once."""
    layout, plain = ExpertLayout(format, *size), ExpertLayout("float32", *size)
    arena, x = arena_of(*experts(1, *size), layout), rows(40, size[0], dtype)
    wide = record_of(*reference.expert_weights(arena[0], layout), plain)[None]

    def pairs(part: slice, arena: Tensor, layout: ExpertLayout) -> Tensor:
        got, ids = torch.empty(len(x[part]), size[0]), torch.zeros(len(x[part]), 1, dtype=torch.int64)
        assert native.expert_pairs(
            x[part], ids, arena, torch.zeros(1, dtype=torch.int64), layout, got, "silu"
        )
        return got

    whole = pairs(slice(0, 40), wide, plain)
    for load in (*range(1, 16), 24, 25, 40):
        part = slice(40 - load, 40)
        assert torch.equal(pairs(part, arena, layout), whole[part])


@needs_native
@pytest.mark.parametrize("format", FORMATS)
def test_rows_depend_neither_on_the_batch_nor_on_threads(native: Native, format: str, threads: None) -> None:
    layout, slots = ExpertLayout(format, 64, 64), torch.arange(4)
    arena, ids, x = arena_of(*experts(4, 64, 64), layout), routing(530, 4, 2)[0], rows(530, 64)
    whole, got = torch.empty(2, 1060, 64)
    assert native.expert_pairs(x, ids, arena, slots, layout, whole, "silu")
    torch.set_num_threads(3)
    for expert in range(4):
        one = torch.where(torch.arange(4) == expert, slots, -1)
        assert native.expert_pairs(x, ids, arena, one, layout, got, "silu")
    assert torch.equal(got, whole)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [64, 50])
def test_native_combines_as_the_reference(native: Native, dtype: torch.dtype, D: int) -> None:
    pairs, weights = rows(21, D), torch.rand(7, 3)
    got, wanted = native.combine_pairs(pairs, weights, dtype), reference.combine_pairs(pairs, weights, dtype)
    assert got is not None
    assert got.dtype is dtype
    assert (got - wanted).float().norm() <= (1e-6 if dtype is torch.float32 else 1e-2) * wanted.float().norm()


@needs_native
def test_what_does_not_fit_is_left_to_the_reference(native: Native) -> None:
    layout, ids, slots = (
        ExpertLayout("int8", 32, 32),
        torch.zeros(2, 1, dtype=torch.int64),
        torch.zeros(1).long(),
    )
    arena, x, pairs = arena_of(*experts(1, 32, 32), layout), rows(2, 32), torch.empty(2, 32)
    assert native.expert_pairs(x, ids, arena, slots, layout, pairs, "silu")
    assert not native.expert_pairs(x, ids, arena[:, :-1], slots, layout, pairs, "silu")
    assert not native.expert_pairs(x, ids, arena, slots, layout, pairs[:1], "silu")
    assert not native.expert_pairs(x.half(), ids, arena, slots, layout, pairs, "silu")
    assert not native.expert_pairs(x, ids, arena, slots.int(), layout, pairs, "silu")
    assert not native.expert_pairs(x, ids, arena, slots, layout, pairs, "relu")
    assert native.combine_pairs(pairs, torch.ones(3, 1), torch.float32) is None
