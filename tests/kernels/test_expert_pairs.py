"""Experts as records: the reference against formulas, and against experts whose weights lie as matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import braid.kernels as ops
from braid.core.experts import FORMATS, ExpertLayout
from braid.kernels import reference

DTYPES = [torch.float32, torch.bfloat16]


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
    x = torch.randn(9, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
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
def test_records_of_plain_numbers_give_what_matrices_give(
    dtype: torch.dtype, w_dtype: torch.dtype, T: int
) -> None:
    layout = ExpertLayout(str(w_dtype).removeprefix("torch."), 64, 48)
    gate_up, down = experts(8, 64, 48, w_dtype)
    arena, (ids, weights) = arena_of(gate_up, down, layout), routing(T, 8, 3)
    x, pairs = torch.randn(T, 64).to(dtype), torch.empty(3 * T, 64)
    for half in (torch.arange(8) % 2 == 0, torch.arange(8) % 2 == 1):
        reference.expert_pairs(
            x, ids, arena, torch.arange(8).masked_fill(half, -1), layout, pairs, act="silu"
        )
    wanted = reference.moe_ffn(x, ids, weights, gate_up, down)
    assert torch.equal(reference.combine_pairs(pairs, weights, dtype), wanted)


def test_slots_and_experts_that_do_not_exist_are_refused() -> None:
    layout = ExpertLayout("int4", 32, 32)
    arena, x, pairs = arena_of(*experts(2, 32, 32), layout), torch.randn(1, 32), torch.empty(1, 32)
    for expert, slots in ((2, [0, 1]), (1, [0, 2])):
        with pytest.raises(IndexError):
            ops.expert_pairs(x, torch.tensor([[expert]]), arena, torch.tensor(slots), layout, pairs)
