"""Tiny transformers checkpoints, and a small paged harness that drives a model through prefill chunks and decodes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from braid.layers.batch import ForwardBatch
from braid.models.decoder import CausalLM
from braid.models.loading import load_weights
from braid.models.registry import build_model

os.environ["HF_HUB_OFFLINE"] = "1"
BLOCK_SIZE = 8
MAX_TOKENS = 160

TINY = {
    "vocab_size": 160,
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "intermediate_size": 192,
    "max_position_embeddings": 256,
    "initializer_range": 0.08,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
LATENT = {
    "num_key_value_heads": 4,
    "head_dim": None,
    "q_lora_rank": 48,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "first_k_dense_replace": 1,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
DEEPSEEK_YARN = {**YARN, "mscale": 0.8, "mscale_all_dim": 0.6, "beta_fast": 16, "beta_slow": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_theta": 500000.0,
}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
GEMMA_ROPES = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}
EXPERTS = {"moe_intermediate_size": 64, "num_experts": 8, "num_experts_per_tok": 3}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"tie_word_embeddings": True}),
    "llama_llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "llama_linear_bias": ("Llama", {"rope_parameters": LINEAR, "attention_bias": True, "mlp_bias": True}),
    "llama_yarn": ("Llama", {"rope_parameters": YARN}),
    "mistral": ("Mistral", {"sliding_window": 19}),
    "qwen2": ("Qwen2", {"head_dim": None, "num_attention_heads": 2, "num_key_value_heads": 1}),
    "qwen2_window": (
        "Qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 19,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
    "qwen3": ("Qwen3", {}),
    "gemma3": (
        "Gemma3",
        {
            "sliding_window": 19,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": GEMMA_ROPES,
            "query_pre_attn_scalar": 48,
        },
    ),
    "gemma3_pattern": (
        "Gemma3",
        {"sliding_window": 24, "sliding_window_pattern": 3, "final_logit_softcapping": 2.0},
    ),
    "mixtral": ("Mixtral", {"num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 33}),
    "qwen2_moe": (
        "Qwen2Moe",
        {**EXPERTS, "shared_expert_intermediate_size": 96, "mlp_only_layers": [1], "norm_topk_prob": False},
    ),
    "qwen3_moe": ("Qwen3Moe", {**EXPERTS, "norm_topk_prob": True, "decoder_sparse_step": 2}),
    "olmoe": (
        "Olmoe",
        {
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "num_attention_heads": 2,
            "head_dim": None,
            "clip_qkv": 1.5,
        },
    ),
    "deepseek_v2": ("DeepseekV2", {**LATENT, "rope_parameters": DEEPSEEK_YARN, "routed_scaling_factor": 2.0}),
    "deepseek_v2_groups": (
        "DeepseekV2",
        {**LATENT, "q_lora_rank": None, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2},
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {**LATENT, "n_group": 4, "topk_group": 2, "rope_parameters": DEEPSEEK_YARN, "num_mtp_layers": 0},
    ),
}


@dataclass
class Tiny:
    """A saved checkpoint: its config.json, its tensors, and transformers' model of it in float32."""

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    peer: Any

    def build(self, dtype: torch.dtype = torch.float32) -> CausalLM:
        model = build_model(self.config, dtype=dtype, device="cpu")
        load_weights(model, self.tensors.items())
        return model


def _randomise(peer: Any) -> None:
    """Fill what transformers starts at 0 or 1, and round all to bfloat16, so that both dtypes load the same numbers."""
    with torch.no_grad():
        for name, tensor in [*peer.named_parameters(), *peer.named_buffers()]:
            if tensor.dim() == 1 and "inv_freq" not in name:
                tensor.add_(torch.randn(tensor.shape) * 0.2)
            if tensor.dim() > 0 and "inv_freq" not in name:
                tensor.copy_(tensor.bfloat16())


def make_tiny(case: str, folder: Path, **more: Any) -> Tiny:
    import transformers

    family, options = CASES[case]
    torch.manual_seed(sum(case.encode()))
    prefix = "Gemma3Text" if family == "Gemma3" else family
    values = {
        name: value
        for name, value in {**TINY, **options, **more}.items()
        if value is not None or name in ("pad_token_id", "bos_token_id", "eos_token_id", "q_lora_rank")
    }
    config = getattr(transformers, f"{prefix}Config")(**values)
    config._attn_implementation = "eager"
    peer = getattr(transformers, f"{family}ForCausalLM")(config).float().eval()
    _randomise(peer)
    peer.save_pretrained(folder)
    return Tiny(
        json.loads((folder / "config.json").read_text()),
        load_file(folder / "model.safetensors"),
        peer,
    )


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """The tiny checkpoint of a case, made once."""
    made: dict[str, Tiny] = {}

    def get(case: str) -> Tiny:
        if case not in made:
            made[case] = make_tiny(case, tmp_path_factory.mktemp(case))
        return made[case]

    return get


