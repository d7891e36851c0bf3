"""Qwen3-MoE: Qwen3 with experts, and dense layers between."""

from __future__ import annotations

import torch

from braid.models.assemble import (
    ATTENTION_NAMES,
    EXPERT_NAMES,
    MLP_NAMES,
    QK_NORM_NAMES,
    attention,
    block,
    causal_lm,
    feed_forward,
)
from braid.models.config import ModelConfig
from braid.models.decoder import Block, CausalLM

NAMES = ATTENTION_NAMES | QK_NORM_NAMES | MLP_NAMES | EXPERT_NAMES


def build(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> CausalLM:
    def make_block(layer: int) -> Block:
        return block(config, layer, attention(config, layer, dtype), feed_forward(config, layer, dtype))

    return causal_lm(config, make_block, NAMES, dtype=dtype, device=device)
