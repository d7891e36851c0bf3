"""Mixtral: Mistral with experts, whose chosen weights add up to one."""

from __future__ import annotations

import torch

from braid.models.assemble import ATTENTION_NAMES, attention, block, causal_lm, expert_names, feed_forward
from braid.models.config import ModelConfig
from braid.models.decoder import Block, CausalLM

NAMES = ATTENTION_NAMES | expert_names("block_sparse_moe", "w1", "w3", "w2")


def build(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> CausalLM:
    def make_block(layer: int) -> Block:
        return block(config, layer, attention(config, layer, dtype), feed_forward(config, layer, dtype))

    return causal_lm(config, make_block, NAMES, dtype=dtype, device=device)
