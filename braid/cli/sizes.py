"""Sizes of well-known models, from their published configurations: what ``braid doctor`` reckons with."""

from __future__ import annotations

from braid.core.spec import ModelSpec


def _spec(
    name: str,
    architecture: str,
    layers: int,
    hidden: int,
    vocab: int,
    length: int,
    sizes: tuple[float, float],
    kv: int,
) -> ModelSpec:
    """``sizes``: all and active parameters in billions; ``kv``: KV numbers per token and layer."""
    return ModelSpec(
        name=name,
        architecture=architecture,
        num_layers=layers,
        hidden_size=hidden,
        vocab_size=vocab,
        max_model_len=length,
        num_parameters=round(sizes[0] * 1e9),
        active_parameters=round(sizes[1] * 1e9),
        kv_numbers_per_token=layers * kv,
    )


WELL_KNOWN = (
    _spec("SmolLM2 135M", "LlamaForCausalLM", 30, 576, 49_152, 8192, (0.1345, 0.1345), 2 * 3 * 64),
    _spec("Qwen3 0.6B", "Qwen3ForCausalLM", 28, 1024, 151_936, 40_960, (0.596, 0.596), 2 * 8 * 128),
    _spec("Llama 3.2 1B", "LlamaForCausalLM", 16, 2048, 128_256, 131_072, (1.236, 1.236), 2 * 8 * 64),
    _spec("Qwen3 4B", "Qwen3ForCausalLM", 36, 2560, 151_936, 40_960, (4.02, 4.02), 2 * 8 * 128),
    _spec("Llama 3.1 8B", "LlamaForCausalLM", 32, 4096, 128_256, 131_072, (8.03, 8.03), 2 * 8 * 128),
    _spec("OLMoE 1B-7B", "OlmoeForCausalLM", 16, 2048, 50_304, 4096, (6.92, 1.28), 2 * 16 * 128),
    _spec("DeepSeek-V2-Lite", "DeepseekV2ForCausalLM", 27, 2048, 102_400, 163_840, (15.7, 2.4), 512 + 64),
    _spec("Qwen3 30B-A3B", "Qwen3MoeForCausalLM", 48, 2048, 151_936, 40_960, (30.5, 3.3), 2 * 4 * 128),
    _spec("Mixtral 8x7B", "MixtralForCausalLM", 32, 4096, 32_000, 32_768, (46.7, 12.9), 2 * 8 * 128),
)
