"""Tiny models with all their experts in memory, the same with a store, and a store alone with random experts."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import braid.kernels as ops
from braid.checkpoint.expert_file import ExpertFile, ExpertWriter
from braid.checkpoint.expert_names import is_expert
from braid.checkpoint.quantise import pack_expert, unpack_expert, weight_dtype
from braid.core.experts import ExpertLayout, ExpertShape
from braid.layers.moe import MoE, Routed
from braid.models.decoder import CausalLM
from braid.models.loading import load_weights
from braid.models.registry import build_model
from braid.policy.experts.catalog import expert_cache
from braid.runner.experts.module import install
from braid.runner.experts.store import ExpertStore

HIDDEN, SIZE = 64, 32
SHAPE = ExpertShape(3, 8, 2)


def _models_conftest() -> ModuleType:
    path = Path(__file__).parents[2] / "models" / "conftest.py"
    spec = importlib.util.spec_from_file_location("tests_models_conftest", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def harness() -> ModuleType:
    """Tiny checkpoints and the paged harness of the models' own tests."""
    return _models_conftest()


@dataclass
class Family:
    """A tiny model of one family, all in memory, and the file of its experts."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    resident: CausalLM
    file: ExpertFile

    def stored(self, num_slots: int, cache: str = "mrs", **options: Any) -> tuple[CausalLM, ExpertStore]:
        """The same model with its experts in a store."""
        store = ExpertStore(self.file, num_slots, expert_cache(cache, self.file.shape), readers=2, **options)
        model = build_model(dict(self.config), dtype=torch.float32, device="cpu")
        install(model, store)
        load_weights(model, ((name, tensor) for name, tensor in self.tensors.items() if not is_expert(name)))
        return model, store


def _write(path: Path, model: CausalLM) -> ExpertFile:
    mixtures = [block.mlp for block in model.blocks if isinstance(block.mlp, MoE)]  # type: ignore[union-attr]
    gate_ups, downs = zip(*((m.experts.gate_up.weight, m.experts.down.weight) for m in mixtures), strict=True)
    count, double, hidden = gate_ups[0].shape
    shape = ExpertShape(len(mixtures), count, mixtures[0].router.routing.top_k)
    layout = ExpertLayout("float32", hidden, double // 2)
    with ExpertWriter(path, shape, layout, source="a test") as writer:
        for layer in range(shape.layers):
            for index in range(count):
                record_B = pack_expert(gate_ups[layer][index], downs[layer][index], layout)
                writer.write(shape.id_of(layer, index), record_B.numpy().data)
        return writer.commit()


@pytest.fixture(scope="session")
def family(harness: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    """The tiny model of a case, made once."""
    made: dict[str, Family] = {}

    def get(case: str) -> Family:
        if case not in made:
            folder = tmp_path_factory.mktemp(f"experts-{case}")
            tiny = harness.make_tiny(case, folder)
            resident = tiny.build()
            file = _write(folder / "experts.braid", resident)
            made[case] = Family(tiny.config, tiny.tensors, resident, file)
        return made[case]

    return get


@dataclass
class Bare:
    """Random experts without a model: their file, and what they compute when they are all in memory."""

    file: ExpertFile
    gate_up: list[Tensor]
    down: list[Tensor]

    def store(self, num_slots: int, cache: str = "lru", **options: Any) -> ExpertStore:
        scope = options.pop("scope", "global")
        readers = options.pop("readers", 2)
        made = expert_cache(cache, self.file.shape, scope=scope)
        return ExpertStore(self.file, num_slots, made, readers=readers, **options)

    def expected(self, layer: int, x_TD: Tensor, routed: Routed) -> Tensor:
        return ops.moe_ffn(
            x_TD, routed.ids_Tk, routed.weights_Tk, self.gate_up[layer], self.down[layer], act="silu"
        )


def route(rows: int, seed: int, experts: list[int] | None = None) -> tuple[Tensor, Routed]:
    """Random rows, and experts for them: any, or the given ones for every row."""
    generator = torch.Generator().manual_seed(seed)
    x_TD = torch.randn(rows, HIDDEN, generator=generator)
    scores_TX = torch.rand(rows, SHAPE.per_layer, generator=generator).softmax(-1)
    if experts is not None:
        scores_TX[:, experts] += 1.0
    weights_Tk, ids_Tk = scores_TX.topk(SHAPE.top_k, dim=-1)
    return x_TD, Routed(ids_Tk, weights_Tk, scores_TX)


@pytest.fixture
def bare(tmp_path: Path) -> Bare:
    """float32 experts: three layers of eight, two per token."""
    return make_bare(tmp_path / "experts.braid", ExpertLayout("float32", HIDDEN, SIZE))


def make_bare(path: Path, layout: ExpertLayout) -> Bare:
    generator = torch.Generator().manual_seed(5)
    gate_up, down = [], []
    with ExpertWriter(path, SHAPE, layout, source="a test") as writer:
        for layer in range(SHAPE.layers):
            gate_up.append(torch.randn(SHAPE.per_layer, 2 * SIZE, HIDDEN, generator=generator))
            down.append(torch.randn(SHAPE.per_layer, HIDDEN, SIZE, generator=generator))
            for index in range(SHAPE.per_layer):
                weights = [stacked[layer][index].to(weight_dtype(layout)) for stacked in (gate_up, down)]
                record_B = pack_expert(*weights, layout)
                gate_up[layer][index], down[layer][index] = unpack_expert(record_B, layout)
                writer.write(SHAPE.id_of(layer, index), record_B.numpy().data)
        file = writer.commit()
    return Bare(file, gate_up, down)


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield
