"""Models to simulate, as the numbers of their configs: what a step must compute and read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from braid.core.errors import InvalidParameterError

WEIGHT_BYTES: Mapping[str, float] = MappingProxyType({"bfloat16": 2.0, "int8": 1.0, "int4": 0.5})
"""Bytes of one weight; of int4 without its scales, which add a few percent."""
KV_BYTES = 2
"""Bytes of one KV number: bfloat16, whatever the weights are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSizes:
    """A decoder with gated MLPs, and with grouped-query attention unless another's sizes are given.

    Args:
        mlp: hidden size of the MLP, or of one expert.
        num_experts, top_k: 0 and 0 for a dense model.
        tied: whether the embeddings are the head, too.
        context: tokens that it was made for.
        shared: hidden size of the experts that every token uses, all together; 0 for none.
        dense_layers, dense_mlp: the first layers have no experts, but an MLP of this hidden size.
        layer_attention, layer_kv: weights, and KV numbers of a token, in one layer of another kind of attention.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocab: int
    context: int
    num_experts: int = 0
    top_k: int = 0
    tied: bool = False
    shared: int = 0
    dense_layers: int = 0
    dense_mlp: int = 0
    layer_attention: int | None = None
    layer_kv: int | None = None

    @property
    def moe_layers(self) -> int:
        return self.layers - self.dense_layers if self.num_experts else 0

    @property
    def expert_weights(self) -> int:
        """Of one."""
        return 3 * self.hidden * self.mlp

    @property
    def attention_weights(self) -> int:
        """Of all layers; with the router, where there is one."""
        per_layer = self.layer_attention or 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * per_layer + (self.layers - self.dense_layers) * self.hidden * self.num_experts

    @property
    def always_weights(self) -> int:
        """Of MLPs that every token uses beside its experts."""
        shared = (self.layers - self.dense_layers) * self.shared
        return 3 * self.hidden * (shared + self.dense_layers * self.dense_mlp)

    @property
    def mlp_weights(self) -> int:
        """Of all layers' MLPs, or of one expert in each."""
        return (self.layers - self.dense_layers) * self.expert_weights

    @property
    def head_weights(self) -> int:
        return self.hidden * self.vocab

    @property
    def num_weights(self) -> int:
        """Norms and biases left out."""
        embeddings = self.head_weights * (1 if self.tied else 2)
        mlps = self.always_weights + self.mlp_weights * max(1, self.num_experts)
        return embeddings + self.attention_weights + mlps

    @property
    def kv_bytes_per_token(self) -> int:
        return self.layers * (self.layer_kv or 2 * self.kv_heads * self.head_dim) * KV_BYTES

    def touched_weights(self, num_tokens: int) -> float:
        """Weights of the layers that ``num_tokens`` tokens of one step use; of experts the number expected if each
        token chose its own at random."""
        if not self.num_experts:
            return self.attention_weights + self.mlp_weights
        missed = (1 - self.top_k / self.num_experts) ** num_tokens
        always = self.attention_weights + self.always_weights
        return always + self.mlp_weights * self.num_experts * (1 - missed)

    @property
    def used_weights(self) -> int:
        """Weights of the layers that one token is multiplied with."""
        return self.attention_weights + self.always_weights + self.mlp_weights * max(1, self.top_k)


def _llama(name: str, layers: int, hidden: int, heads: int, mlp: int) -> ModelSizes:
    return ModelSizes(
        name=name, layers=layers, hidden=hidden, heads=heads, kv_heads=8, head_dim=128, mlp=mlp,
        vocab=128_256, context=131_072,
    )  # fmt: skip


MODELS: Mapping[str, ModelSizes] = MappingProxyType(
    {
        model.name: model
        for model in (
            _llama("llama-3.1-8b", 32, 4096, 32, 14_336),
            _llama("llama-3.1-70b", 80, 8192, 64, 28_672),
            ModelSizes(
                name="qwen3-30b-a3b", layers=48, hidden=2048, heads=32, kv_heads=4, head_dim=128, mlp=768,
                vocab=151_936, context=262_144, num_experts=128, top_k=8,
            ),
            ModelSizes(
                name="qwen2.5-7b", layers=28, hidden=3584, heads=28, kv_heads=4, head_dim=128, mlp=18_944,
                vocab=152_064, context=131_072,
            ),
            ModelSizes(
                name="mixtral-8x7b", layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, mlp=14_336,
                vocab=32_000, context=32_768, num_experts=8, top_k=2,
            ),
            ModelSizes(
                name="qwen2-57b-a14b", layers=28, hidden=3584, heads=28, kv_heads=4, head_dim=128, mlp=2560,
                vocab=151_936, context=32_768, num_experts=64, top_k=8, shared=20_480,
            ),
            ModelSizes(
                name="deepseek-v2-lite", layers=27, hidden=2048, heads=16, kv_heads=16, head_dim=128, mlp=1408,
                vocab=102_400, context=32_768, num_experts=64, top_k=6, shared=2816, dense_layers=1, dense_mlp=10_944,
                layer_attention=2048 * 16 * 192 + 2048 * 576 + 512 * 16 * 256 + 16 * 128 * 2048, layer_kv=576,
            ),
            ModelSizes(
                name="smollm2-135m", layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, mlp=1536,
                vocab=49_152, context=8192, tied=True,
            ),
        )
    }
)  # fmt: skip
ALIASES: Mapping[str, str] = MappingProxyType({"smollm2": "smollm2-135m"})


def model_named(name: str) -> ModelSizes:
    """One of ``MODELS``.

    Raises:
        InvalidParameterError: there is none of that name.
    """
    known = ALIASES.get(name, name)
    if known not in MODELS:
        raise InvalidParameterError(
            f"model {name!r} is not known; choices: {', '.join([*MODELS, *ALIASES])}", param="model"
        )
    return MODELS[known]
