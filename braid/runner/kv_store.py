"""KV lives once, in one address space; block ids index its first axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU the operating system clears a page when it is first touched, so unused blocks cost no memory.

    ``torch.zeros`` writes every byte at once.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)


class KVStore:
    """The KV tensors of every layer.

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
        self.layers: tuple[tuple[Tensor, ...], ...] = tuple(
            tuple(_zeros((num_blocks, block_size, *shape), dtype, device) for shape in shapes)
            for shapes in kv_shapes
        )

    def clear(self, slots: Tensor) -> None:
        """Zero the KV of these slots (``block_id * block_size + offset``) in every layer."""
        for layer in self.layers:
            for tensor in layer:
                tensor.flatten(0, 1)[slots] = 0

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for layer in self.layers for tensor in layer)
