"""Qwen2 and Qwen2.5: Llama with biases on Q, K and V."""

from __future__ import annotations

import torch

from braid.models.assemble import ATTENTION_NAMES, MLP_NAMES, attention, block, causal_lm, mlp
from braid.models.config import ModelConfig
from braid.models.decoder import Block, CausalLM

NAMES = ATTENTION_NAMES | MLP_NAMES


def build(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> CausalLM:
    def make_block(layer: int) -> Block:
        return block(config, layer, attention(config, layer, dtype), mlp(config, dtype))

    return causal_lm(config, make_block, NAMES, dtype=dtype, device=device)
