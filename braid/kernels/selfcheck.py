"""A fixed small problem per native kernel, run once when the library is loaded: a broken build must not serve."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from braid.core.experts import FORMATS, ExpertLayout
from braid.kernels import reference
from braid.kernels.native import Native

if TYPE_CHECKING:
    from braid.layers.batch import ForwardBatch

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
"""Largest relative error (Euclidean norm) against the reference."""


def _numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Fixed numbers in [-1, 1) without touching torch's random state."""
    count = int(torch.Size(shape).numel())
    return (torch.arange(count) * 7919 % 2003 / 1001.5 - 1.0).view(shape).to(dtype)


def _batch(context_lens: list[int], query_lens: list[int]) -> ForwardBatch:
    """Sequences over blocks of 16 slots, laid out one after another."""
    starts = torch.tensor([0, *query_lens]).cumsum(0)
    spans = [range(c - q, c) for c, q in zip(context_lens, query_lens, strict=True)]
    width = -(-max(context_lens) // 16)
    return cast(
        "ForwardBatch",
        SimpleNamespace(
            positions_T=torch.tensor([p for span in spans for p in span]),
            query_start=starts.tolist(),
            query_start_S1=starts.int(),
            context_lens=context_lens,
            context_lens_S=torch.tensor(context_lens, dtype=torch.int32),
            block_tables_SB=torch.arange(len(spans) * width, dtype=torch.int32).view(-1, width),
            block_size=16,
            num_decodes=sum(q == 1 for q in query_lens),
        ),
    )


def _attention_pair(native: Native, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
    batch = _batch([70, 37], [1, 20])
    q, k, v = (_numbers(*shape, dtype=dtype) for shape in ((21, 4, 64), (10, 16, 2, 64), (10, 16, 2, 64)))
    got = native.paged_attention(q, k, v.flip(0), batch, 0.125, 48, 30.0)
    return got, reference.paged_attention(q, k, v.flip(0), batch, scale=0.125, window=48, softcap=30.0)


def _moe_pair(native: Native, dtype: torch.dtype) -> tuple[Tensor | None, Tensor]:
    x, gate_up, down = (_numbers(*s, dtype=dtype) / 4 for s in ((5, 64), (4, 96, 64), (4, 64, 48)))
    ids, weights = torch.tensor([[0, 3], [1, 3], [3, 1], [0, 1], [2, 0]]), _numbers(5, 2)
    got = native.moe_ffn(x, ids, weights, gate_up, down, "silu")
    return got, reference.moe_ffn(x, ids, weights, gate_up, down)


def _records(layout: ExpertLayout, count: int) -> Tensor:
    """Records whose numbers lie in [-1, 1)."""
    record = torch.zeros(count, layout.record_bytes, dtype=torch.uint8)
    for part, (offset, size) in enumerate(layout.parts):
        room = record[:, offset : offset + size]
        if not layout.is_quantised:
            dtype = getattr(torch, layout.format)
            room.copy_(_numbers(count, size // dtype.itemsize, dtype=dtype).view(torch.uint8))
        elif part % 2:
            scales = torch.full((count, size // 2), 2.0**-7 if layout.format == "int8" else 2.0**-3)
            room.copy_(scales.bfloat16().view(torch.uint8))
        else:
            room.copy_(_numbers(count, size) * 120 + 128)
    return record


def _expert_pair(native: Native, dtype: torch.dtype, format: str) -> tuple[Tensor | None, Tensor]:
    """Two experts of four, one of them with more rows than one tile takes."""
    layout, x = ExpertLayout(format, 96, 64), _numbers(20, 96, dtype=dtype)
    ids, slots = torch.tensor([[0, 3], [1, 3]]).repeat(10, 1), torch.tensor([2, -1, -1, 0])
    got, wanted = torch.zeros(2, 40, 96)
    arena = _records(layout, 3)
    taken = native.expert_pairs(x, ids, arena, slots, layout, got, "silu")
    reference.expert_pairs(x, ids, arena, slots, layout, wanted)
    return got if taken else None, wanted


def _pairs(native: Native, dtype: torch.dtype) -> dict[str, tuple[Tensor | None, Tensor]]:
    """Kernel -> (native result, reference result)."""
    x, weight, norm = _numbers(5, 96, dtype=dtype), _numbers(50, 96, dtype=dtype), _numbers(96)
    heads, angles = _numbers(5, 2, 64, dtype=dtype), _numbers(5, 32)
    turned, cache = heads.clone(), torch.zeros(2, 16, 96, dtype=dtype)
    native.rope(turned, heads.clone(), angles.cos(), angles.sin(), False)
    native.store(x, cache, torch.tensor([3, 31, 0, 8, 20]))
    return {
        "linear": (
            native.linear(x, weight, weight[:, 0].contiguous()),
            reference.linear(x, weight, weight[:, 0]),
        ),
        "rms_norm": (native.rms_norm(x, norm, 1e-5), reference.rms_norm(x, norm, 1e-5)),
        "rope": (turned, reference.rope(heads, heads, angles.cos(), angles.sin())[0]),
        "gate_mul": (native.gate_mul(x, gelu=False), reference.silu_mul(x)),
        "scatter": (cache.flatten(0, 1)[[3, 31, 0, 8, 20]], x),
        "argmax": (native.argmax(x), reference.argmax(x)),
        "paged_attention": _attention_pair(native, dtype),
        "moe_ffn": _moe_pair(native, dtype),
        **{f"expert_pairs {name}": _expert_pair(native, dtype, name) for name in FORMATS},
        "combine_pairs": (
            native.combine_pairs(_numbers(10, 50), _numbers(5, 2), dtype),
            reference.combine_pairs(_numbers(10, 50), _numbers(5, 2), dtype),
        ),
    }


def failures(native: Native) -> list[str]:
    """Kernels whose result is off, with dtype; empty when all is well."""
    failed = []
    for dtype, tolerance in TOLERANCE.items():
        for kernel, (got, wanted) in _pairs(native, dtype).items():
            error = torch.inf if got is None else (got.double() - wanted.double()).norm()
            if not error <= tolerance * wanted.double().norm():
                failed.append(f"{kernel} ({dtype})")
    return failed
