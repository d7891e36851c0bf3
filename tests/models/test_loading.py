"""Loading proves that every weight is set exactly once, and says which tensor is at fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from braid.core.errors import CheckpointError
from braid.models.loading import load_weights
from braid.models.registry import build_model


def load(checkpoint: Any, tensors: list[tuple[str, Tensor]], dtype: torch.dtype = torch.float32) -> Any:
    model = build_model(checkpoint.config, dtype=dtype, device="cpu")
    load_weights(model, tensors)
    return model


def test_the_order_does_not_matter_and_nothing_stays_unset(tiny: Callable[[str], Any]) -> None:
    checkpoint = tiny("deepseek_v3")
    forwards, backwards = (
        load(checkpoint, order)
        for order in (list(checkpoint.tensors.items()), list(reversed(checkpoint.tensors.items())))
    )
    for (name, a), b in zip(forwards.named_parameters(), backwards.parameters(), strict=True):
        assert not a.is_meta, name
        assert torch.equal(a, b), name


def test_a_missing_tensor_is_named(tiny: Callable[[str], Any]) -> None:
    checkpoint = tiny("llama_llama3")
    tensors = {**checkpoint.tensors}
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    with pytest.raises(
        CheckpointError, match=r"lacks 1 tensors: model\.layers\.1\.self_attn\.k_proj\.weight"
    ):
        load(checkpoint, list(tensors.items()))


def test_a_missing_expert_is_named(tiny: Callable[[str], Any]) -> None:
    checkpoint = tiny("olmoe")
    tensors = {**checkpoint.tensors}
    del tensors["model.layers.2.mlp.experts.5.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"layers\.2\.mlp\.experts\.5\.up_proj"):
        load(checkpoint, list(tensors.items()))


def test_left_over_tensors_are_named(tiny: Callable[[str], Any]) -> None:
    checkpoint = tiny("llama_llama3")
    tensors = [*checkpoint.tensors.items(), ("model.layers.0.self_attn.q_proj.bias", torch.zeros(256))]
    with pytest.raises(
        CheckpointError, match=r"1 tensors .* no place for: model\.layers\.0\.self_attn\.q_proj\.bias"
    ):
        load(checkpoint, tensors)


def test_a_tensor_given_twice(tiny: Callable[[str], Any]) -> None:
    checkpoint = tiny("llama")
    tensors = list(checkpoint.tensors.items())
    with pytest.raises(CheckpointError, match="occurs twice"):
        load(checkpoint, [*tensors, tensors[0]])


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("model.norm.weight", torch.zeros(64), r"'model\.norm\.weight' has shape \[64\], expected \[128\]"),
        ("model.layers.0.self_attn.v_proj.weight", torch.zeros(128), r"expected \[128, 128\]"),
        ("model.norm.weight", torch.zeros(128, dtype=torch.int8), "expected floating-point numbers"),
    ],
)
def test_wrong_shapes_and_kinds(tiny: Callable[[str], Any], name: str, tensor: Tensor, words: str) -> None:
    checkpoint = tiny("llama")
    with pytest.raises(CheckpointError, match=words):
        load(checkpoint, list({**checkpoint.tensors, name: tensor}.items()))


def test_only_known_inert_tensors_are_passed_over(tiny: Callable[[str], Any]) -> None:
    tied, deepseek = tiny("llama"), tiny("deepseek_v3")
    old = [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", torch.zeros(32)),
        ("lm_head.weight", torch.zeros(160, 128)),
    ]
    load(tied, [*tied.tensors.items(), *old])
    load(deepseek, [*deepseek.tensors.items(), ("model.layers.3.eh_proj.weight", torch.zeros(2, 2))])
    with pytest.raises(CheckpointError, match="no place for"):
        load(tied, [*tied.tensors.items(), ("model.layers.3.eh_proj.weight", torch.zeros(2, 2))])


def test_dtypes_and_adoption(tiny: Callable[[str], Any]) -> None:
    checkpoint = tiny("qwen3_moe")
    tensors = {name: tensor.bfloat16() for name, tensor in checkpoint.tensors.items()}
    model = load(checkpoint, list(tensors.items()), torch.bfloat16)
    kept = {name for name, weight in model.named_parameters() if weight.dtype == torch.float32}
    assert kept == {name for name, _ in model.named_parameters() if "norm" in name or "router" in name}
    embedding = tensors["model.embed_tokens.weight"]
    assert model.embedding.weight.data_ptr() == embedding.data_ptr(), "adopted without a copy"


def test_gemma3_norms_become_one_plus_the_stored(tiny: Callable[[str], Any]) -> None:
    checkpoint = tiny("gemma3")
    model = checkpoint.build(torch.bfloat16)
    assert torch.equal(model.norm.weight, checkpoint.tensors["model.norm.weight"].float() + 1)


@pytest.mark.parametrize(
    "prefixes", [("language_model.", "vision_tower.x"), ("model.language_model|", "model.vision_tower.x")]
)
def test_gemma3_inside_a_model_that_sees_images(
    tiny: Callable[[str], Any], prefixes: tuple[str, str]
) -> None:
    checkpoint = tiny("gemma3")
    prefix, eye = prefixes
    inner = [
        (prefix[:-1] + name.removeprefix("model") if prefix.endswith("|") else prefix + name, tensor)
        for name, tensor in checkpoint.tensors.items()
    ]
    config = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": checkpoint.config}
    model = build_model(config, dtype=torch.float32, device="cpu")
    load_weights(model, [*inner, (eye, torch.zeros(1))])
    assert torch.equal(model.embedding.weight, checkpoint.tensors["model.embed_tokens.weight"])


def test_a_decoder_saved_without_its_head_and_prefix(tiny: Callable[[str], Any]) -> None:
    whole = tiny("llama")
    bare = [(name.removeprefix("model."), tensor) for name, tensor in whole.tensors.items()]
    assert not any(name.startswith("model.") for name, _ in bare)
    for a, b in zip(
        load(whole, bare).parameters(), load(whole, list(whole.tensors.items())).parameters(), strict=True
    ):
        assert torch.equal(a, b)
    with pytest.raises(CheckpointError, match="occurs twice"):
        load(whole, [*bare, ("model.norm.weight", whole.tensors["model.norm.weight"])])
