from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.core.errors import CapacityError, InvalidParameterError
from braid.core.experts import ExpertShape
from braid.core.spec import MachineSpec, ModelSpec
from braid.core.units import parse_amount
from braid.policy.experts.budget import ExpertDemand
from braid.policy.fit import GIB, MIB, MemoryPlan, fit


def model(parameters: int, max_model_len: int, kv_numbers: int, hidden: int = 1024) -> ModelSpec:
    return ModelSpec(
        name="a model",
        architecture="LlamaForCausalLM",
        num_layers=8,
        hidden_size=hidden,
        vocab_size=50_000,
        max_model_len=max_model_len,
        num_parameters=parameters,
        active_parameters=parameters,
        kv_numbers_per_token=kv_numbers,
    )


def machine(ram: int, gpu: int = 0) -> MachineSpec:
    return MachineSpec(
        cpu_name="a CPU",
        cores=2,
        isa="avx2",
        ram_bytes=ram * 2,
        ram_available_bytes=ram,
        gpu_name="a GPU" if gpu else None,
        gpu_bytes=gpu,
        gpu_free_bytes=gpu,
    )


SMOLLM2 = model(134_515_008, 8192, 2 * 30 * 3 * 64, hidden=576)
LLAMA_8B = model(8_030_000_000, 131_072, 2 * 32 * 8 * 128, hidden=4096)


def plan(spec: ModelSpec, ram: int, gpu: int = 0, **options: object) -> MemoryPlan:
    return fit(spec, machine(ram, gpu), **({"dtype": "bfloat16", "kv_dtype": "bfloat16"} | options))


def test_defaults_on_a_small_machine_are_modest() -> None:
    got = plan(SMOLLM2, 24 * GIB)
    assert got.kv_bytes <= 6 * GIB
    assert (got.max_model_len, got.max_num_seqs, got.max_num_batched_tokens) == (8192, 64, 512)
    assert got.kv_bytes_per_token == 23_040
    assert got.notes == ()


def test_no_more_kv_than_all_requests_could_use() -> None:
    got = plan(SMOLLM2, 240 * GIB, max_model_len=100, max_num_seqs=2)
    assert got.num_tokens == 208, "two contexts of 100 tokens, the last block rounded up"


def test_a_gpu_is_filled() -> None:
    got = plan(LLAMA_8B, 100 * GIB, gpu=80 * GIB)
    assert got.device == "GPU"
    assert got.spare_bytes < 16 * got.kv_bytes_per_token
    assert (got.max_num_seqs, got.max_num_batched_tokens) == (256, 2048)


def test_a_context_nobody_asked_for_shrinks_and_says_so() -> None:
    got = plan(LLAMA_8B, 24 * GIB)
    assert got.max_model_len == got.num_tokens < 131_072
    assert "context shrunk from 131072" in got.notes[0]
    assert got.notes[0] in got.lines()


def test_a_context_asked_for_gets_its_memory_or_a_refusal() -> None:
    assert plan(LLAMA_8B, 24 * GIB, max_model_len=40_000).max_model_len == 40_000
    with pytest.raises(
        CapacityError, match=r"131072 tokens needs 16.00 GiB of KV, but only .* fit: 14.96 GiB"
    ):
        plan(LLAMA_8B, 24 * GIB, max_model_len=131_072)


def test_weights_that_do_not_fit_are_refused_with_the_numbers() -> None:
    with pytest.raises(CapacityError, match=r"14.96 GiB weights.* 7.20 GiB may be used of 8.00 GiB"):
        plan(LLAMA_8B, 8 * GIB)


def test_loading_may_need_more_than_serving() -> None:
    plan(SMOLLM2, 2 * GIB, load_copy_bytes=512 * MIB)
    with pytest.raises(CapacityError, match=r"1\.17 GiB to load them"):
        plan(SMOLLM2, 2 * GIB, load_copy_bytes=1200 * MIB)


def test_the_size_of_the_kv_store_may_be_given() -> None:
    got = plan(SMOLLM2, 24 * GIB, kv_cache_bytes=512 * MIB)
    assert 512 * MIB - 16 * 23_040 < got.kv_bytes <= 512 * MIB
    with pytest.raises(CapacityError, match=r"KV store of 30.00 GiB does not fit"):
        plan(SMOLLM2, 24 * GIB, kv_cache_bytes=30 * GIB)
    with pytest.raises(CapacityError, match="one request of 256 tokens"):
        plan(SMOLLM2, 24 * GIB, kv_cache_bytes=1)


@pytest.mark.parametrize(
    ("options", "seqs", "batched"),
    [
        ({"max_num_seqs": 1000}, 1000, 1000),
        ({"max_num_batched_tokens": 32}, 32, 32),
        ({"max_num_seqs": 8, "max_num_batched_tokens": 64}, 8, 64),
    ],
)
def test_batch_limits_follow_what_was_asked(options: dict[str, int], seqs: int, batched: int) -> None:
    got = plan(SMOLLM2, 24 * GIB, **options)
    assert (got.max_num_seqs, got.max_num_batched_tokens) == (seqs, batched)