@pytest.fixture(scope="session")
def cases() -> list[str]:
    return list(CASES)


@dataclass
class Sequence:
    """Tokens of one sequence; KV exists for the first ``computed``."""

    tokens: list[int]
    end: int
    blocks: list[int]
    arrival: int = 0
    computed: int = 0
    logits: list[Tensor] = field(default_factory=list)


def _batch(works: list[tuple[Sequence, int]], num_decodes: int) -> ForwardBatch:
    """``works``: how many tokens of each sequence, decodes first."""
    tokens, positions, slots, starts, lens = [], [], [], [0], []
    for sequence, count in works:
        for position in range(sequence.computed, sequence.computed + count):
            tokens.append(sequence.tokens[position])
            positions.append(position)
            slots.append(sequence.blocks[position // BLOCK_SIZE] * BLOCK_SIZE + position % BLOCK_SIZE)
        starts.append(len(tokens))
        lens.append(sequence.computed + count)
    width = -(-max(lens) // BLOCK_SIZE)
    tables = [sequence.blocks[:width] + [0] * (width - len(sequence.blocks[:width])) for sequence, _ in works]
    return ForwardBatch(
        token_ids_T=torch.tensor(tokens),
        positions_T=torch.tensor(positions),
        slot_mapping_T=torch.tensor(slots),
        query_start=starts,
        query_start_S1=torch.tensor(starts, dtype=torch.int32),
        context_lens=lens,
        context_lens_S=torch.tensor(lens, dtype=torch.int32),
        block_tables_SB=torch.tensor(tables, dtype=torch.int32),
        block_size=BLOCK_SIZE,
        num_decodes=num_decodes,
        logit_rows=torch.arange(len(tokens)),
    )


class Paged:
    """Greedy decoding over one paged store: scattered blocks, chunks of at most ``chunk`` tokens, late arrivals."""

    def __init__(
        self, model: CausalLM, *, chunk: int = 23, apart: int = 2, dtype: torch.dtype = torch.float32
    ) -> None:
        self.model, self.chunk, self.apart, self.dtype = model, chunk, apart, dtype

    def _sequences(self, prompts: list[list[int]], ends: list[int]) -> list[Sequence]:
        per_sequence = -(-max(ends) // BLOCK_SIZE)
        order = torch.randperm(
            per_sequence * len(prompts), generator=torch.Generator().manual_seed(3)
        ).tolist()
        return [
            Sequence(list(prompt), end, order[i * per_sequence : (i + 1) * per_sequence], i * self.apart)
            for i, (prompt, end) in enumerate(zip(prompts, ends, strict=True))
        ]

    def _works(self, sequences: list[Sequence], step: int) -> tuple[list[tuple[Sequence, int]], int]:
        ready = [s for s in sequences if s.arrival <= step and s.computed < s.end]
        decodes = [(s, 1) for s in ready if s.computed > 0 and len(s.tokens) - s.computed == 1]
        taken = [s for s, _ in decodes]
        chunks = [(s, min(self.chunk, len(s.tokens) - s.computed)) for s in ready if s not in taken]
        return decodes + chunks, len(decodes)

    def run(self, prompts: list[list[int]], new_tokens: int) -> tuple[list[list[int]], list[Tensor]]:
        """Whole sequences and their logits at every position but the last."""
        sequences = self._sequences(prompts, [len(prompt) + new_tokens - 1 for prompt in prompts])
        blocks = sum(len(s.blocks) for s in sequences)
        kv = [
            tuple(torch.zeros(blocks, BLOCK_SIZE, *shape, dtype=self.dtype) for shape in shapes)
            for shapes in self.model.kv_shapes
        ]
        for step in range(10_000):
            if all(s.computed == s.end for s in sequences):
                return [s.tokens for s in sequences], [torch.cat(s.logits) for s in sequences]
            works, num_decodes = self._works(sequences, step)
            batch = _batch(works, num_decodes) if works else None
            if batch is not None:
                self._advance(works, batch, self.model.logits(self.model(batch, kv)))
        raise AssertionError("the sequences do not end")

    def _advance(self, works: list[tuple[Sequence, int]], batch: ForwardBatch, logits: Tensor) -> None:
        for (sequence, count), start in zip(works, batch.query_start[:-1], strict=True):
            rows = logits[start : start + count]
            sequence.logits.append(rows)
            sequence.computed += count
            if sequence.computed == len(sequence.tokens):
                sequence.tokens.append(int(rows[-1].argmax()))


@pytest.fixture(scope="session")
def paged() -> type[Paged]:
    return Paged


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
