"""The same code on an NVIDIA GPU; `pytest -m gpu` runs these where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from braid import LLM, SamplingParams
from braid.core.config import EngineConfig
from braid.core.errors import InvalidParameterError
from braid.engine.build import make_policies
from braid.policy.phases.auto import Auto
from braid.policy.phases.curves import CORES, SMS
from braid.runner.graphs import DecodeGraphs
from braid.runner.partition_gpu import CudaCore, GreenPartition
from braid.sched.config import DECODE, PREFILL

from .conftest import assert_nothing_left, small_llm

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
WHERE = r"""
extern "C" __global__ void where(int* found, int cycles) {
    unsigned int sm;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(sm));
    long long begin = clock64();
    while (clock64() - begin < cycles) {}
    if (threadIdx.x == 0) found[blockIdx.x] = (int)sm;
}
"""
"""Blocks last long enough that each multiprocessor of a group gets some."""
IDS = [[1, 2, 3], [4, 5, 6, 7, 8], [9] * 20, [10, 11]]
PROMPTS = ["Hello", "The quick brown fox jumps", "a" * 70, "x", "a" * 70 + "b"]


@pytest.mark.gpu
@gpu
def test_tokens_are_those_of_the_cpu(tiny_llama: Path) -> None:
    with small_llm(tiny_llama) as cpu, small_llm(tiny_llama, device="cuda") as cuda:
        expected = cpu.generate(PROMPTS, GREEDY)
        outputs = cuda.generate(PROMPTS, GREEDY)
        assert [output.token_ids for output in outputs] == [output.token_ids for output in expected]
        assert_nothing_left(cuda)


@pytest.mark.gpu
@gpu
def test_sampling_and_logprobs_run_on_the_device(tiny_llama: Path) -> None:
    params = SamplingParams(
        temperature=0.8, top_p=0.9, top_k=50, min_p=0.01, seed=3, max_tokens=12, ignore_eos=True, logprobs=2,
        repetition_penalty=1.1, presence_penalty=0.2, logit_bias={5: 1.0}, min_tokens=4,
    )  # fmt: skip
    with small_llm(tiny_llama, device="cuda", dtype="bfloat16") as cuda:
        first, again = cuda.generate("Hello", params)[0], cuda.generate("Hello", params)[0]
        assert first.token_ids == again.token_ids
        assert first.logprobs is not None
        assert len(first.logprobs) == len(first.token_ids)


@pytest.mark.gpu
@gpu
def test_the_default_model_answers_on_the_gpu() -> None:
    with LLM(device="cuda", max_model_len=1024) as llm:
        question = [{"role": "user", "content": "What is the capital of France?"}]
        assert "Paris" in llm.chat(question, SamplingParams(temperature=0, max_tokens=30)).text


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("dispatch", ["auto", "fetch"])
def test_experts_on_both_sides_give_the_tokens_of_all_in_memory(
    tiny_moe: Path, dispatch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 the sides differ in the last bits, which is less than between the first choice and the second."""
    monkeypatch.setenv("BRAID_CACHE", str(tmp_path))
    with small_llm(tiny_moe, device="cuda") as whole:
        expected = [output.token_ids for output in whole.generate(IDS, GREEDY)]
    options = {"expert_memory": "25%", "expert_host_memory": "75%", "expert_dispatch": dispatch}
    with small_llm(tiny_moe, device="cuda", **options) as llm:
        for _ in range(4):
            assert [output.token_ids for output in llm.generate(IDS, GREEDY)] == expected
        stats = llm.stats().experts
        assert stats is not None
        assert stats.computed["device"] > 0
        assert (stats.computed["host"] > 0) == (dispatch == "auto")
        assert_nothing_left(llm)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_asked_for_and_not_there_is_an_error(tiny_llama: Path) -> None:
    with pytest.raises(InvalidParameterError, match="no NVIDIA GPU"):
        small_llm(tiny_llama, device="cuda")


def test_what_a_part_of_a_device_costs_follows_from_its_kind() -> None:
    for device, curves in (("cuda", SMS), ("cpu", CORES)):
        config = EngineConfig(model="any", phases="auto")
        phases = make_policies(config, has_lower=False, device=torch.device(device)).phases
        assert isinstance(phases, Auto)
        assert phases._latency._curves is curves


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("partition", ["green", "priority"])
def test_tokens_are_the_same_in_two_lanes(tiny_llama: Path, partition: str) -> None:
    with small_llm(tiny_llama, device="cuda") as mixed:
        expected = [output.token_ids for output in mixed.generate(PROMPTS, GREEDY)]
    with small_llm(tiny_llama, device="cuda", phases="static:50/50", partition=partition) as lanes:
        for _ in range(3):
            assert [output.token_ids for output in lanes.generate(PROMPTS, GREEDY)] == expected
        assert_nothing_left(lanes)
        stats = lanes.stats()
        assert stats.lanes["prefill"].steps > 0
        assert stats.lanes["decode"].steps > 0
        replay = lanes._core.runner._replay
        assert isinstance(replay, DecodeGraphs)
        assert any(fixed.captured is not None for fixed in replay._known.values())


@pytest.mark.gpu
@gpu
def test_green_lanes_that_share_no_unit_share_no_multiprocessor() -> None:
    """Kernels write down where they ran; what the driver reports is not enough."""
    device = torch.device("cuda", 0)
    partition = GreenPartition(device, CudaCore(device))
    where = torch.cuda._compile_kernel(WHERE, "where")

    def visited(lane: str, units: int) -> set[int]:
        found = torch.full((4096,), -1, dtype=torch.int32, device=device)
        seat = partition.seat(lane)
        seat.begin()
        with seat.step(units):
            where(grid=(4096, 1, 1), block=(256, 1, 1), args=[found, 20_000])
        return set(found.tolist())

    for units in range(1, partition.num_units):
        prefill = visited(PREFILL, units)
        decode = visited(DECODE, partition.num_units - units)
        assert len(prefill) == partition.num_sms(PREFILL, units)
        assert len(decode) == partition.num_sms(DECODE, partition.num_units - units)
        assert not prefill & decode
