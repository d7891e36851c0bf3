"""GGUF tensor names and layouts -> Hugging Face names and layouts, for the architectures Braid serves.

llama.cpp's converter is the source of the layouts (convert_hf_to_gguf.py): Llama's Q and K rows are stored permuted for
interleaved rotary embedding, Gemma's norm weights with 1 added, the experts of a layer as one tensor, and DeepSeek's
``kv_b_proj`` in newer files as a transposed key part and a value part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from braid.checkpoint.tensors import Extent, TensorInfo, Transform
from braid.core.errors import CheckpointError

_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QK_NORM = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_ROUTER = {"ffn_gate_inp": "mlp.gate"}
_GEMMA = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_QWEN2_SHARED = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj",
    "ffn_down_shexp": "mlp.shared_expert.down_proj",
}
_DEEPSEEK = {
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "exp_probs_b": "mlp.gate.e_score_correction",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
LAYER_NAMES: Mapping[str, Mapping[str, str]] = {
    "llama": _LAYER,
    "mixtral": _LAYER | {"ffn_gate_inp": "block_sparse_moe.gate"},
    "qwen2": _LAYER,
    "qwen2moe": _LAYER | _ROUTER | _QWEN2_SHARED,
    "qwen3": _LAYER | _QK_NORM,
    "qwen3moe": _LAYER | _QK_NORM | _ROUTER,
    "olmoe": _LAYER | _QK_NORM | _ROUTER,
    "gemma3": _LAYER | _QK_NORM | _GEMMA,
    "deepseek2": _LAYER | _ROUTER | _DEEPSEEK,
}
"""Names of a layer's tensors without ``blk.N.`` / ``model.layers.N.`` and without ``.weight`` / ``.bias``."""

_EXPERT = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
_MIXTRAL_EXPERT = {"gate": "w1", "up": "w3", "down": "w2"}
_UNUSED = re.compile(r"rope_freqs\.weight|blk\.\d+\.attn_rot_embd\.weight|rope_factors_(long|short)\.weight")
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_FUSED = re.compile(r"ffn_(gate|up|down)_exps\.weight")
_SINGLE = re.compile(r"ffn_(gate|up|down)\.(\d+)\.weight")
_SUFFIXED = re.compile(r"(.+)\.(weight|bias)")


def map_tensors(
    family: str, extents: Mapping[str, Extent], config: Mapping[str, Any]
) -> dict[str, TensorInfo]:
    """Describe every tensor of a GGUF file under its Hugging Face name.

    Args:
        family: a key of ``LAYER_NAMES``.
        extents: the file's tensors by GGUF name.
        config: the synthesised config.json (head counts, sizes).

    Raises:
        CheckpointError: a tensor has no place in this family.
    """
    tensors: dict[str, TensorInfo] = {}
    for name, extent in extents.items():
        if _UNUSED.fullmatch(name) or name.endswith(".attn_k_b.weight"):
            continue
        for info in _map_one(family, name, extent, extents, config):
            if info.name in tensors:
                raise CheckpointError(f"{extent.file}: tensor {name!r} is a second {info.name!r}")
            tensors[info.name] = info
    return tensors


def _map_one(
    family: str, name: str, extent: Extent, extents: Mapping[str, Extent], config: Mapping[str, Any]
) -> Iterator[TensorInfo]:
    if name in _TOP:
        yield _plain(_TOP[name], family, extent, config)
        return
    block = _BLOCK.fullmatch(name)
    if block is None:
        raise _unknown(family, name, extent)
    prefix, rest = f"model.layers.{block[1]}.", block[2]
    if fused := _FUSED.fullmatch(rest):
        yield from _split_experts(family, prefix, fused[1], name, extent, config)
    elif single := _SINGLE.fullmatch(rest):
        yield _plain(_expert_name(family, prefix, int(single[2]), single[1]), family, extent, config)
    elif rest == "attn_v_b.weight":
        yield _merge_kv_b(prefix, f"blk.{block[1]}.attn_k_b.weight", extents, extent)
    else:
        suffixed = _SUFFIXED.fullmatch(rest)
        stem = LAYER_NAMES[family].get(suffixed[1]) if suffixed else None
        if suffixed is None or stem is None:
            raise _unknown(family, name, extent)
        joint = "_" if suffixed[1] == "exp_probs_b" else "."
        yield _plain(f"{prefix}{stem}{joint}{suffixed[2]}", family, extent, config)


def _unknown(family: str, name: str, extent: Extent) -> CheckpointError:
    return CheckpointError(f"{extent.file}: tensor {name!r} has no place in architecture {family!r}")


def _plain(name: str, family: str, extent: Extent, config: Mapping[str, Any]) -> TensorInfo:
    shape, transform, num_heads = extent.shape, "none", 1
    if name.endswith("shared_expert_gate.weight") and len(shape) == 1:
        shape = (1, *shape)
    if family == "gemma3" and name.endswith("norm.weight"):
        transform = "minus_one"
    if family in ("llama", "mixtral") and ".self_attn.q_proj." in name:
        transform, num_heads = "unpermute", config["num_attention_heads"]
    if family in ("llama", "mixtral") and ".self_attn.k_proj." in name:
        transform, num_heads = "unpermute", config["num_key_value_heads"]
    if transform == "unpermute" and shape[0] % (2 * num_heads):
        raise CheckpointError(f"{extent.file}: {name}: {shape[0]} rows do not divide into {num_heads} heads")
    kind: Transform = transform  # type: ignore[assignment]
    return TensorInfo(name=name, shape=shape, extents=(extent,), transform=kind, num_heads=num_heads)


def _expert_name(family: str, prefix: str, expert: int, part: str) -> str:
    if family == "mixtral":
        return f"{prefix}block_sparse_moe.experts.{expert}.{_MIXTRAL_EXPERT[part]}.weight"
    return f"{prefix}mlp.experts.{expert}.{_EXPERT[part]}.weight"


def _split_experts(
    family: str, prefix: str, part: str, name: str, extent: Extent, config: Mapping[str, Any]
) -> Iterator[TensorInfo]:
    """Experts are the slowest dimension, so each one is a contiguous range of bytes."""
    if len(extent.shape) != 3:
        raise CheckpointError(
            f"{extent.file}: tensor {name!r} must have 3 dimensions, has {len(extent.shape)}"
        )
    count, size = extent.shape[0], extent.num_bytes // extent.shape[0]
    for expert in range(count):
        one = extent._replace(offset=extent.offset + expert * size, num_bytes=size, shape=extent.shape[1:])
        yield _plain(_expert_name(family, prefix, expert, part), family, one, config)


def _merge_kv_b(prefix: str, key_name: str, extents: Mapping[str, Extent], value: Extent) -> TensorInfo:
    """Key part [heads, rank, nope] and value part [heads, v, rank] -> kv_b_proj [heads * (nope + v), rank]."""
    key = extents.get(key_name)
    if key is None or len(key.shape) != 3 or len(value.shape) != 3:
        raise CheckpointError(f"{value.file}: tensor {key_name!r} is missing or has no heads")
    heads, rank, nope = key.shape
    if value.shape[0] != heads or value.shape[2] != rank:
        raise CheckpointError(
            f"{value.file}: tensor {key_name!r} {key.shape} does not fit its value part {value.shape}"
        )
    shape = (heads * (nope + value.shape[1]), rank)
    name = f"{prefix}self_attn.kv_b_proj.weight"
    return TensorInfo(name=name, shape=shape, extents=(key, value), transform="mla_kv_b", num_heads=heads)
