"""Rotary tables: equal to transformers' bit for bit where it computes the same, and grown on demand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from braid.layers.rotary import MIN_TABLE, Rotary, Rotation
from braid.models.config import Fields
from braid.models.rope_config import parse_rope

SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 10000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 512,
    },
    "yarn given": {
        "rope_type": "yarn",
        "rope_theta": 1000.0,
        "factor": 40.0,
        "original_max_position_embeddings": 512,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "attention_factor": 1.3,
        "truncate": False,
    },
    "yarn mscale": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 40.0,
        "original_max_position_embeddings": 512,
        "mscale": 1.0,
        "mscale_all_dim": 0.707,
    },
    "partial": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
}


@pytest.mark.parametrize("name", SCALINGS)
def test_tables_are_those_of_transformers(name: str) -> None:
    values = {"head_dim": 64, "max_position_embeddings": 2048, "rope_parameters": SCALINGS[name]}
    theirs = LlamaRotaryEmbedding(LlamaConfig(**{**values, "rope_parameters": dict(SCALINGS[name])}))
    positions = torch.tensor([0, 1, 2, 63, 500, 2047])
    want_cos, want_sin = theirs(torch.zeros(1), positions.unsqueeze(0))
    cos, sin = Rotary(Rotation(*parse_rope(Fields(values), 64)))(positions, 2048)
    if name == "partial":  # Llama itself knows no partial rotation
        want_cos, want_sin = _partial(positions, 32)
    half = cos.shape[-1]
    assert torch.equal(cos, want_cos[0][:, :half])
    assert torch.equal(sin, want_sin[0][:, :half])


def _partial(positions: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    angles = positions.float().unsqueeze(1) * (1.0 / (10000.0 ** (torch.arange(0, dim, 2).float() / dim)))
    return angles.cos().unsqueeze(0), angles.sin().unsqueeze(0)


def test_old_and_new_spellings_mean_the_same() -> None:
    new = {"head_dim": 64, "max_position_embeddings": 2048, "rope_parameters": SCALINGS["llama3"]}
    scaling = {
        key: value for key, value in SCALINGS["llama3"].items() if key not in ("rope_theta", "rope_type")
    }
    old = {
        **new,
        "rope_parameters": None,
        "rope_theta": 500000.0,
        "rope_scaling": {**scaling, "type": "llama3"},
    }
    assert parse_rope(Fields(old), 64) == parse_rope(Fields(new), 64)


def test_the_table_grows_and_keeps_its_numbers() -> None:
    rotary = Rotary(Rotation(16, 10000.0))
    positions = torch.tensor([3, MIN_TABLE - 1])
    before = rotary(positions, MIN_TABLE)
    rotary(torch.tensor([5 * MIN_TABLE]), 5 * MIN_TABLE + 1)
    after = rotary(positions, MIN_TABLE)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
