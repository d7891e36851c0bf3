from __future__ import annotations

import pytest

from braid.core.errors import CapacityError, InvalidParameterError
from braid.core.step import Work
from braid.sim.gpus import GPUS, gpu_named
from braid.sim.roofline import Roofline
from braid.sim.sizes import MODELS, model_named

# Parameters as their authors state them, in billions.
STATED = {
    "llama-3.1-8b": 8.03,
    "llama-3.1-70b": 70.6,
    "qwen3-30b-a3b": 30.5,
    "qwen2.5-7b": 7.62,
    "mixtral-8x7b": 46.7,
    "smollm2-135m": 0.135,
    "qwen2-57b-a14b": 57.4,
    "deepseek-v2-lite": 15.7,
}


def work(tokens: int, start: int) -> Work:
    return Work("r", range(tokens), start, (), None)


@pytest.mark.parametrize("name", list(MODELS))
def test_the_sizes_add_up_to_what_authors_state(name: str) -> None:
    assert MODELS[name].num_weights / 1e9 == pytest.approx(STATED[name], rel=0.005)


def test_kv_bytes_by_hand() -> None:
    assert model_named("llama-3.1-8b").kv_bytes_per_token == 2 * 32 * 8 * 128 * 2
    assert model_named("smollm2").kv_bytes_per_token == 23_040


def test_a_lone_decode_reads_the_weights_once() -> None:
    cost = Roofline(gpu_named("a100-80g"), model_named("llama-3.1-8b"))
    weights = cost.model.touched_weights(1) * 2
    context = 2000 * cost.model.kv_bytes_per_token
    expected = 0.002 + (weights + context) / (2.039e12 * 0.8)
    assert cost.step([work(1, 1999)]).seconds == pytest.approx(expected)


def test_a_long_prompt_is_bound_by_arithmetic() -> None:
    cost = Roofline(gpu_named("a100-80g"), model_named("llama-3.1-8b"))
    dense = 2 * cost.model.used_weights * 2048 / (312e12 * 0.55)
    pairs = 2048 * 2049 / 2
    attention = 4 * 32 * 32 * 128 * pairs / (312e12 * 0.4)
    assert cost.step([work(2048, 0)]).seconds == pytest.approx(0.002 + dense + attention)


def test_more_work_takes_longer_everywhere() -> None:
    for gpu in GPUS.values():
        cost = Roofline(gpu, model_named("qwen3-30b-a3b"), "int4")
        times = [cost.step([work(1, 500)] * count).seconds for count in (1, 2, 8, 64)]
        times += [cost.step([work(512, start)]).seconds for start in (20_000, 200_000)]
        assert times == sorted(times)
        assert times[0] > 0.002


def test_few_tokens_touch_few_experts() -> None:
    model = model_named("qwen3-30b-a3b")
    assert model.touched_weights(1) == pytest.approx(model.used_weights)
    assert model.touched_weights(10_000) == pytest.approx(model.attention_weights + 128 * model.mlp_weights)


def test_kv_is_what_the_weights_leave() -> None:
    assert 400_000 < Roofline(gpu_named("a100-80g"), model_named("llama-3.1-8b")).kv_tokens < 500_000
    with pytest.raises(CapacityError, match=r"131\.4 GiB in bfloat16, but a100-80g has 70\.0 GiB"):
        _ = Roofline(gpu_named("a100-80g"), model_named("llama-3.1-70b")).kv_tokens
    assert Roofline(gpu_named("a100-80g"), model_named("llama-3.1-70b"), "int4").kv_tokens > 100_000


def test_wrong_names_are_told_with_the_choices() -> None:
    with pytest.raises(InvalidParameterError, match=r"'a101'.*a100-80g, h100"):
        gpu_named("a101")
    with pytest.raises(InvalidParameterError, match=r"'llama'.*llama-3.1-8b"):
        model_named("llama")
    with pytest.raises(InvalidParameterError, match="bfloat16, int8, int4, got 'fp8'"):
        Roofline(gpu_named("h100"), model_named("llama-3.1-8b"), "fp8")
