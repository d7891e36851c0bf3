"""KV lives once, in one address space; block ids index its first axis."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from braid.runner.addresses import addresses, favour, give_back, runs


class KVStore:
    """The KV tensors of every layer, zeros at first. On a CPU a page is there once it is touched, so that unused blocks
    cost no memory.

    Args:
        kv_shapes: per layer, the trailing shape of each KV tensor for one token (grouped-query attention: K and V;
            MLA: one latent).
        num_blocks, block_size: tensor shape is ``[num_blocks, block_size, *trailing]``.
    """

    def __init__(
        self,
        kv_shapes: Sequence[tuple[tuple[int, ...], ...]],
        *,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self._memories: list[mmap.mmap] = []
        """Of a CPU, one behind each tensor."""
        self.layers: tuple[tuple[Tensor, ...], ...] = tuple(
            tuple(self._zeros((num_blocks, block_size, *shape), dtype, device) for shape in shapes)
            for shapes in kv_shapes
        )

    def _zeros(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        if device.type != "cpu":
            return torch.zeros(shape, dtype=dtype, device=device)
        memory = addresses(math.prod(shape) * dtype.itemsize)
        favour(memory, 0, len(memory))
        self._memories.append(memory)
        return torch.frombuffer(memory, dtype=dtype).view(shape)

    @property
    def can_give_back(self) -> bool:
        """Whether memory of single blocks can go."""
        return bool(self._memories)

    def give_back(self, blocks: Iterable[int]) -> None:
        """Nobody uses these blocks until they are written again: their memory is free for others."""
        together = runs(blocks)
        for memory in self._memories:
            size = len(memory) // self.num_blocks
            for first, end in together:
                give_back(memory, first * size, end * size)

    def clear(self, slots: Tensor) -> None:
        """Zero the KV of these slots (``block_id * block_size + offset``) in every layer."""
        for layer in self.layers:
            for tensor in layer:
                tensor.flatten(0, 1)[slots] = 0

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)
