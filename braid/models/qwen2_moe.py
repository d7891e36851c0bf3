"""Qwen1.5-MoE and Qwen2-MoE: experts beside a gated shared one, and dense layers between."""

from __future__ import annotations

import torch

from braid.models.assemble import (
    ATTENTION_NAMES,
    EXPERT_NAMES,
    LAYER,
    MLP_NAMES,
    Names,
    attention,
    block,
    causal_lm,
    feed_forward,
    shared_names,
)
from braid.models.config import ModelConfig
from braid.models.decoder import Block, CausalLM

SHARED_GATE_NAMES: Names = {"blocks.{l}.mlp.shared_gate": (f"{LAYER}.mlp.shared_expert_gate",)}
NAMES = ATTENTION_NAMES | MLP_NAMES | EXPERT_NAMES | shared_names("shared_expert") | SHARED_GATE_NAMES


def build(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> CausalLM:
    def make_block(layer: int) -> Block:
        return block(config, layer, attention(config, layer, dtype), feed_forward(config, layer, dtype))

    return causal_lm(config, make_block, NAMES, dtype=dtype, device=device)
