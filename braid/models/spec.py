"""A model's sizes, counted from its config alone. Free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from braid.core.spec import ModelSpec
from braid.models.config import MLAConfig, ModelConfig, MoEConfig
from braid.models.parse import parse_config


def _attention(c: ModelConfig) -> int:
    q, kv = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    count = c.hidden_size * (2 * q + 2 * kv) + c.qkv_bias * (q + 2 * kv) + c.out_bias * c.hidden_size
    norms = {"none": 0, "head": 2 * c.head_dim, "all": q + kv}
    return count + norms[c.qk_norm]


def _latent_attention(c: ModelConfig, mla: MLAConfig) -> int:
    hidden, q = c.hidden_size, c.num_heads * (mla.nope_size + mla.rope_size)
    queries = (hidden + 1 + q) * mla.q_rank + c.qkv_bias * mla.q_rank if mla.q_rank else hidden * q
    down = (hidden + c.qkv_bias) * (mla.kv_rank + mla.rope_size) + mla.kv_rank
    up = mla.kv_rank * c.num_heads * (mla.nope_size + mla.v_size)
    return queries + down + up + c.num_heads * mla.v_size * hidden + c.out_bias * hidden


def _mlp(c: ModelConfig) -> int:
    return 3 * c.hidden_size * c.mlp_size + c.mlp_bias * (2 * c.mlp_size + c.hidden_size)


def _experts(c: ModelConfig, moe: MoEConfig, count: int) -> int:
    """An expert layer of which ``count`` routed experts are counted."""
    router = moe.num_experts * (c.hidden_size + moe.bias)
    return router + 3 * c.hidden_size * (moe.size * count + moe.shared_size) + moe.shared_gate * c.hidden_size


def _count(c: ModelConfig, *, active: bool) -> int:
    attention = _attention(c) if c.mla is None else _latent_attention(c, c.mla)
    norms = (4 if c.family == "gemma3" else 2) * c.hidden_size
    total = c.vocab_size * c.hidden_size * (1 if c.tied else 2) + c.hidden_size
    for layer in range(c.num_layers):
        total += attention + norms
        if c.moe is not None and c.moe.layers[layer]:
            total += _experts(c, c.moe, c.moe.top_k if active else c.moe.num_experts)
        else:
            total += _mlp(c)
    return total


def _kv_numbers(c: ModelConfig) -> int:
    per_layer = 2 * c.num_kv_heads * c.head_dim if c.mla is None else c.mla.kv_rank + c.mla.rope_size
    return c.num_layers * per_layer


def model_spec(name: str, config: Mapping[str, Any]) -> ModelSpec:
    """Sizes of the model a Hugging Face config describes.

    Active parameters leave out the routed experts that a token does not use.

    Raises:
        CheckpointError: an unsupported architecture, or a missing or odd value in the config.
    """
    c = parse_config(config)
    return ModelSpec(
        name=name,
        architecture=c.architecture,
        num_layers=c.num_layers,
        hidden_size=c.hidden_size,
        vocab_size=c.vocab_size,
        max_model_len=c.max_model_len,
        num_parameters=_count(c, active=False),
        active_parameters=_count(c, active=True),
        kv_numbers_per_token=_kv_numbers(c),
    )
