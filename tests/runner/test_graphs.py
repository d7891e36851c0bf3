"""Decode steps by graph, as far as that can be told without a GPU: which steps, from which tensors, and how many."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import braid.kernels as ops
from braid.core.sampling import SamplingParams
from braid.core.step import SampleSpec, Work
from braid.models.decoder import CausalLM
from braid.models.loading import expected_tensors, load_weights
from braid.models.registry import build_model
from braid.runner import graphs
from braid.runner.batch import build_batch
from braid.runner.graphs import Capture, DecodeGraphs
from braid.runner.kv_store import KVStore

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "intermediate_size": 48,
    "vocab_size": 300,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | SIZES
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 19} | SIZES
MIXTRAL = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "sliding_window": None} | SIZES
MIXTRAL |= {"num_local_experts": 4, "num_experts_per_tok": 2}


class FakeDevice:
    """Records by remembering what to call. ``handle`` is the thread's stream."""

    def __init__(self, error: str = "") -> None:
        self.handle: int | None = 7
        self.captured: list[int | None] = []
        self._error = error

    def stream(self) -> int | None:
        return self.handle

    def capture(self, compute: Callable[[], Tensor]) -> Capture:
        if self._error:
            raise RuntimeError(self._error)
        self.captured.append(self.handle)
        output = torch.full_like(compute(), torch.nan)

        def replay() -> None:
            output.copy_(compute())

        return Capture(replay, output)


def model_of(config: dict[str, Any]) -> CausalLM:
    made = build_model(config, dtype=torch.float32, device=CPU)
    draw = torch.Generator().manual_seed(0)
    sizes = expected_tensors(made).items()
    load_weights(made, [(name, torch.randn(size.shape, generator=draw) * 0.1) for name, size in sizes])
    return made


def store(made: CausalLM) -> KVStore:
    kv = KVStore(made.kv_shapes, num_blocks=200, block_size=4, dtype=torch.float32, device=CPU)
    draw = torch.Generator().manual_seed(1)
    for layer in kv.layers:
        for tensor in layer:
            tensor.copy_(torch.randn(tensor.shape, generator=draw))
    return kv


def decodes(count: int, seed: int, longest: int = 90) -> list[Work]:
    rng = random.Random(seed)
    blocks = list(range(200))
    rng.shuffle(blocks)
    works = []
    for index in range(count):
        start = rng.randrange(1, longest)
        own = [blocks.pop() for _ in range(start // 4 + 1)]
        spec = SampleSpec(SamplingParams(temperature=0), 0, [5], 1)
        works.append(Work(str(index), [rng.randrange(300)], start, own, spec))
    return works


@pytest.fixture
def torch_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that GPUs have."""
    monkeypatch.setattr(ops, "_NATIVE", None)


@pytest.mark.usefixtures("torch_kernels")
def test_replayed_steps_are_those_of_an_eager_pass() -> None:
    """Contexts of all lengths in tables of one width: what lies behind a sequence's end has no weight."""
    made = model_of(LLAMA)
    kv, again = store(made), store(made)
    device = FakeDevice()
    replay = DecodeGraphs(made, kv, device)
    num_replayed = 0
    with torch.inference_mode():
        for step, count in enumerate([1, 3, 1, 3, 3, 1, 3]):
            works = decodes(count, step)
            batch = build_batch(works, 4, CPU)
            expected = made(batch, again.layers)
            found = replay.run(works)
            if found is None:
                made(batch, kv.layers)
                continue
            num_replayed += 1
            torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)
            assert torch.equal(found[1], batch.slot_mapping_T)
            for layer, other in zip(kv.layers, again.layers, strict=True):
                for one, two in zip(layer, other, strict=True):
                    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)
    assert num_replayed == 5, "each size runs eagerly once"
    assert len(device.captured) == 2, "and is captured once"


def test_every_stream_has_graphs_of_its_own() -> None:
    made = model_of(LLAMA)
    device = FakeDevice()
    replay = DecodeGraphs(made, store(made), device)
    with torch.inference_mode():
        for handle in (7, 7, 9, 9, 7, 9, None, None):
            device.handle = handle
            found = replay.run(decodes(2, 1))
            assert handle is not None or found is None, "nothing is captured on the default stream"
        assert device.captured == [7, 9]
        replay.clear()
        device.handle = 7
        assert replay.run(decodes(2, 1)) is None
        assert replay.run(decodes(2, 1)) is not None
    assert device.captured == [7, 9, 7]


def test_the_oldest_graphs_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    made = model_of(LLAMA)
    device = FakeDevice()
    replay = DecodeGraphs(made, store(made), device)
    with torch.inference_mode():
        for count in (1, 1, 2, 2, 1, 3, 3, 2, 2):
            replay.run(decodes(count, 1))
    assert len(device.captured) == 4, "that of two had to make room for that of three"


@pytest.mark.parametrize("config", [MISTRAL, MIXTRAL], ids=["window", "experts"])
def test_models_whose_steps_differ_are_left_alone(config: dict[str, Any]) -> None:
    made = model_of(config)
    device = FakeDevice()
    replay = DecodeGraphs(made, store(made), device)
    assert [replay.run(decodes(2, 1)) for _ in range(3)] == [None] * 3
    assert device.captured == []


def test_what_cannot_be_captured_runs_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    made = model_of(LLAMA)
    replay = DecodeGraphs(made, store(made), FakeDevice("operation not permitted"))
    with torch.inference_mode():
        assert [replay.run(decodes(2, 1)) for _ in range(4)] == [None] * 4
    assert len(caplog.records) == 1
    assert "run eagerly: operation not permitted" in caplog.text
