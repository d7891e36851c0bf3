"""Gemma 3 (text): norms before and after each branch, local layers between global ones, scaled embeddings."""

from __future__ import annotations

import torch

from braid.layers.norm import RMSNorm
from braid.models.assemble import (
    ATTENTION_NAMES,
    LAYER,
    MLP_NAMES,
    QK_NORM_NAMES,
    Names,
    attention,
    causal_lm,
    mlp,
)
from braid.models.config import ModelConfig
from braid.models.decoder import Block, CausalLM

NORM_NAMES: Names = {
    "blocks.{l}.attention_out_norm": (f"{LAYER}.post_attention_layernorm",),
    "blocks.{l}.mlp_norm": (f"{LAYER}.pre_feedforward_layernorm",),
    "blocks.{l}.mlp_out_norm": (f"{LAYER}.post_feedforward_layernorm",),
}
NAMES = ATTENTION_NAMES | QK_NORM_NAMES | MLP_NAMES | NORM_NAMES
WITHIN: dict[str, tuple[tuple[str, str], ...]] = {
    "Gemma3ForConditionalGeneration": (
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "model."),
        ("model.language_model.", "model."),
    )
}
"""The text model's place in a checkpoint that also sees images."""
EYES = r"(?:model\.)?(?:vision_tower|multi_modal_projector)\..+"
NORM_OFFSET = 1.0
"""Checkpoints store ``w - 1``."""


def build(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> CausalLM:
    def norm() -> RMSNorm:
        return RMSNorm(config.hidden_size, config.norm_eps, load_offset=NORM_OFFSET)

    def make_block(layer: int) -> Block:
        return Block(
            attention(config, layer, dtype, norm_offset=NORM_OFFSET),
            mlp(config, dtype),
            norm(),
            norm(),
            attention_out_norm=norm(),
            mlp_out_norm=norm(),
            rope=config.layer_ropes[layer],
        )

    renames = WITHIN.get(config.architecture, ())
    return causal_lm(
        config,
        make_block,
        NAMES,
        dtype=dtype,
        device=device,
        renames=renames,
        inert=(EYES,) if renames else (),
        norm_offset=NORM_OFFSET,
    )
