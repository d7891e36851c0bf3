"""Qwen3: Llama with norms on each head of Q and K."""

from __future__ import annotations

import torch

from braid.models.assemble import ATTENTION_NAMES, MLP_NAMES, QK_NORM_NAMES, attention, block, causal_lm, mlp
from braid.models.config import ModelConfig
from braid.models.decoder import Block, CausalLM

NAMES = ATTENTION_NAMES | QK_NORM_NAMES | MLP_NAMES


def build(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> CausalLM:
    def make_block(layer: int) -> Block:
        return block(config, layer, attention(config, layer, dtype), mlp(config, dtype))

    return causal_lm(config, make_block, NAMES, dtype=dtype, device=device)
