"""Sizes counted from the config equal those of the model that is built from it."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

from braid.models.spec import model_spec


def test_every_case_counts_exactly(cases: list[str], tiny: Callable[[str], Any]) -> None:
    for case in cases:
        checkpoint = tiny(case)
        model, spec = checkpoint.build(), model_spec(case, checkpoint.config)
        assert spec.num_parameters == sum(weight.numel() for weight in model.parameters()), case
        assert spec.kv_numbers_per_token == sum(
            prod(shape) for layer in model.kv_shapes for shape in layer
        ), case
        assert (spec.num_layers, spec.vocab_size) == (len(model.blocks), checkpoint.config["vocab_size"])


def test_experts_a_token_does_not_use_are_not_active(tiny: Callable[[str], Any]) -> None:
    checkpoint = tiny("qwen3_moe")
    config, spec = checkpoint.config, model_spec("m", checkpoint.config)
    per_expert = 3 * config["hidden_size"] * config["moe_intermediate_size"]
    sparse_layers, unused = 1, 8 - config["num_experts_per_tok"]
    assert spec.num_parameters - spec.active_parameters == sparse_layers * unused * per_expert
    dense = model_spec("d", tiny("llama").config)
    assert dense.num_parameters == dense.active_parameters
