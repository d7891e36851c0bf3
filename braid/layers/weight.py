"""How layers declare their weights: shape and dtype now, storage and numbers when the checkpoint is loaded."""

from __future__ import annotations

import torch
from torch import nn


def weight(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """A weight without storage; `braid.models.loading` puts the checkpoint's tensor in its place."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)
