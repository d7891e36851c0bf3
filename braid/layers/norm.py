"""Root-mean-square norms; their weights stay float32 whatever the compute dtype."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import braid.kernels as ops
from braid.layers.weight import weight


class RMSNorm(nn.Module):
    """``x / rms(x) * w``.

    Args:
        load_offset: what the loader adds to the stored weight (1 for Gemma, which stores ``w - 1``).
    """

    def __init__(self, size: int, eps: float, *, load_offset: float = 0.0) -> None:
        super().__init__()
        self.eps, self.load_offset = eps, load_offset
        self.weight = weight(size, dtype=torch.float32)

    def forward(self, x_TD: Tensor) -> Tensor:
        return ops.rms_norm(x_TD, self.weight, self.eps)

    def add(self, x_TD: Tensor, residual_TD: Tensor) -> tuple[Tensor, Tensor]:
        """``(norm(x + residual), x + residual)``."""
        return ops.add_rms_norm(x_TD, residual_TD, self.weight, self.eps)
