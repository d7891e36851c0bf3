"""Linear layers. Matrices that read the same input are stacked into one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import braid.kernels as ops
from braid.layers.weight import weight


class Linear(nn.Module):
    """``y = x W^T + b``.

    Args:
        rows: output features of each stacked matrix; the loader fills them in this order.
    """

    def __init__(
        self, in_features: int, rows: Sequence[int], *, bias: bool = False, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.rows = tuple(rows)
        self.weight = weight(sum(rows), in_features, dtype=dtype)
        self.bias = weight(sum(rows), dtype=dtype) if bias else None

    def forward(self, x_TK: Tensor) -> Tensor:
        return ops.linear(x_TK, self.weight, self.bias)


class Embedding(nn.Module):
    """Token rows, multiplied by ``scale`` as rounded to the compute dtype (Gemma)."""

    def __init__(self, vocab_size: int, hidden_size: int, *, scale: float = 1.0, dtype: torch.dtype) -> None:
        super().__init__()
        self.scale = float(torch.tensor(scale, dtype=dtype))
        self.weight = weight(vocab_size, hidden_size, dtype=dtype)

    def forward(self, token_ids_T: Tensor) -> Tensor:
        x_TD = self.weight[token_ids_T]
        return x_TD if self.scale == 1.0 else x_TD * self.scale
