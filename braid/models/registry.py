"""From a config dict to a model without weights yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from braid.models import deepseek, gemma3, llama, mixtral, olmoe, qwen2, qwen2_moe, qwen3, qwen3_moe
from braid.models.config import ModelConfig
from braid.models.decoder import CausalLM
from braid.models.parse import parse_config

BUILDERS: dict[str, Callable[[ModelConfig, torch.dtype, torch.device], CausalLM]] = {
    "llama": llama.build,
    "qwen2": qwen2.build,
    "qwen3": qwen3.build,
    "gemma3": gemma3.build,
    "mixtral": mixtral.build,
    "qwen2_moe": qwen2_moe.build,
    "qwen3_moe": qwen3_moe.build,
    "olmoe": olmoe.build,
    "deepseek_v2": deepseek.build,
    "deepseek_v3": deepseek.build,
}


def build_model(config: Mapping[str, Any], *, dtype: torch.dtype, device: torch.device | str) -> CausalLM:
    """The model a Hugging Face config describes; `braid.models.loading.load_weights` fills it.

    Args:
        dtype: compute and weight dtype, float32 or bfloat16.
        device: where the weights shall be; nothing is allocated yet.

    Raises:
        CheckpointError: an unsupported architecture, or a missing or odd value in the config.
    """
    parsed = parse_config(config)
    return BUILDERS[parsed.family](parsed, dtype, torch.device(device))
