"""Gated feed-forward layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import braid.kernels as ops
from braid.layers.linear import Linear

GATED = {"silu": ops.silu_mul, "gelu_tanh": ops.gelu_tanh_mul}


class GatedMLP(nn.Module):
    """``down(act(gate(x)) * up(x))``; ``act`` is "silu" or "gelu_tanh"."""

    def __init__(
        self, hidden_size: int, size: int, *, dtype: torch.dtype, act: str = "silu", bias: bool = False
    ):
        super().__init__()
        self.gated = GATED[act]
        self.gate_up = Linear(hidden_size, [size, size], bias=bias, dtype=dtype)
        self.down = Linear(size, [hidden_size], bias=bias, dtype=dtype)

    def forward(self, x_TD: Tensor) -> Tensor:
        hidden: Tensor = self.down(self.gated(self.gate_up(x_TD)))
        return hidden
