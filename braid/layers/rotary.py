"""Tables of rotary position embeddings, and the scalings that stretch a context."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

MIN_TABLE = 512


class Rotation(NamedTuple):
    """What `Rotary` needs to know.

    Args:
        dim: R, the number of rotated dimensions of a head.
        kind: "default", "linear", "llama3" or "yarn".
        factor: how much longer the context became.
        original_len: context length before the scaling.
        low_freq_factor, high_freq_factor: llama3's bounds in turns per original context.
        beta_fast, beta_slow, truncate: yarn's bounds in turns, and whether their dimensions are rounded outwards.
        attention_factor: what cos and sin are multiplied by.
    """

    dim: int
    theta: float
    kind: str = "default"
    factor: float = 1.0
    original_len: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0


def _default(rotation: Rotation) -> Tensor:
    return 1.0 / (rotation.theta ** (torch.arange(0, rotation.dim, 2, dtype=torch.float32) / rotation.dim))


def _linear(rotation: Rotation) -> Tensor:
    return _default(rotation) / rotation.factor


def _llama3(rotation: Rotation) -> Tensor:
    """Long waves are stretched, short ones kept, those between blended (the Llama 3.1 model card's reference code)."""
    freq, low, high = _default(rotation), rotation.low_freq_factor, rotation.high_freq_factor
    wavelength = 2 * math.pi / freq
    smooth = (rotation.original_len / wavelength - low) / (high - low)
    blended = (1 - smooth) * freq / rotation.factor + smooth * freq
    stretched = torch.where(wavelength > rotation.original_len / low, freq / rotation.factor, blended)
    return torch.where(wavelength < rotation.original_len / high, freq, stretched)


def _yarn(rotation: Rotation) -> Tensor:
    """Stretch the dimensions that turn less than ``beta_slow`` times, keep those above ``beta_fast`` (2309.00071)."""

    def dimension(turns: float) -> float:
        span = math.log(rotation.original_len / (turns * 2 * math.pi))
        return rotation.dim * span / (2 * math.log(rotation.theta))

    low, high = dimension(rotation.beta_fast), dimension(rotation.beta_slow)
    if rotation.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotation.dim - 1)
    width = high - low or 0.001
    ramp = ((torch.arange(rotation.dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    turns = rotation.theta ** (torch.arange(0, rotation.dim, 2, dtype=torch.float32) / rotation.dim)
    keep = 1 - ramp
    return 1.0 / (rotation.factor * turns) * (1 - keep) + 1.0 / turns * keep


FREQUENCIES: dict[str, Callable[[Rotation], Tensor]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}


class Rotary(nn.Module):
    """cos and sin of every position, float32, grown on demand."""

    def __init__(self, rotation: Rotation) -> None:
        super().__init__()
        self.rotation = rotation
        self._table: Tensor | None = None

    def _grown(self, length: int, device: torch.device) -> Tensor:
        """[2, positions, R/2]: cos, then sin."""
        table = self._table
        if table is None or table.shape[1] < length or table.device != device:
            size = max(MIN_TABLE, 1 << (length - 1).bit_length())
            freq = FREQUENCIES[self.rotation.kind](self.rotation)
            angles = torch.arange(size, dtype=torch.float32).unsqueeze(1) * freq
            table = torch.stack((angles.cos(), angles.sin())) * self.rotation.attention_factor
            self._table = table = table.to(device)
        return table

    def forward(self, positions_T: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin [T, R/2] of these positions, all below ``length``."""
        cos, sin = self._grown(length, positions_T.device).unbind()
        return cos[positions_T], sin[positions_T]
