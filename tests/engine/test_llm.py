"""The Python API on a tiny real checkpoint, against transformers and against its own promises."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch

import braid
from braid import LLM, AsyncLLM, SamplingParams
from braid.core.errors import BraidError, InvalidParameterError, ModelNotFoundError

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
PROMPTS = ["Hello", "The quick brown fox jumps", "a" * 70, "x"]


def reference(folder: Path, prompt_ids: list[int], count: int) -> list[int]:
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        ids = torch.tensor([prompt_ids])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            min_new_tokens=count,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
    return out[0, len(prompt_ids) :].tolist()


def test_greedy_tokens_are_those_of_transformers(llm: LLM, tiny_llama: Path) -> None:
    outputs = llm.generate(PROMPTS, GREEDY)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        assert list(output.prompt_token_ids) == llm.tokenizer.encode(prompt)
        assert list(output.token_ids) == reference(tiny_llama, list(output.prompt_token_ids), 24)
        assert output.finish_reason == "length"
        assert output.text == llm.tokenizer.decode(list(output.token_ids))


def test_token_ids_and_text_prompts_agree(llm: LLM) -> None:
    by_text = llm.generate("Hello", GREEDY)[0]
    by_ids = llm.generate([llm.tokenizer.encode("Hello")], GREEDY)[0]
    flat = llm.generate(llm.tokenizer.encode("Hello"), GREEDY)[0]
    assert by_text.token_ids == by_ids.token_ids == flat.token_ids


def test_a_repeated_prompt_is_a_cache_hit_and_the_same_answer(llm: LLM) -> None:
    first = llm.generate("b" * 41, GREEDY)[0]
    second = llm.generate("b" * 41, GREEDY)[0]
    assert first.num_cached_tokens == 0
    assert second.num_cached_tokens == 40
    assert first.token_ids == second.token_ids


def test_seeds_make_sampling_reproducible_in_any_company(llm: LLM) -> None:
    params = SamplingParams(temperature=1.5, seed=11, max_tokens=16, ignore_eos=True)
    alone = llm.generate("Hello", params)[0].token_ids
    crowd = llm.generate(["one", "Hello", "two", "three"], params)
    assert crowd[1].token_ids == alone
    other = llm.generate("Hello", SamplingParams(temperature=1.5, seed=12, max_tokens=16, ignore_eos=True))[0]
    assert other.token_ids != alone


def test_n_outputs_are_independent_children(llm: LLM) -> None:
    params = SamplingParams(n=3, temperature=1.5, seed=5, max_tokens=12, ignore_eos=True)
    output = llm.generate("Hello", params)[0]
    assert [child.index for child in output.outputs] == [0, 1, 2]
    assert len({child.token_ids for child in output.outputs}) == 3
    second = llm.generate("Hello", SamplingParams(temperature=1.5, seed=6, max_tokens=12, ignore_eos=True))[0]
    assert output.outputs[1].token_ids == second.token_ids


def test_a_stop_string_ends_the_output_before_it(llm: LLM) -> None:
    free = llm.generate("Hello", SamplingParams(temperature=1.5, seed=3, max_tokens=60, ignore_eos=True))[0]
    assert len(free.text) > 12
    stop = free.text[9:11]
    params = SamplingParams(temperature=1.5, seed=3, max_tokens=60, ignore_eos=True, stop=(stop,))
    output = llm.generate("Hello", params)[0]
    assert output.finish_reason == "stop"
    assert output.outputs[0].stop_reason == stop
    assert output.text == free.text[: free.text.index(stop)]


def test_stop_token_ids_and_min_tokens(llm: LLM) -> None:
    free = llm.generate("Hello", GREEDY)[0].token_ids
    stop = free[5]
    at = free.index(stop)
    output = llm.generate(
        "Hello", SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, stop_token_ids=(stop,))
    )
    assert output[0].token_ids == free[: at + 1]
    assert output[0].outputs[0].stop_reason == stop
    params = SamplingParams(
        temperature=0, max_tokens=24, ignore_eos=True, stop_token_ids=(stop,), min_tokens=at + 3
    )
    assert len(llm.generate("Hello", params)[0].token_ids) >= at + 3


def test_logprobs_come_one_per_token(llm: LLM) -> None:
    output = llm.generate("Hello", SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, logprobs=2))[
        0
    ]
    assert output.logprobs is not None
    assert [entry.token_id for entry in output.logprobs] == list(output.token_ids)
    for entry in output.logprobs:
        assert entry.rank == 1
        assert entry.top[0] == (entry.token_id, entry.logprob)
        assert entry.logprob <= 0


def test_chat_renders_the_template(llm: LLM) -> None:
    output = llm.chat([{"role": "user", "content": "hi"}], SamplingParams(temperature=0, max_tokens=3))
    rendered = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert list(output.prompt_token_ids) == llm.tokenizer.encode(rendered, add_special_tokens=False)


@pytest.mark.parametrize(
    ("prompt", "params", "words"),
    [
        ("", SamplingParams(), "at least one token"),
        ("a" * 300, SamplingParams(), "256"),
        ([1, 2, 5000], SamplingParams(), "5000"),
        ([1, -1], SamplingParams(), "-1"),
        ("a", SamplingParams(stop_token_ids=(999,)), "999"),
        ("a", SamplingParams(logit_bias={999: 1.0}), "999"),
    ],
)
def test_bad_prompts_are_refused_with_the_numbers(
    llm: LLM, prompt: str | list[int], params: SamplingParams, words: str
) -> None:
    with pytest.raises(InvalidParameterError, match=words):
        llm.generate([prompt], params)
    assert len(llm.generate("fine", GREEDY)[0].token_ids) == 24


def test_one_bad_prompt_among_good_ones_leaves_nothing_behind(llm: LLM) -> None:
    with pytest.raises(InvalidParameterError):
        llm.generate(["good", "b" * 300, "also good"], GREEDY)


def test_a_closed_engine_says_so(tiny_llama: Path) -> None:
    from .conftest import small_llm

    engine = small_llm(tiny_llama)
    engine.close()
    with pytest.raises(BraidError, match="not running"):
        engine.generate("a")


def test_an_unknown_model_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no-such-model"):
        LLM(str(tmp_path / "no-such-model"))


async def test_the_async_twin_streams_the_same_tokens(tiny_llama: Path, llm: LLM) -> None:
    expected = llm.generate("Hello", GREEDY)[0]
    from .conftest import SMALL

    engine = AsyncLLM(str(tiny_llama), **SMALL)  # type: ignore[arg-type]
    try:
        pieces = [piece async for piece in engine.stream("Hello", GREEDY)]
        assert "".join(piece.text for piece in pieces) == expected.text
        assert sum((piece.token_ids for piece in pieces), ()) == expected.token_ids
        assert pieces[-1].finish_reason == "length"
        stream = engine.stream("Hello", GREEDY)
        await anext(stream)
        await stream.aclose()
        while (stats := await engine.stats()).num_free_blocks < stats.num_blocks:
            pass
        assert stats.num_free_blocks == stats.num_blocks
    finally:
        engine.close()


def test_the_public_api_is_pinned() -> None:
    assert braid.__all__ == ["LLM", "AsyncLLM", "SamplingParams", "__version__"]
    assert list(inspect.signature(LLM).parameters) == ["model", "dtype", "device", "progress", "options"]
    assert list(inspect.signature(LLM.generate).parameters) == ["self", "prompts", "params"]
    assert list(inspect.signature(LLM.chat).parameters) == ["self", "messages", "params", "template"]
    assert list(inspect.signature(AsyncLLM.stream).parameters) == ["self", "prompt", "params"]
    assert list(inspect.signature(LLM.embed).parameters) == ["self", "prompts"]
    assert sorted(inspect.signature(SamplingParams).parameters) == [
        "constraint",
        "frequency_penalty",
        "ignore_eos",
        "include_stop_str_in_output",
        "logit_bias",
        "logprobs",
        "max_tokens",
        "min_p",
        "min_tokens",
        "n",
        "presence_penalty",
        "prompt_logprobs",
        "repetition_penalty",
        "seed",
        "skip_special_tokens",
        "stop",
        "stop_token_ids",
        "temperature",
        "top_k",
        "top_p",
    ]
