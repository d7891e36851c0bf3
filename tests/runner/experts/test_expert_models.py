"""Whole models with their experts in a store: the same bits as with all of them in memory, in every family."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from braid.core.errors import CheckpointError
from braid.layers.moe import MoE
from braid.models.decoder import CausalLM
from braid.models.loading import expected_tensors
from braid.models.registry import build_model
from braid.policy.experts.catalog import expert_cache
from braid.runner.experts.module import StoredExperts, install
from braid.runner.experts.store import ExpertStore

from .conftest import Bare, Family

FAMILIES = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2_groups", "deepseek_v3")
PROMPTS = (2, 15)
NEW_TOKENS = 3


def played(harness: ModuleType, model: CausalLM) -> list[Tensor]:
    """Logits of two sequences, in chunks, decodes beside prompts."""
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(0, 160, (count,), generator=generator).tolist() for count in PROMPTS]
    logits: list[Tensor] = harness.Paged(model, chunk=8, apart=1).run(prompts, NEW_TOKENS)[1]
    return logits


def sizes(shape_total: int, cycle: int) -> list[tuple[int, str, str]]:
    """Slots, policy, prefetch: one slot, below a cycle, half, all."""
    return [
        (1, "lru", "on"),
        (cycle - 1, "mrs", "off"),
        (shape_total // 2, "ewma", "on"),
        (shape_total, "static", "auto"),
    ]


@pytest.mark.parametrize("case", FAMILIES)
def test_bits_do_not_depend_on_slots_policy_or_prefetch(
    case: str, family: Callable[[str], Family], harness: ModuleType
) -> None:
    made = family(case)
    expected = played(harness, made.resident)
    for num_slots, cache, prefetch in sizes(made.file.shape.total, made.file.shape.cycle):
        model, store = made.stored(num_slots, cache, staging=2, prefetch=prefetch)
        for ours, theirs in zip(played(harness, model), expected, strict=True):
            assert torch.equal(ours, theirs)
        stats = store.stats()
        assert all(layer.hits + layer.misses + layer.bypasses > 0 for layer in stats.layers)
        assert stats.bytes_by_cause["prefill"] > 0
        assert stats.bytes_by_cause["demand"] > 0 or num_slots > 1
        assert stats.resident <= num_slots
        store.check_integrity(records=True)
        store.close()


def test_every_layer_tells_the_scores_of_all_its_rows(family: Callable[[str], Family]) -> None:
    """One hook for all families, and the mean over the batch: what MRS goes by."""
    made = family("qwen3_moe")
    model, store = made.stored(4)
    told = []
    inner = store.table.cache.routed
    store.table.cache.routed = lambda routed: (told.append(routed), inner(routed))[1]  # type: ignore[method-assign]
    layer, mixture = next(
        (layer, block.mlp) for layer, block in enumerate(model.blocks) if isinstance(block.mlp, MoE)
    )
    assert layer > 0
    x_TD = torch.randn(3, model.embedding.weight.shape[1], generator=torch.Generator().manual_seed(1))
    mixture(x_TD)
    scores_X = mixture.router(x_TD).scores_TX.mean(0)
    top_k = made.file.shape.top_k
    assert told[0].scores.keys() == {*scores_X.topk(2 * top_k).indices.tolist(), *told[0].loads}
    assert all(score == pytest.approx(float(scores_X[expert])) for expert, score in told[0].scores.items())
    assert sum(told[0].loads.values()) == 3 * top_k
    assert told[0].layer == 0
    store.close()


def test_experts_of_a_store_are_no_weights_of_the_model(family: Callable[[str], Family]) -> None:
    made = family("deepseek_v3")
    model, store = made.stored(3)
    modules = [module for module in model.modules() if isinstance(module, StoredExperts)]
    assert len(modules) == made.file.shape.layers
    assert not any(".experts." in name for name in expected_tensors(model) if "shared" not in name)
    store.close()


def test_experts_of_another_model_are_refused(family: Callable[[str], Family], bare: Bare) -> None:
    made = family("olmoe")
    store = ExpertStore(bare.file, 2, expert_cache("lru", bare.file.shape), readers=1)
    with pytest.raises(CheckpointError, match="experts of another model"):
        install(build_model(dict(made.config), dtype=torch.float32, device="cpu"), store)
    dense = build_model(
        {**made.config, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"},
        dtype=torch.float32,
        device="cpu",
    )
    with pytest.raises(CheckpointError, match="the model has none"):
        install(dense, store)
    store.close()
