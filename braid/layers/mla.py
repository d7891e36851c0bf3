"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, 2.1) over paged latents.

Only the normed latent and one rotated key are kept per token. The key projection is absorbed into the query and the
value projection is applied to the attended latent, so that K and V are never expanded.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

import braid.kernels as ops
from braid.layers.attention import KV
from braid.layers.batch import ForwardBatch
from braid.layers.linear import Linear
from braid.layers.norm import RMSNorm

LATENT_EPS = 1e-6
"""The norms of the latents have their own constant, whatever the model's ``rms_norm_eps``."""


class Latent(NamedTuple):
    """Sizes. ``q_rank`` 0: queries are not compressed. A query is ``nope`` plain and ``rope`` rotated numbers."""

    heads: int
    q_rank: int
    kv_rank: int
    nope: int
    rope: int
    v: int


class LatentAttention(nn.Module):
    """Causal attention over latents.

    Args:
        scale: what scores are multiplied by.
        interleaved: rotated pairs are (2i, 2i+1).
        bias: the first projections and the last one have biases.
    """

    def __init__(
        self,
        hidden_size: int,
        sizes: Latent,
        *,
        scale: float,
        dtype: torch.dtype,
        interleaved: bool = True,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.sizes, self.scale, self.interleaved = sizes, scale, interleaved
        q_size = sizes.heads * (sizes.nope + sizes.rope)
        self.q_down = Linear(hidden_size, [sizes.q_rank], bias=bias, dtype=dtype) if sizes.q_rank else None
        self.q_norm = RMSNorm(sizes.q_rank, LATENT_EPS) if sizes.q_rank else None
        self.q_up = Linear(sizes.q_rank or hidden_size, [q_size], dtype=dtype)
        self.kv_down = Linear(hidden_size, [sizes.kv_rank + sizes.rope], bias=bias, dtype=dtype)
        self.kv_norm = RMSNorm(sizes.kv_rank, LATENT_EPS)
        self.kv_up = Linear(sizes.kv_rank, [sizes.heads * (sizes.nope + sizes.v)], dtype=dtype)
        self.out = Linear(sizes.heads * sizes.v, [hidden_size], bias=bias, dtype=dtype)

    @property
    def kv_shapes(self) -> tuple[tuple[int, ...], ...]:
        return ((self.sizes.kv_rank + self.sizes.rope,),)

    def _queries(self, x_TD: Tensor) -> tuple[Tensor, Tensor]:
        if self.q_down is not None and self.q_norm is not None:
            x_TD = self.q_norm(self.q_down(x_TD))
        q_THE: Tensor = self.q_up(x_TD).view(len(x_TD), self.sizes.heads, -1)
        plain, turned = torch.split(q_THE, [self.sizes.nope, self.sizes.rope], dim=-1)
        return plain, turned

    def _projections(self) -> tuple[Tensor, Tensor]:
        """Key and value projections per head: [H, nope, rank] and [H, v, rank], views of the checkpoint's matrix."""
        both = self.kv_up.weight.view(self.sizes.heads, self.sizes.nope + self.sizes.v, -1)
        key, value = torch.split(both, [self.sizes.nope, self.sizes.v], dim=1)
        return key, value

    def forward(self, x_TD: Tensor, cos_sin: tuple[Tensor, Tensor], batch: ForwardBatch, kv: KV) -> Tensor:
        sizes, (cache,) = self.sizes, kv
        plain_THn, turned_THr = self._queries(x_TD)
        latent_TR, key_Tr = self.kv_down(x_TD).split([sizes.kv_rank, sizes.rope], dim=-1)
        turned_THr, key_T1r = ops.rope(
            turned_THr, key_Tr.unsqueeze(1), *cos_sin, interleaved=self.interleaved
        )
        entry = torch.cat((self.kv_norm(latent_TR), key_T1r.squeeze(1)), dim=-1)
        ops.write_latent(entry, cache, batch.slot_mapping_T)
        key_HnR, value_HvR = self._projections()
        latent_THR = ops.head_linear(plain_THn, key_HnR.transpose(1, 2))
        seen_THR = ops.paged_attention_mla(
            latent_THR, turned_THr, cache, batch, scale=self.scale, rank=sizes.kv_rank
        )
        projected: Tensor = self.out(ops.head_linear(seen_THR, value_HvR).flatten(1))
        return projected
