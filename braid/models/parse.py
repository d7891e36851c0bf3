"""From a ``config.json`` dict to `ModelConfig`, one small function per family. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from braid.core.errors import CheckpointError
from braid.models.config import Fields, MLAConfig, ModelConfig, MoEConfig
from braid.models.rope_config import parse_rope, parse_section, rope_fields, yarn_mscale

ACTS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def _base(
    c: Fields,
    family: str,
    *,
    theta: float = 10_000.0,
    tied: bool = False,
    act: str = "silu",
    head_dim: int | None = None,
) -> dict[str, Any]:
    """What all families spell alike; the keywords are the family's defaults."""
    hidden, layers, heads = c.size("hidden_size"), c.size("num_hidden_layers"), c.size("num_attention_heads")
    kv_heads = c.size("num_key_value_heads", heads)
    head_dim = c.size("head_dim", head_dim or max(1, hidden // heads))
    if heads % kv_heads:
        raise CheckpointError(
            f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
        )
    return {
        "family": family,
        "vocab_size": c.size("vocab_size"),
        "hidden_size": hidden,
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": head_dim,
        "mlp_size": c.size("intermediate_size"),
        "norm_eps": c.number("rms_norm_eps", 1e-6),
        "max_model_len": c.size("max_position_embeddings"),
        "tied": c.flag("tie_word_embeddings", tied),
        "attention_scale": head_dim**-0.5,
        "windows": (None,) * layers,
        "ropes": (parse_rope(c, head_dim, theta=theta),),
        "layer_ropes": (0,) * layers,
        "act": c.choice("hidden_act", ACTS, act),
    }


def _llama(c: Fields) -> dict[str, Any]:
    bias = c.flag("attention_bias", False)
    return {
        **_base(c, "llama"),
        "qkv_bias": bias,
        "out_bias": bias,
        "mlp_bias": c.flag("mlp_bias", False),
    }


def _mistral(c: Fields, family: str = "llama", theta: float = 10_000.0) -> dict[str, Any]:
    """Its window holds for every layer."""
    base = _base(c, family, theta=theta)
    window = None if c.config.get("sliding_window") is None else c.size("sliding_window")
    return {**base, "windows": (window,) * base["num_layers"]}


def _layer_windows(c: Fields, layers: int, sliding: Callable[[int], bool]) -> tuple[int | None, ...]:
    """Windows by ``layer_types`` where given, else by ``sliding(layer)``, for families that must switch them on."""
    if not c.flag("use_sliding_window", False) or not c.config.get("sliding_window"):
        return (None,) * layers
    window, types = c.size("sliding_window"), c.names("layer_types", layers)
    if types is not None:
        return tuple(window if kind == "sliding_attention" else None for kind in types)
    return tuple(window if sliding(layer) else None for layer in range(layers))


def _qwen2(c: Fields) -> dict[str, Any]:
    base, first = _base(c, "qwen2"), c.count("max_window_layers", 28)
    windows = _layer_windows(c, base["num_layers"], lambda layer: layer >= first)
    return {**base, "qkv_bias": True, "windows": windows}


def _qwen3(c: Fields) -> dict[str, Any]:
    base, first = _base(c, "qwen3", head_dim=128), c.count("max_window_layers", 28)
    bias = c.flag("attention_bias", False)
    windows = _layer_windows(c, base["num_layers"], lambda layer: layer >= first)
    return {**base, "qkv_bias": bias, "out_bias": bias, "qk_norm": "head", "windows": windows}


def _gemma3(c: Fields) -> dict[str, Any]:
    """Local layers with their own rope base, one global layer in every ``sliding_window_pattern``."""
    fields = Fields(
        {**c.config, "hidden_act": c.config.get("hidden_activation"), "rope_parameters": None}, c.where
    )
    base = _base(fields, "gemma3", theta=1_000_000.0, tied=True, act="gelu_pytorch_tanh", head_dim=256)
    if c.flag("use_bidirectional_attention", False):
        raise CheckpointError("use_bidirectional_attention is not supported: Braid serves causal models")
    layers, bias = base["num_layers"], c.flag("attention_bias", False)
    pattern = c.size("sliding_window_pattern", 6)
    types = c.names("layer_types", layers)
    local = [
        bool((i + 1) % pattern) if types is None else types[i] == "sliding_attention" for i in range(layers)
    ]
    window = c.size("sliding_window", 4096)
    return {
        **base,
        "qkv_bias": bias,
        "out_bias": bias,
        "qk_norm": "head",
        "attention_scale": c.number("query_pre_attn_scalar", 256.0) ** -0.5,
        "attention_softcap": c.optional("attn_logit_softcapping"),
        "logit_softcap": c.optional("final_logit_softcapping"),
        "embedding_scale": base["hidden_size"] ** 0.5,
        "windows": tuple(window if is_local else None for is_local in local),
        "ropes": _gemma3_ropes(c, base["head_dim"]),
        "layer_ropes": tuple(int(is_local) for is_local in local),
    }


def _gemma3_ropes(c: Fields, head_dim: int) -> tuple[Any, Any]:
    """Global, local. Only the global one may be scaled in the old spelling."""
    rope = rope_fields(c)
    far = rope.section("full_attention") or Fields(
        {} if rope.config.get("sliding_attention") else rope.config
    )
    near = rope.section("sliding_attention") or Fields({})
    return (
        parse_section(far, c, head_dim, theta=c.number("rope_theta", 1_000_000.0)),
        parse_section(near, c, head_dim, theta=c.number("rope_local_base_freq", 10_000.0)),
    )


def _moe(c: Fields, layers: tuple[bool, ...], experts: str, size: str, **more: Any) -> MoEConfig:
    num_experts, top_k = c.size(experts), c.size("num_experts_per_tok")
    if top_k > num_experts:
        raise CheckpointError(f"num_experts_per_tok {top_k} is above {experts} {num_experts}")
    return MoEConfig(layers=layers, num_experts=num_experts, top_k=top_k, size=c.size(size), **more)


def _sparse_layers(c: Fields, layers: int) -> tuple[bool, ...]:
    dense, step = c.config.get("mlp_only_layers") or [], c.size("decoder_sparse_step", 1)
    return tuple(layer not in dense and (layer + 1) % step == 0 for layer in range(layers))


def _mixtral(c: Fields) -> dict[str, Any]:
    base = _mistral(c, "mixtral", 1_000_000.0)
    experts = "num_local_experts" if c.config.get("num_local_experts") is not None else "num_experts"
    moe = _moe(c, (True,) * base["num_layers"], experts, "intermediate_size", normalise=True)
    return {**base, "moe": moe}


def _qwen2_moe(c: Fields) -> dict[str, Any]:
    base, last = _base(c, "qwen2_moe"), c.count("max_window_layers", 28)
    windows = _layer_windows(c, base["num_layers"], lambda layer: layer % 2 == 0 and layer < last)
    moe = _moe(
        c,
        _sparse_layers(c, base["num_layers"]),
        "num_experts",
        "moe_intermediate_size",
        normalise=c.flag("norm_topk_prob", False),
        shared_size=c.size("shared_expert_intermediate_size"),
        shared_gate=True,
    )
    return {**base, "qkv_bias": c.flag("qkv_bias", True), "windows": windows, "moe": moe}


def _qwen3_moe(c: Fields) -> dict[str, Any]:
    base, bias = _base(c, "qwen3_moe"), c.flag("attention_bias", False)
    windows = _layer_windows(c, base["num_layers"], lambda layer: True)
    experts = "num_experts" if c.config.get("num_experts") is not None else "num_local_experts"
    normalise, layers = c.flag("norm_topk_prob", False), _sparse_layers(c, base["num_layers"])
    moe = _moe(c, layers, experts, "moe_intermediate_size", normalise=normalise)
    return {**base, "qkv_bias": bias, "out_bias": bias, "qk_norm": "head", "windows": windows, "moe": moe}


def _olmoe(c: Fields) -> dict[str, Any]:
    base, bias = _base(c, "olmoe"), c.flag("attention_bias", False)
    experts = "num_experts" if c.config.get("num_experts") is not None else "num_local_experts"
    normalise = c.flag("norm_topk_prob", False)
    moe = _moe(c, (True,) * base["num_layers"], experts, "intermediate_size", normalise=normalise)
    clip = c.optional("clip_qkv")
    return {**base, "qkv_bias": bias, "out_bias": bias, "qk_norm": "all", "qkv_clip": clip, "moe": moe}


def _deepseek(c: Fields, family: str, **moe: Any) -> dict[str, Any]:
    """MLA; experts after the first dense layers; YaRN's temperature applied to the scores as well."""
    nope, rope_size = c.size("qk_nope_head_dim"), c.size("qk_rope_head_dim")
    fields = Fields({**c.config, "head_dim": rope_size, "num_key_value_heads": None}, c.where)
    base, rope = _base(fields, family), rope_fields(c)
    scale = (nope + rope_size) ** -0.5
    if base["ropes"][0].kind != "default" and rope.config.get("mscale_all_dim"):
        scale *= yarn_mscale(base["ropes"][0].factor, rope.number("mscale_all_dim")) ** 2
    mla = MLAConfig(
        q_rank=c.count("q_lora_rank", 0),
        kv_rank=c.size("kv_lora_rank"),
        nope_size=nope,
        rope_size=rope_size,
        v_size=c.size("v_head_dim"),
        interleaved=c.flag("rope_interleave", True),
    )
    bias, dense, layers = (
        c.flag("attention_bias", False),
        c.count("first_k_dense_replace", 0),
        base["num_layers"],
    )
    sparse = tuple(layer >= dense for layer in range(layers))
    experts = "n_routed_experts" if c.config.get("n_routed_experts") is not None else "num_local_experts"
    shared = c.count("n_shared_experts", 0) * c.size("moe_intermediate_size")
    more = {"shared_size": shared, "scaling": c.number("routed_scaling_factor", 1.0), **moe}
    experts_config = _moe(c, sparse, experts, "moe_intermediate_size", **more)
    _check_groups(experts_config)
    return {
        **base,
        "qkv_bias": bias,
        "out_bias": bias,
        "attention_scale": scale,
        "mla": mla,
        "moe": experts_config,
    }


def _check_groups(moe: MoEConfig) -> None:
    if moe.num_experts % moe.num_groups or not moe.top_groups <= moe.num_groups:
        raise CheckpointError(
            f"{moe.num_experts} experts cannot be chosen from topk_group {moe.top_groups} of n_group {moe.num_groups}"
        )


def _deepseek_v2(c: Fields) -> dict[str, Any]:
    methods = {"greedy": "greedy", "group_limited_greedy": "groups"}
    grouped = c.choice("topk_method", methods, "greedy") == "groups"
    if c.flag("norm_topk_prob", False):
        raise CheckpointError("norm_topk_prob must be false in a deepseek_v2 model")
    groups = {"num_groups": c.size("n_group"), "top_groups": c.size("topk_group")} if grouped else {}
    return _deepseek(c, "deepseek_v2", **groups)


def _deepseek_v3(c: Fields) -> dict[str, Any]:
    return _deepseek(
        c,
        "deepseek_v3",
        scoring="sigmoid",
        bias=True,
        normalise=c.flag("norm_topk_prob", True),
        num_groups=c.size("n_group", 1),
        top_groups=c.size("topk_group", 1),
    )


def _gemma3_multimodal(c: Fields) -> dict[str, Any]:
    text = c.section("text_config")
    if text is None:
        raise CheckpointError("config.json lacks 'text_config' (an object)")
    defaults = {"vocab_size": 262_208, "num_attention_heads": 8, "num_key_value_heads": 4}
    given = {name: value for name, value in text.config.items() if value is not None}
    return _gemma3(Fields({"max_position_embeddings": 131_072, **defaults, **given}, text.where))


ARCHITECTURES: dict[str, Callable[[Fields], dict[str, Any]]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "Gemma3ForCausalLM": _gemma3,
    "Gemma3ForConditionalGeneration": _gemma3_multimodal,
    "MixtralForCausalLM": _mixtral,
    "Qwen2MoeForCausalLM": _qwen2_moe,
    "Qwen3MoeForCausalLM": _qwen3_moe,
    "OlmoeForCausalLM": _olmoe,
    "DeepseekV2ForCausalLM": _deepseek_v2,
    "DeepseekV3ForCausalLM": _deepseek_v3,
}


def parse_config(config: Mapping[str, Any]) -> ModelConfig:
    """Normalise a Hugging Face config.

    Raises:
        CheckpointError: an architecture Braid does not know (the text lists those it does), or a missing or odd value.
    """
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else named
    parse = ARCHITECTURES.get(architecture) if isinstance(architecture, str) else None
    if parse is None:
        known = ", ".join(sorted(ARCHITECTURES))
        raise CheckpointError(f"unsupported model architecture {architecture!r}; supported: {known}")
    if config.get("quantization_config") is not None:
        raise CheckpointError(
            "quantised safetensors checkpoints are not supported; use an unquantised one or a GGUF file"
        )
    return ModelConfig(architecture=str(architecture), **parse(Fields(config)))
