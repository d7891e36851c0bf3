"""A Hugging Face ``config.json`` from GGUF metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from braid.checkpoint.gguf_names import LAYER_NAMES
from braid.checkpoint.tensors import Extent
from braid.core.errors import CheckpointError

ARCHITECTURES = ("llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "olmoe", "gemma3", "deepseek2")
"""``general.architecture`` values that Braid serves; Mistral and Mixtral are stored as ``llama``."""

MAX_SIZE = 2**31
_SIGMOID_GATING = 2


class Synthesised(NamedTuple):
    """What GGUF metadata says in Hugging Face's words; ``family`` is a key of ``LAYER_NAMES``."""

    family: str
    config: dict[str, Any]
    generation_config: dict[str, Any]


class _Metadata:
    """Typed look-ups of ``<architecture>.<key>``, with the file's name in every complaint."""

    __slots__ = ("arch", "path", "values")

    def __init__(self, path: Path, values: Mapping[str, Any], arch: str) -> None:
        self.path, self.values, self.arch = path, values, arch

    def size(self, key: str, default: int | None = None) -> int:
        value = self.values.get(f"{self.arch}.{key}", default)
        if type(value) is not int or not 0 <= value <= MAX_SIZE:
            raise self.bad(key, value, f"an integer in [0, {MAX_SIZE}]")
        return value

    def positive(self, key: str, default: int | None = None) -> int:
        value = self.size(key, default)
        if value == 0:
            raise self.bad(key, value, "positive")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        value = self.values.get(f"{self.arch}.{key}", default)
        if type(value) not in (int, float) or value != value or abs(value) == float("inf"):
            raise self.bad(key, value, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(f"{self.arch}.{key}", default)
        if type(value) is not bool:
            raise self.bad(key, value, "true or false")
        return value

    def has(self, key: str) -> bool:
        return f"{self.arch}.{key}" in self.values

    def text(self, key: str) -> str | None:
        value = self.values.get(f"{self.arch}.{key}")
        return value if isinstance(value, str) else None

    def bad(self, key: str, value: object, valid: str) -> CheckpointError:
        found = "missing" if value is None else str(value)[:60]
        return CheckpointError(f"{self.path}: metadata {self.arch}.{key} must be {valid}, is {found}")


def synthesise(
    path: Path,
    metadata: Mapping[str, Any],
    extents: Mapping[str, Extent],
    rope_factors: list[float] | None,
) -> Synthesised:
    """Build config.json and generation_config.json contents.

    Args:
        path: the file, for messages.
        metadata, extents: its header.
        rope_factors: the numbers of ``rope_freqs.weight`` where the file has it.

    Raises:
        CheckpointError: unsupported architecture, or a size missing or senseless.
    """
    arch = metadata.get("general.architecture")
    if arch not in ARCHITECTURES:
        raise CheckpointError(
            f"{path}: architecture {str(arch)[:60]!r} is not supported; supported: {', '.join(ARCHITECTURES)}"
        )
    source = _Metadata(path, metadata, arch)
    family = "mixtral" if arch == "llama" and source.size("expert_count", 0) > 0 else arch
    config = _common(source, extents)
    config |= _FAMILIES[family](source, extents, config)
    config |= _rope(source, config, rope_factors)
    generation = _token_ids(path, metadata)
    assert family in LAYER_NAMES
    return Synthesised(family, config | generation, generation)


def _shape(source: _Metadata, extents: Mapping[str, Extent], name: str) -> tuple[int, ...]:
    if name not in extents:
        raise CheckpointError(f"{source.path}: tensor {name!r} is missing")
    return extents[name].shape


def _common(source: _Metadata, extents: Mapping[str, Extent]) -> dict[str, Any]:
    hidden, heads = source.positive("embedding_length"), source.positive("attention.head_count")
    embedding = _shape(source, extents, "token_embd.weight")
    if len(embedding) != 2 or embedding[1] != hidden:
        raise CheckpointError(
            f"{source.path}: tensor 'token_embd.weight' has shape {list(embedding)}, "
            f"embedding_length is {hidden}"
        )
    layers = len({name.split(".")[1] for name in extents if name.startswith("blk.")})
    if source.positive("block_count") != layers:
        raise source.bad("block_count", source.positive("block_count"), f"{layers} as the tensors have it")
    matrices = {extent.dtype for extent in extents.values() if len(extent.shape) > 1}
    dtype = "float32" if matrices == {"F32"} else "bfloat16"
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": source.positive("attention.head_count_kv", heads),
        "head_dim": source.positive("attention.key_length", max(1, hidden // heads)),
        "intermediate_size": source.size("feed_forward_length", 0),
        "max_position_embeddings": source.positive("context_length"),
        "rms_norm_eps": source.real("attention.layer_norm_rms_epsilon"),
        "vocab_size": embedding[0],
        "tie_word_embeddings": "output.weight" not in extents,
        "attention_bias": "blk.0.attn_q.bias" in extents,
        "hidden_act": "silu",
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def _named(architecture: str, model_type: str) -> dict[str, Any]:
    return {"architectures": [architecture], "model_type": model_type}


def _experts(source: _Metadata) -> dict[str, Any]:
    return {
        "num_experts": source.positive("expert_count"),
        "num_experts_per_tok": source.positive("expert_used_count"),
    }


def _llama(source: _Metadata, extents: Mapping[str, Extent], config: dict[str, Any]) -> dict[str, Any]:
    if source.has("attention.sliding_window"):
        window = {"sliding_window": source.positive("attention.sliding_window")}
        return _named("MistralForCausalLM", "mistral") | window
    return _named("LlamaForCausalLM", "llama") | {"mlp_bias": False}


def _mixtral(source: _Metadata, extents: Mapping[str, Extent], config: dict[str, Any]) -> dict[str, Any]:
    experts = _experts(source)
    experts["num_local_experts"] = experts.pop("num_experts")
    return _named("MixtralForCausalLM", "mixtral") | experts | {"sliding_window": None}


def _qwen2(source: _Metadata, extents: Mapping[str, Extent], config: dict[str, Any]) -> dict[str, Any]:
    return _named("Qwen2ForCausalLM", "qwen2") | {"use_sliding_window": False}


def _qwen2moe(source: _Metadata, extents: Mapping[str, Extent], config: dict[str, Any]) -> dict[str, Any]:
    shared = _shape(source, extents, "blk.0.ffn_up_shexp.weight")[0]
    sizes = {
        "moe_intermediate_size": _expert_width(source, extents, 0),
        "shared_expert_intermediate_size": shared,
        "qkv_bias": config["attention_bias"],
    }
    rest = {"norm_topk_prob": source.flag("expert_weights_norm", False), "decoder_sparse_step": 1}
    return (
        _named("Qwen2MoeForCausalLM", "qwen2_moe") | _experts(source) | sizes | rest | {"mlp_only_layers": []}
    )


def _qwen3(source: _Metadata, extents: Mapping[str, Extent], config: dict[str, Any]) -> dict[str, Any]:
    return _named("Qwen3ForCausalLM", "qwen3") | {"use_sliding_window": False}


def _qwen3moe(source: _Metadata, extents: Mapping[str, Extent], config: dict[str, Any]) -> dict[str, Any]:
    rest = {
        "moe_intermediate_size": _expert_width(source, extents, 0),
        "norm_topk_prob": source.flag("expert_weights_norm", True),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    return _named("Qwen3MoeForCausalLM", "qwen3_moe") | _experts(source) | rest


def _olmoe(source: _Metadata, extents: Mapping[str, Extent], config: dict[str, Any]) -> dict[str, Any]:
    rest = {
        "intermediate_size": _expert_width(source, extents, 0),
        "norm_topk_prob": source.flag("expert_weights_norm", False),
    }
    return _named("OlmoeForCausalLM", "olmoe") | _experts(source) | rest


def _expert_width(source: _Metadata, extents: Mapping[str, Extent], layer: int) -> int:
    """The experts' inner size is in the tensors; older files leave the metadata key out."""
    shape = _shape(source, extents, f"blk.{layer}.ffn_up_exps.weight")
    return shape[1] if len(shape) == 3 else source.positive("expert_feed_forward_length")


def _gemma3(source: _Metadata, extents: Mapping[str, Extent], config: dict[str, Any]) -> dict[str, Any]:
    pattern = source.positive("attention.sliding_window_pattern", 6)
    layers = config["num_hidden_layers"]
    # llama.cpp does the same: only the 27B model (62 layers) scales by hidden_size / heads.
    scalar = config["hidden_size"] // config["num_attention_heads"] if layers == 62 else config["head_dim"]
    return _named("Gemma3ForCausalLM", "gemma3_text") | {
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_act": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "sliding_window": source.positive("attention.sliding_window"),
        "sliding_window_pattern": pattern,
        "layer_types": [
            "full_attention" if (layer + 1) % pattern == 0 else "sliding_attention" for layer in range(layers)
        ],
        "rope_local_base_freq": source.real("rope.freq_base_swa", 10000.0),
        "final_logit_softcapping": _optional(source, "final_logit_softcapping"),
        "attn_logit_softcapping": _optional(source, "attn_logit_softcapping"),
    }


def _optional(source: _Metadata, key: str) -> float | None:
    return source.real(key) if source.has(key) else None


def _deepseek2(source: _Metadata, extents: Mapping[str, Extent], config: dict[str, Any]) -> dict[str, Any]:
    rope = source.positive("rope.dimension_count")
    merged = source.has("attention.key_length_mla")
    suffix = "_mla" if merged else ""
    key = source.positive(f"attention.key_length{suffix}")
    value = source.positive(f"attention.value_length{suffix}")
    sigmoid = source.size("expert_gating_func", 1) == _SIGMOID_GATING
    name = ("DeepseekV3ForCausalLM", "deepseek_v3") if sigmoid else ("DeepseekV2ForCausalLM", "deepseek_v2")
    dense = source.size("leading_dense_block_count", 0)
    return (
        _named(*name)
        | {
            "num_key_value_heads": config["num_attention_heads"],
            "head_dim": rope,
            "q_lora_rank": source.positive("attention.q_lora_rank")
            if source.has("attention.q_lora_rank")
            else None,
            "kv_lora_rank": source.positive("attention.kv_lora_rank"),
            "qk_rope_head_dim": rope,
            "qk_nope_head_dim": key - rope,
            "qk_head_dim": key,
            "v_head_dim": value,
            "first_k_dense_replace": dense,
            "moe_layer_freq": 1,
            "rope_interleave": True,
        }
        | _deepseek2_experts(source, extents, dense, sigmoid)
    )


def _deepseek2_experts(
    source: _Metadata, extents: Mapping[str, Extent], dense: int, sigmoid: bool
) -> dict[str, Any]:
    count = source.positive("expert_count")
    # Files older than the group keys: DeepSeek-V3/R1 (256 experts, sigmoid) route over 4 of 8 groups.
    groups, used = (8, 4) if sigmoid and count == 256 else (1, 1)
    groups = source.positive("expert_group_count", groups)
    limited = "group_limited_greedy" if groups > 1 else "greedy"
    return {
        "n_routed_experts": count,
        "num_experts_per_tok": source.positive("expert_used_count"),
        "n_shared_experts": source.size("expert_shared_count", 0),
        "moe_intermediate_size": _expert_width(source, extents, dense),
        "routed_scaling_factor": source.real("expert_weights_scale", 1.0) or 1.0,
        "norm_topk_prob": source.flag("expert_weights_norm", False),
        "scoring_func": "sigmoid" if sigmoid else "softmax",
        "topk_method": "noaux_tc" if sigmoid else limited,
        "n_group": groups,
        "topk_group": source.positive("expert_group_used_count", used),
    }


_FAMILIES: Mapping[str, Callable[[_Metadata, Mapping[str, Extent], dict[str, Any]], dict[str, Any]]] = {
    "llama": _llama,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen2moe": _qwen2moe,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3moe,
    "olmoe": _olmoe,
    "gemma3": _gemma3,
    "deepseek2": _deepseek2,
}


def _rope(source: _Metadata, config: dict[str, Any], factors: list[float] | None) -> dict[str, Any]:
    dims, head_dim = source.positive("rope.dimension_count", config["head_dim"]), config["head_dim"]
    if dims != head_dim:
        raise CheckpointError(
            f"{source.path}: rope.dimension_count {dims} differs from the head size {head_dim}: "
            "partial rotary embedding is not supported"
        )
    theta = source.real("rope.freq_base", 1000000.0 if source.arch == "gemma3" else 10000.0)
    if theta <= 0:
        raise source.bad("rope.freq_base", theta, "positive")
    scaling = _llama3_scaling(source.path, factors, theta, head_dim) if factors else _scaling(source)
    return {"rope_theta": theta, "rope_scaling": scaling}


def _scaling(source: _Metadata) -> dict[str, Any] | None:
    kind = source.text("rope.scaling.type")
    factor = source.real("rope.scaling.factor", source.real("rope.scale_linear", 1.0))
    if kind == "none" or (kind in (None, "linear") and factor == 1.0):
        return None
    if kind in (None, "linear"):
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise CheckpointError(
            f"{source.path}: rope scaling {str(kind)[:60]!r} is not supported; supported: none, linear, yarn, and "
            "llama3 through rope_freqs.weight"
        )
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": source.positive("rope.scaling.original_context_length"),
        "beta_fast": source.real("rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": source.real("rope.scaling.yarn_beta_slow", 1.0),
    }
    if source.has("rope.scaling.yarn_attn_factor"):
        scaling["attention_factor"] = source.real("rope.scaling.yarn_attn_factor")
    if source.has("rope.scaling.yarn_log_multiplier"):
        if source.arch != "deepseek2":  # Mistral's own format gives the key another meaning
            raise source.bad("rope.scaling.yarn_log_multiplier", "present", "absent in this architecture")
        # The converter stores 0.1 * mscale_all_dim; DeepSeek's models have mscale == mscale_all_dim.
        mscale = source.real("rope.scaling.yarn_log_multiplier") * 10
        scaling |= {"mscale": mscale, "mscale_all_dim": mscale}
    return scaling


def llama3_factors(
    theta: float, head_dim: int, factor: float, low: float, high: float, original: int
) -> list[float]:
    """Divisors of the rotary frequencies (Llama 3.1's scaling, as transformers' ``rope_type: llama3`` computes it)."""
    factors = []
    for index in range(0, head_dim, 2):
        wavelength = 6.283185307179586 * theta ** (index / head_dim)
        smooth = min(max((original / wavelength - low) / (high - low), 0.0), 1.0)
        factors.append(1.0 / ((1 - smooth) / factor + smooth))
    return factors


def _llama3_scaling(path: Path, factors: list[float], theta: float, head_dim: int) -> dict[str, Any] | None:
    """The parameters that give ``factors``: the file holds only the result, the models want the recipe."""
    if len(factors) != head_dim // 2:
        raise CheckpointError(
            f"{path}: tensor 'rope_freqs.weight' has {len(factors)} numbers, not {head_dim // 2}"
        )
    factor = max(factors)
    if factor == 1.0 == min(factors):
        return None
    for original in (8192, 4096, 2048, 16384, 32768, 65536, 131072):
        expected = llama3_factors(theta, head_dim, factor, 1.0, 4.0, original)
        if all(abs(got - want) <= 1e-3 * want for got, want in zip(factors, expected, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": original,
            }
    raise CheckpointError(
        f"{path}: tensor 'rope_freqs.weight' does not follow Llama 3's scaling (low 1, high 4): not supported"
    )


def _token_ids(path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    ids: dict[str, Any] = {}
    for key, name in (("bos", "bos_token_id"), ("padding", "pad_token_id")):
        if (value := _token_id(path, metadata, key)) is not None:
            ids[name] = value
    ends = [_token_id(path, metadata, key) for key in ("eos", "eot", "eom")]
    unique = list(dict.fromkeys(end for end in ends if end is not None))
    if unique:
        ids["eos_token_id"] = unique[0] if len(unique) == 1 else unique
    return ids


def _token_id(path: Path, metadata: Mapping[str, Any], key: str) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{key}_token_id")
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= MAX_SIZE:
        raise CheckpointError(
            f"{path}: metadata tokenizer.ggml.{key}_token_id is {str(value)[:40]!r}, not a token id"
        )
    return value
