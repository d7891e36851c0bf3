"""A chunk whose layers are computed over several steps: the bits of one step, and the same fault wall."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from braid.core.faults import Fault, Faults
from braid.core.sampling import SamplingParams
from braid.core.step import Layers, SampleSpec, StepPlan, StepResult, Work
from braid.models.decoder import CausalLM
from braid.models.loading import expected_tensors, load_weights
from braid.models.registry import build_model
from braid.runner.kv_store import KVStore
from braid.runner.runner import Runner

CPU = torch.device("cpu")
NUM = 3
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "num_hidden_layers": NUM,
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
GROUPS = ([1, 2, 3], [2, 3], [1, 3], [3])


@pytest.fixture(scope="module")
def model() -> CausalLM:
    made = build_model(LLAMA, dtype=torch.bfloat16, device=CPU)
    draw = torch.Generator().manual_seed(0)
    sizes = expected_tensors(made).items()
    load_weights(made, [(name, torch.randn(size.shape, generator=draw) * 0.1) for name, size in sizes])
    return made


def runner_of(model: CausalLM, faults: Faults | None = None) -> Runner:
    kv = KVStore(model.kv_shapes, num_blocks=24, block_size=4, dtype=torch.bfloat16, device=CPU)
    return Runner(model, kv, device=CPU, faults=faults)


def work(name: str, tokens: range, blocks: list[int]) -> Work:
    spec = SampleSpec(SamplingParams(temperature=0, logprobs=2), 0, list(tokens), len(tokens))
    return Work(name, list(tokens), 0, blocks, spec)


CHUNKS = (work("a", range(5, 26), [1, 2, 3, 4, 5, 6]), work("b", range(40, 47), [9, 8]))
DECODES = (Work("d", [4], 3, [10], SampleSpec(SamplingParams(temperature=0), 0, [1, 2, 3, 4], 3)),)


def by_layers(runner: Runner, ends: list[int], works: tuple[Work, ...] = CHUNKS) -> list[StepResult]:
    """The works' layers up to each of ``ends`` in steps, each beside a decode."""
    results: list[StepResult] = []
    first = 0
    for end in ends:
        parts = []
        for each in works:
            carry = results[-1].carried[each.request_id] if results else None
            sample = each.sample if end == NUM else None
            parts.append(each._replace(layers=Layers(first, end, NUM, carry), sample=sample))
        results.append(runner.execute(StepPlan(len(results), "mixed", (*DECODES, *parts))))
        first = end
    return results


@pytest.mark.parametrize("ends", GROUPS, ids=str)
def test_steps_by_layers_have_the_bits_of_one_step(model: CausalLM, ends: list[int]) -> None:
    whole, parts = runner_of(model), runner_of(model)
    expected = whole.execute(StepPlan(0, "prefill", CHUNKS))
    *others, last = by_layers(parts, ends)
    for result in others:
        assert set(result.tokens) == {"d"}
        assert set(result.carried) == {"a", "b"}
    assert last.carried == {}
    assert {name: last.tokens[name] for name in "ab"} == dict(expected.tokens)
    written = [block for chunk in CHUNKS for block in chunk.block_ids]
    for layer, other in zip(whole._kv.layers, parts._kv.layers, strict=True):
        assert all(torch.equal(a[written], b[written]) for a, b in zip(layer, other, strict=True))
        assert all(tensor[written].any() for tensor in layer)
    whole.close()
    parts.close()


def test_who_is_left_of_a_chunk_goes_on_alone(model: CausalLM) -> None:
    """The other one was aborted between two steps."""
    runner = runner_of(model)
    first, *_ = by_layers(runner, [2])
    alone = CHUNKS[1]._replace(layers=Layers(2, 3, NUM, first.carried["b"]))
    found = runner.execute(StepPlan(1, "mixed", (alone,))).tokens["b"]
    assert found.token_id == runner.execute(StepPlan(2, "mixed", CHUNKS[1:])).tokens["b"].token_id
    runner.close()


def test_a_step_that_fails_runs_its_layers_again(model: CausalLM) -> None:
    faults = Faults([Fault(point="forward", phase="prefill", first=2)])
    whole, struck = runner_of(model), runner_of(model, faults)
    expected = whole.execute(StepPlan(0, "prefill", CHUNKS))
    last = by_layers(struck, [1, 2, 3])[-1]
    assert not faults.unstruck
    assert not last.errors
    assert [last.tokens[name].token_id for name in "ab"] == [expected.tokens[name].token_id for name in "ab"]
    whole.close()
    struck.close()


def test_states_that_are_not_finite_end_the_request_at_once(model: CausalLM) -> None:
    """Not after the last layer only: who is aborted before would leave them to the next owner of the blocks."""
    runner = runner_of(model)
    first, *_ = by_layers(runner, [1])
    carry: Any = first.carried["a"]
    with torch.inference_mode():
        carry[0][3, 5] = torch.nan
    parts = [
        each._replace(layers=Layers(1, 2, NUM, first.carried[each.request_id]), sample=None)
        for each in CHUNKS
    ]
    result = runner.execute(StepPlan(1, "mixed", (*DECODES, *parts)))
    assert set(result.errors) == {"a"}
    for layer in runner._kv.layers:
        assert all(torch.isfinite(tensor).all() for tensor in layer)
    last = CHUNKS[1]._replace(layers=Layers(2, 3, NUM, result.carried["b"]))
    assert runner.execute(StepPlan(2, "mixed", (last,))).errors == {}
    runner.close()
