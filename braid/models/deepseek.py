"""DeepSeek-V2 and V3: latent attention, dense layers first, then routed and shared experts."""

from __future__ import annotations

import torch

from braid.layers.mla import Latent, LatentAttention
from braid.models.assemble import (
    EXPERT_NAMES,
    LAYER,
    MLP_NAMES,
    Names,
    block,
    causal_lm,
    feed_forward,
    shared_names,
)
from braid.models.config import ModelConfig
from braid.models.decoder import Block, CausalLM

ATTENTION = f"{LAYER}.self_attn"
LATENT_NAMES: Names = {
    "blocks.{l}.attention.q_down": (f"{ATTENTION}.q_a_proj",),
    "blocks.{l}.attention.q_norm": (f"{ATTENTION}.q_a_layernorm",),
    "blocks.{l}.attention.q_up": (f"{ATTENTION}.q_b_proj",),
    "blocks.{l}.attention.kv_down": (f"{ATTENTION}.kv_a_proj_with_mqa",),
    "blocks.{l}.attention.kv_norm": (f"{ATTENTION}.kv_a_layernorm",),
    "blocks.{l}.attention.kv_up": (f"{ATTENTION}.kv_b_proj",),
    "blocks.{l}.attention.out": (f"{ATTENTION}.o_proj",),
}
PLAIN_QUERY_NAMES: Names = {"blocks.{l}.attention.q_up": (f"{ATTENTION}.q_proj",)}
NAMES = LATENT_NAMES | MLP_NAMES | EXPERT_NAMES | shared_names("shared_experts")


def _beyond(num_layers: int) -> str:
    """The multi-token-prediction layers that V3 stores after its last one: any layer number >= ``num_layers``."""
    later = "|".join(str(layer) for layer in range(num_layers, num_layers + 8))
    return rf"model\.layers\.(?:{later})\..+"


def _attention(config: ModelConfig, dtype: torch.dtype) -> LatentAttention:
    mla = config.mla
    assert mla is not None
    return LatentAttention(
        config.hidden_size,
        Latent(config.num_heads, mla.q_rank, mla.kv_rank, mla.nope_size, mla.rope_size, mla.v_size),
        scale=config.attention_scale,
        dtype=dtype,
        interleaved=mla.interleaved,
        bias=config.qkv_bias,
    )


def build(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> CausalLM:
    def make_block(layer: int) -> Block:
        return block(config, layer, _attention(config, dtype), feed_forward(config, layer, dtype))

    plain = config.mla is not None and config.mla.q_rank == 0
    names = NAMES | PLAIN_QUERY_NAMES if plain else NAMES
    inert = (_beyond(config.num_layers),) if config.family == "deepseek_v3" else ()
    return causal_lm(config, make_block, names, dtype=dtype, device=device, inert=inert)