@pytest.mark.parametrize(
    ("param", "value"),
    [
        ("dtype", "int3"),
        ("kv_dtype", "int3"),
        ("block_size", 0),
        ("memory_fraction", 0.0),
        ("memory_fraction", 1.5),
        ("kv_cache_bytes", 0),
        ("max_model_len", 8193),
        ("max_model_len", 1),
        ("max_num_seqs", 0),
        ("max_num_batched_tokens", 0),
    ],
)
def test_wrong_numbers_are_named(param: str, value: object) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        plan(SMOLLM2, 24 * GIB, **{param: value})
    assert repr(value) in str(caught.value) or param == "max_num_batched_tokens"


A3B = replace(model(30_532_122_624, 40_960, 2 * 48 * 4 * 128, hidden=2048), active_parameters=3_353_032_704)
INT4 = ExpertDemand(
    shape=ExpertShape(layers=48, per_layer=128, top_k=8),
    parameters=6144 * 4_718_592,
    slot_bytes=2_433_024,
    num_staging=16,
    asked=parse_amount("auto", "expert_memory"),
)


def test_a_model_of_experts_that_does_not_fit_hears_of_the_option() -> None:
    with pytest.raises(CapacityError, match="--expert-memory"):
        plan(A3B, 16 * GIB)
    with pytest.raises(CapacityError, match="Use a smaller model or dtype"):
        plan(LLAMA_8B, 8 * GIB)


def test_experts_take_what_was_asked_and_the_rest_is_for_kv() -> None:
    got = plan(A3B, 16 * GIB, experts=replace(INT4, asked=parse_amount("25%", "expert_memory")))
    assert got.num_expert_slots == 1536
    assert got.expert_bytes == (1536 + 16) * 2_433_024
    assert got.weight_bytes == 2 * (A3B.num_parameters - INT4.parameters)
    assert got.kv_bytes >= 3.9 * GIB
    assert got.spare_bytes >= 0
    assert any(line.startswith("experts") and "1536 slots" in line for line in got.lines())


def test_unasked_experts_take_what_kv_leaves() -> None:
    got = plan(A3B, 16 * GIB, experts=INT4)
    assert got.kv_bytes >= 3.9 * GIB, "its quarter"
    assert 384 < got.num_expert_slots < 6144
    assert 0 <= got.spare_bytes < 2_433_024
    assert plan(A3B, 64 * GIB, experts=INT4).num_expert_slots == 6144


def test_kv_leaves_a_cycle_of_experts() -> None:
    got = plan(A3B, 6 * GIB, experts=INT4)
    assert got.num_expert_slots >= 384
    with pytest.raises(CapacityError, match=r"928.1 MiB experts.*expert_memory"):
        plan(A3B, 4 * GIB, experts=INT4)


def test_experts_that_do_not_fit_are_refused_with_the_numbers() -> None:
    with pytest.raises(CapacityError, match=r"13\.96 GiB experts.*smaller model, dtype or expert_memory"):
        plan(A3B, 16 * GIB, experts=replace(INT4, asked=parse_amount("100%", "expert_memory")))


def plan_or_refusal(*args: Any, **options: Any) -> MemoryPlan | str:
    try:
        return plan(*args, **options)
    except CapacityError as refusal:
        return str(refusal)


models = st.builds(
    model, st.integers(10**6, 10**11), st.integers(2, 10**6), st.integers(64, 10**6), st.integers(64, 8192)
)
maybe_len = st.none() | st.integers(2, 10**5)


@given(
    spec=models,
    ram=st.integers(0, 512 * GIB),
    gpu=st.sampled_from([0, 0, 8 * GIB, 80 * GIB]),
    max_model_len=maybe_len,
    kv_cache_bytes=st.none() | st.integers(1, 256 * GIB),
    block_size=st.sampled_from([1, 16, 32]),
)
def test_a_plan_adds_up_or_is_refused_with_numbers(
    spec, ram, gpu, max_model_len, kv_cache_bytes, block_size
) -> None:
    options = {"max_model_len": max_model_len, "kv_cache_bytes": kv_cache_bytes, "block_size": block_size}
    if max_model_len is not None and max_model_len > spec.max_model_len:
        with pytest.raises(InvalidParameterError, match=str(spec.max_model_len)):
            plan(spec, ram, gpu, **options)
        return
    got = plan_or_refusal(spec, ram, gpu, **options)
    if isinstance(got, str):
        assert re.search(r"\d [MG]iB", got)
        return
    assert got.spare_bytes >= 0
    assert got.budget_bytes <= got.available_bytes == (gpu or ram)
    assert got.kv_bytes == got.num_tokens * got.kv_bytes_per_token
    assert got.num_tokens >= got.max_model_len >= 2
    assert max_model_len in (None, got.max_model_len)
    assert (got.max_model_len < (max_model_len or spec.max_model_len)) == bool(got.notes)
    assert all(line.strip() for line in got.lines())


def test_what_tokens_get_of_each_expert_has_room() -> None:
    """In float32, until it is added up."""
    shape = ExpertShape(layers=8, per_layer=16, top_k=2)
    asked = parse_amount("25%", "expert_memory")
    demand = ExpertDemand(shape=shape, parameters=1 << 30, slot_bytes=1 << 20, num_staging=4, asked=asked)
    spec = model(2 << 30, 8192, 4096)
    before = plan(spec, 24 * GIB, experts=demand)
    after = plan(spec, 24 * GIB, experts=replace(demand, pair_bytes=2 * 2 * 1024 * 4))
    assert after.activation_bytes - before.activation_bytes == 512 * 2 * 2 * 1024 * 4
