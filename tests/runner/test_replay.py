"""Decode steps replayed from a tape: the bits of the eager pass, and an eager pass where no tape is possible."""

from __future__ import annotations

import operator
import random
import subprocess
import sys
from typing import Any

import pytest
import torch

import braid.kernels as ops
from braid.core.sampling import SamplingParams
from braid.core.step import SampleSpec, StepPlan, Work
from braid.kernels.tape import UnrecordableError
from braid.models.decoder import CausalLM
from braid.models.loading import expected_tensors, load_weights
from braid.models.registry import build_model
from braid.runner.batch import build_batch
from braid.runner.kv_store import KVStore
from braid.runner.replay import DecodeReplay
from braid.runner.runner import Runner

CPU = torch.device("cpu")
GREEDY = SamplingParams(temperature=0)
SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "intermediate_size": 96,
    "vocab_size": 300,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"} | SIZES
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"} | SIZES
MIXTRAL = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"} | SIZES
MIXTRAL |= {"num_local_experts": 4, "num_experts_per_tok": 2}

native = pytest.mark.skipif(not ops.describe().startswith("native"), reason="needs the native library")


def model(config: dict[str, Any], dtype: torch.dtype = torch.bfloat16) -> CausalLM:
    made = build_model(config, dtype=dtype, device=CPU)
    generator = torch.Generator().manual_seed(0)
    load_weights(
        made,
        [
            (name, torch.randn(target.shape, generator=generator) * 0.1)
            for name, target in expected_tensors(made).items()
        ],
    )
    return made


def store(made: CausalLM, dtype: torch.dtype = torch.bfloat16) -> KVStore:
    kv = KVStore(made.kv_shapes, num_blocks=400, block_size=4, dtype=dtype, device=CPU)
    generator = torch.Generator().manual_seed(1)
    for layer in kv.layers:
        for tensor in layer:
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return kv


def decodes(count: int, seed: int, longest: int = 90) -> list[Work]:
    """One-token works on top of contexts that lie in random blocks."""
    rng = random.Random(seed)
    blocks = list(range(400))
    rng.shuffle(blocks)
    works = []
    for index in range(count):
        start = rng.randrange(1, longest)
        own = [blocks.pop() for _ in range(start // 4 + 1)]
        token = rng.randrange(300)
        works.append(Work(str(index), [token], start, own, SampleSpec(GREEDY, 0, [token], 1)))
    return works


@native
@pytest.mark.parametrize("config", [LLAMA, QWEN3], ids=["llama", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_replayed_step_has_the_bits_of_an_eager_one(config: dict[str, Any], dtype: torch.dtype) -> None:
    made = model(config, dtype)
    kv, again = store(made, dtype), store(made, dtype)
    replay = DecodeReplay(made, kv)
    with torch.inference_mode():
        for step, count in enumerate([1, 3, 1, 3, 8, 3, 8, 1]):
            works = decodes(count, step)
            outcome = replay.run(works)
            assert outcome is not None
            batch = build_batch(works, 4, CPU)
            assert torch.equal(outcome[0], made(batch, again.layers))
            assert torch.equal(outcome[1], batch.slot_mapping_T)
            for layer, other in zip(kv.layers, again.layers, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(layer, other, strict=True))


@native
def test_contexts_that_outgrow_the_table_get_a_wider_one() -> None:
    made = model(LLAMA)
    kv, again = store(made), store(made)
    replay = DecodeReplay(made, kv)
    with torch.inference_mode():
        for longest in (20, 300, 20, 1200):
            works = decodes(1, longest, longest)
            works = [works[0]._replace(start=longest, block_ids=list(range(longest // 4 + 1)))]
            outcome = replay.run(works)
            assert outcome is not None
            assert torch.equal(outcome[0], made(build_batch(works, 4, CPU), again.layers))


def test_a_model_that_needs_torch_operations_runs_eagerly() -> None:
    made = model(MIXTRAL)
    assert DecodeReplay(made, store(made)).run(decodes(2, 0)) is None
    runner = Runner(made, store(made), device=CPU)
    result = runner.execute(StepPlan(0, "mixed", tuple(decodes(3, 0))))
    runner.close()
    assert not result.errors
    assert len(result.tokens) == 3


@native
def test_a_torch_operation_cannot_slip_into_a_tape() -> None:
    x = torch.ones(3, 8)
    weight = torch.ones(8)
    ops.record(lambda: ops.rms_norm(x, weight, 1e-5).view(3, 2, 4).flatten(1))
    for compute in (
        lambda: ops.rms_norm(x, weight, 1e-5) + 1,
        lambda: ops.rms_norm(x, weight, 1e-5).view(3, 2, 4).transpose(0, 1).reshape(2, 12),
        lambda: ops.rms_norm(x, weight, 1e-5).mul_(2),
        lambda: operator.iadd(ops.rms_norm(x, weight, 1e-5), 1),
        lambda: ops.rms_norm(x, weight, 1e-5)[: int(x.sum())],
        lambda: ops.rms_norm(x, weight, 1e-5)[: int(x[0, 0])],
        lambda: torch.add(x, x, out=ops.rms_norm(x, weight, 1e-5)),
        lambda: torch.zeros(3),
    ):
        with torch.inference_mode(), pytest.raises(UnrecordableError, match="computes outside"):
            ops.record(compute)


@native
def test_recording_imports_no_compiler() -> None:
    """Importing torch's compiler would cost the first request two seconds."""
    script = (
        "import sys, torch, braid.kernels as ops\n"
        "x, w = torch.ones(3, 8), torch.ones(8)\n"
        "ops.record(lambda: ops.rms_norm(x, w, 1e-5).view(3, 2, 4))\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@native
def test_states_that_are_not_finite_fail_alone_and_leave_clean_blocks() -> None:
    made = model(LLAMA)
    made.embedding.weight.data[7] = torch.nan
    runner = Runner(made, store(made), device=CPU)
    works = decodes(3, 5)
    poisoned = works[1]._replace(token_ids=[7])
    clean = runner.execute(StepPlan(0, "mixed", (works[0], works[2])))
    result = runner.execute(StepPlan(1, "mixed", (works[0], poisoned, works[2])))
    runner.close()
    assert set(result.errors) == {"1"}
    assert {name: result.tokens[name] for name in ("0", "2")} == dict(clean.tokens)
    for layer in runner._kv.layers:
        assert all(torch.isfinite(tensor).all() for tensor in layer)
