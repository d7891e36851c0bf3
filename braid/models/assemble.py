"""Parts that several families build alike from a `ModelConfig`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from braid.layers.attention import Attention, Heads
from braid.layers.linear import Embedding, Linear
from braid.layers.mlp import GatedMLP
from braid.layers.moe import Experts, MoE, Router, Routing
from braid.layers.norm import RMSNorm
from braid.layers.rotary import Rotation
from braid.models.config import ModelConfig
from braid.models.decoder import Block, CausalLM

LAYER = "model.layers.{l}"
Names = dict[str, tuple[str, ...]]

FRAME_NAMES: Names = {
    "embedding": ("model.embed_tokens",),
    "norm": ("model.norm",),
    "head": ("lm_head",),
    "blocks.{l}.attention_norm": (f"{LAYER}.input_layernorm",),
    "blocks.{l}.mlp_norm": (f"{LAYER}.post_attention_layernorm",),
}
ATTENTION_NAMES: Names = {
    "blocks.{l}.attention.qkv": tuple(f"{LAYER}.self_attn.{name}_proj" for name in "qkv"),
    "blocks.{l}.attention.out": (f"{LAYER}.self_attn.o_proj",),
}
QK_NORM_NAMES: Names = {
    "blocks.{l}.attention.q_norm": (f"{LAYER}.self_attn.q_norm",),
    "blocks.{l}.attention.k_norm": (f"{LAYER}.self_attn.k_norm",),
}
MLP_NAMES: Names = {
    "blocks.{l}.mlp.gate_up": (f"{LAYER}.mlp.gate_proj", f"{LAYER}.mlp.up_proj"),
    "blocks.{l}.mlp.down": (f"{LAYER}.mlp.down_proj",),
}


def expert_names(block: str, gate: str, up: str, down: str) -> Names:
    """Names of a router and its experts; ``block`` is what the family calls the sparse layer."""
    return {
        "blocks.{l}.mlp.router": (f"{LAYER}.{block}.gate",),
        "blocks.{l}.mlp.experts.gate_up": tuple(
            f"{LAYER}.{block}.experts.{{x}}.{name}" for name in (gate, up)
        ),
        "blocks.{l}.mlp.experts.down": (f"{LAYER}.{block}.experts.{{x}}.{down}",),
    }


def shared_names(shared: str) -> Names:
    """Names of the shared experts."""
    return {
        "blocks.{l}.mlp.shared.gate_up": (f"{LAYER}.mlp.{shared}.gate_proj", f"{LAYER}.mlp.{shared}.up_proj"),
        "blocks.{l}.mlp.shared.down": (f"{LAYER}.mlp.{shared}.down_proj",),
    }


EXPERT_NAMES = expert_names("mlp", "gate_proj", "up_proj", "down_proj")
INERT = (r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"model\.rotary_emb\.inv_freq")
"""Rotary tables that old checkpoints carry."""


def attention(config: ModelConfig, layer: int, dtype: torch.dtype, *, norm_offset: float = 0.0) -> Attention:
    """Grouped-query attention of one layer."""
    heads = Heads(config.num_heads, config.num_kv_heads, config.head_dim)
    norms: dict[str, RMSNorm] = {}
    if config.qk_norm != "none":
        for name, count in (("q_norm", heads.query), ("k_norm", heads.kv)):
            size = heads.size * (count if config.qk_norm == "all" else 1)
            norms[name] = RMSNorm(size, config.norm_eps, load_offset=norm_offset)
    return Attention(
        config.hidden_size,
        heads,
        scale=config.attention_scale,
        dtype=dtype,
        qkv_bias=config.qkv_bias,
        out_bias=config.out_bias,
        window=config.windows[layer],
        softcap=config.attention_softcap,
        clip=config.qkv_clip,
        q_norm=norms.get("q_norm"),
        k_norm=norms.get("k_norm"),
    )


def mlp(config: ModelConfig, dtype: torch.dtype) -> GatedMLP:
    """The dense feed-forward of one layer."""
    return GatedMLP(config.hidden_size, config.mlp_size, act=config.act, bias=config.mlp_bias, dtype=dtype)


def feed_forward(config: ModelConfig, layer: int, dtype: torch.dtype) -> nn.Module:
    """Experts where the layer has them, else the dense feed-forward."""
    moe, hidden = config.moe, config.hidden_size
    if moe is None or not moe.layers[layer]:
        return mlp(config, dtype)
    routing = Routing(
        moe.num_experts,
        moe.top_k,
        moe.scoring,
        moe.normalise,
        moe.scaling,
        moe.num_groups,
        moe.top_groups,
        moe.bias,
    )
    experts = Experts(moe.num_experts, hidden, moe.size, act=config.act, dtype=dtype)
    shared = GatedMLP(hidden, moe.shared_size, act=config.act, dtype=dtype) if moe.shared_size else None
    shared_gate = Linear(hidden, [1], dtype=dtype) if moe.shared_gate else None
    return MoE(Router(hidden, routing), experts, shared, shared_gate)


def block(config: ModelConfig, layer: int, mixer: nn.Module, feed_forward: nn.Module) -> Block:
    """A block with the usual two norms."""
    return Block(
        mixer,
        feed_forward,
        RMSNorm(config.hidden_size, config.norm_eps),
        RMSNorm(config.hidden_size, config.norm_eps),
        rope=config.layer_ropes[layer],
    )


def causal_lm(
    config: ModelConfig,
    make_block: Callable[[int], Block],
    names: Names,
    *,
    dtype: torch.dtype,
    device: torch.device,
    renames: Sequence[tuple[str, str]] = (),
    inert: Sequence[str] = (),
    norm_offset: float = 0.0,
) -> CausalLM:
    """The frame around the blocks of layers ``[0, num_layers)``."""
    hidden, vocab = config.hidden_size, config.vocab_size
    # A tied head may be stored all the same; it equals the embedding.
    tied = (r"lm_head\.weight",) if config.tied else ()
    return CausalLM(
        Embedding(vocab, hidden, scale=config.embedding_scale, dtype=dtype),
        [make_block(layer) for layer in range(config.num_layers)],
        RMSNorm(hidden, config.norm_eps, load_offset=norm_offset),
        None if config.tied else Linear(hidden, [vocab], dtype=dtype),
        rotations=[Rotation(*rope) for rope in config.ropes],
        softcap=config.logit_softcap,
        names=FRAME_NAMES | names,
        renames=renames,
        inert=(*INERT, *tied, *inert),
        device=device,
    )
