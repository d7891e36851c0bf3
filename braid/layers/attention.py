"""Grouped-query attention over paged KV."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

import braid.kernels as ops
from braid.layers.batch import ForwardBatch
from braid.layers.linear import Linear
from braid.layers.norm import RMSNorm

KV = tuple[Tensor, ...]


class Heads(NamedTuple):
    """Numbers of query heads H and KV heads G, and their size E."""

    query: int
    kv: int
    size: int


class Attention(nn.Module):
    """Causal attention with rotary positions.

    Args:
        scale: what scores are multiplied by.
        window: sliding window in tokens, the query's own included; None for all.
        softcap: tanh bound of the scores; None for none.
        clip: bound of the absolute values of Q, K and V; None for none.
        q_norm, k_norm: norms of Q and K, over a head or over all heads at once as their size says.
    """

    def __init__(
        self,
        hidden_size: int,
        heads: Heads,
        *,
        scale: float,
        dtype: torch.dtype,
        qkv_bias: bool = False,
        out_bias: bool = False,
        window: int | None = None,
        softcap: float | None = None,
        clip: float | None = None,
        q_norm: RMSNorm | None = None,
        k_norm: RMSNorm | None = None,
    ) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        self.window, self.softcap, self.clip = window, softcap, clip
        self.sizes = [heads.query * heads.size, heads.kv * heads.size, heads.kv * heads.size]
        self.qkv = Linear(hidden_size, self.sizes, bias=qkv_bias, dtype=dtype)
        self.out = Linear(self.sizes[0], [hidden_size], bias=out_bias, dtype=dtype)
        self.q_norm, self.k_norm = q_norm, k_norm

    @property
    def kv_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.heads.kv, self.heads.size),) * 2

    def _split(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x_TD).split(self.sizes, dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            q = self.q_norm(q.view(len(q), -1, *self.q_norm.weight.shape))
            k = self.k_norm(k.view(len(k), -1, *self.k_norm.weight.shape))
        if self.clip is not None:
            q, k, v = (x.clamp(-self.clip, self.clip) for x in (q, k, v))
        T, (H, G, E) = len(x_TD), self.heads
        return q.view(T, H, E), k.view(T, G, E), v.view(T, G, E)

    def forward(self, x_TD: Tensor, cos_sin: tuple[Tensor, Tensor], batch: ForwardBatch, kv: KV) -> Tensor:
        q_THE, k_TGE, v_TGE = self._split(x_TD)
        q_THE, k_TGE = ops.rope(q_THE, k_TGE, *cos_sin)
        k_cache, v_cache = kv
        ops.write_kv(k_TGE, v_TGE, k_cache, v_cache, batch.slot_mapping_T)
        out_THE = ops.paged_attention(
            q_THE, k_cache, v_cache, batch, scale=self.scale, window=self.window, softcap=self.softcap
        )
        projected: Tensor = self.out(out_THE.flatten(1))
        return projected
