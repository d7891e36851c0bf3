"""A small KV store with content."""

from __future__ import annotations

import pytest
import torch

from braid.runner.kv_store import KVStore


def filled_store(seed: int = 0) -> KVStore:
    shapes = [((2, 8), (2, 8)), ((24,),)]
    device = torch.device("cpu")
    kv = KVStore(shapes, num_blocks=6, block_size=4, dtype=torch.bfloat16, device=device)
    generator = torch.Generator().manual_seed(seed)
    for layer in kv.layers:
        for tensor in layer:
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return kv


@pytest.fixture
def kv() -> KVStore:
    return filled_store()


def content(kv: KVStore, block: int) -> list[torch.Tensor]:
    return [tensor[block].clone() for layer in kv.layers for tensor in layer]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
