"""Log-probabilities of prompt tokens: those of transformers, whatever the chunks, the company and the cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from braid import LLM, SamplingParams
from braid.core.errors import InvalidParameterError
from braid.core.request import FinishReason, TokenLogprobs
from braid.engine.local import LocalClient
from braid.engine.protocol import GenerateRequest

from .conftest import assert_nothing_left, small_llm

SCORE = SamplingParams(temperature=0, max_tokens=0, prompt_logprobs=3)
PROMPT = [(7 * index) % 250 for index in range(70)]
TIGHT = 40 * 4 * 2 * 2 * 64 * 4


@pytest.fixture(scope="module")
def reference(tiny_llama: Path) -> torch.Tensor:
    """Log-probabilities [T - 1, V] of what follows each token of the prompt but the last."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([PROMPT])).logits[0, :-1]
    return torch.log_softmax(logits, dim=-1)


def check(found: tuple[TokenLogprobs | None, ...] | None, reference: torch.Tensor) -> None:
    assert found is not None
    assert len(found) == len(PROMPT)
    assert found[0] is None
    for row, (token, entry) in enumerate(zip(PROMPT[1:], found[1:], strict=True)):
        assert entry is not None
        assert entry.token_id == token
        assert entry.logprob == pytest.approx(float(reference[row, token]), abs=1e-4)
        assert entry.rank == int((reference[row] > reference[row, token]).sum()) + 1
        best = torch.topk(reference[row], 3)
        assert [token for token, _ in entry.top] == best.indices.tolist()
        assert [value for _, value in entry.top] == pytest.approx(best.values.tolist(), abs=1e-4)


@pytest.fixture(scope="module")
def small_chunks(tiny_llama: Path) -> Iterator[LLM]:
    with small_llm(tiny_llama, max_num_batched_tokens=8) as engine:
        yield engine
        assert_nothing_left(engine)


def test_a_prompt_is_weighed_as_transformers_does(llm: LLM, reference: torch.Tensor) -> None:
    output = llm.generate([PROMPT], SCORE)[0]
    check(output.prompt_logprobs, reference)
    assert (output.token_ids, output.text, output.finish_reason) == ((), "", "length")


def test_chunks_and_company_change_nothing(small_chunks: LLM, reference: torch.Tensor) -> None:
    others = [SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)] * 3
    outputs = small_chunks.generate([[5] * 30, PROMPT, [9] * 3, PROMPT], [others[0], SCORE, others[1], SCORE])
    check(outputs[1].prompt_logprobs, reference)
    check(outputs[3].prompt_logprobs, reference)
    assert outputs[0].prompt_logprobs is None


def test_cached_blocks_are_computed_again_for_scores_and_stay_of_use(
    llm: LLM, reference: torch.Tensor
) -> None:
    plain = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    expected = llm.generate([PROMPT], plain)[0].token_ids
    scored = llm.generate([PROMPT], SamplingParams(temperature=0, max_tokens=4, prompt_logprobs=3))[0]
    check(scored.prompt_logprobs, reference)
    assert scored.num_cached_tokens == 0
    assert scored.token_ids == expected
    assert llm.generate([PROMPT], plain)[0].num_cached_tokens == 68


def test_scores_survive_preemption(tiny_llama: Path, reference: torch.Tensor) -> None:
    grow = SamplingParams(temperature=0, max_tokens=45, ignore_eos=True)
    score = SamplingParams(temperature=0, max_tokens=45, ignore_eos=True, prompt_logprobs=3)
    with small_llm(tiny_llama, kv_cache_memory=TIGHT, max_model_len=120, max_num_batched_tokens=8) as engine:
        outputs = engine.generate([[3] * 20, [4] * 20, PROMPT], [grow, grow, score])
        assert engine.stats().num_preemptions > 0
        check(outputs[2].prompt_logprobs, reference)
        assert_nothing_left(engine)


def test_a_prompt_as_long_as_the_context_can_be_weighed(llm: LLM) -> None:
    longest = [1] * llm.info.max_model_len
    found = llm.generate([longest], SCORE)[0].prompt_logprobs
    assert found is not None
    assert len(found) == len(longest)
    with pytest.raises(InvalidParameterError, match="at least 1 is for the output"):
        llm.generate([longest], SamplingParams(max_tokens=1, prompt_logprobs=0))


def test_one_token_has_nothing_to_weigh(llm: LLM) -> None:
    assert llm.generate([[5]], SCORE)[0].prompt_logprobs == (None,)


async def test_scores_come_with_the_first_delta(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=3, prompt_logprobs=0, ignore_eos=True)
    client = LocalClient(llm._core)
    deltas = [delta async for delta in client.generate(GenerateRequest("a", tuple(PROMPT), params))]
    assert [delta.prompt_logprobs is not None for delta in deltas] == [True, False, False]
    assert all(entry is None or entry.top == () for entry in deltas[0].prompt_logprobs or ())
    assert [delta.times is not None for delta in deltas] == [False, False, True]
    only = [delta async for delta in client.generate(GenerateRequest("b", tuple(PROMPT), SCORE))]
    assert len(only) == 1
    assert only[0].finish_reason is FinishReason.LENGTH
    assert only[0].token_ids == ()
    assert only[0].prompt_logprobs is not None


def test_nothing_generated_needs_something_weighed() -> None:
    with pytest.raises(InvalidParameterError, match=r"max_tokens must be an integer >= 1"):
        SamplingParams(max_tokens=0)
