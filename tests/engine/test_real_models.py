"""Real weights: the default model and Gemma 3, greedy, against transformers on the same dequantised weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from braid import LLM, SamplingParams
from braid.checkpoint.aliases import ALIASES, is_installed
from braid.checkpoint.open import open_checkpoint
from braid.checkpoint.resolve import resolve
from braid.checkpoint.weights import iter_weights

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time, in a small village by the sea, there lived an old fisherman who",
    "1, 2, 3, 4, 5, 6,",
]
COUNT = 24


def transformers_model(name: str) -> Any:
    """The architecture transformers has for this checkpoint, with the weights as Braid dequantised them."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    checkpoint = open_checkpoint(resolve(name))
    fields = {key: value for key, value in checkpoint.config.items() if key not in ("model_type", "dtype")}
    config = AutoConfig.for_model(checkpoint.config["model_type"], **fields)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    missing, unexpected = model.load_state_dict(dict(iter_weights(checkpoint, torch.float32)), strict=False)
    assert not unexpected
    assert all("lm_head" in key for key in missing)
    model.tie_weights()
    return model.eval()


def transformers_tokens(model: Any, prompt_ids: list[int], output_ids: list[int]) -> list[int]:
    """What transformers says next after the prompt and after every token of an output.

    These are the output itself exactly if transformers, deciding alone, would have said the same.
    """
    with torch.no_grad():
        logits = model(torch.tensor([prompt_ids + output_ids[:-1]]), logits_to_keep=len(output_ids)).logits
    tokens: list[int] = logits[0].argmax(-1).tolist()
    return tokens


def check_against_transformers(name: str) -> None:
    with LLM(name, "float32", max_model_len=512, max_num_seqs=4) as llm:
        params = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)
        outputs = llm.generate(PROMPTS, params)
    model = transformers_model(name)
    for output in outputs:
        said = list(output.token_ids)
        assert len(said) == COUNT
        assert said == transformers_tokens(model, list(output.prompt_token_ids), said)


def test_smollm2_speaks_as_in_transformers() -> None:
    check_against_transformers("smollm2")


@pytest.mark.skipif(not is_installed(ALIASES["gemma3-270m"]), reason="the Gemma 3 package is not installed")
def test_gemma3_speaks_as_in_transformers() -> None:
    check_against_transformers("gemma3-270m")


@pytest.fixture(scope="module")
def default_model() -> Iterator[LLM]:
    with LLM(max_model_len=1024, max_num_seqs=8) as llm:
        yield llm


def test_the_default_model_answers(default_model: LLM) -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    output = default_model.chat(question, SamplingParams(temperature=0, max_tokens=30))
    assert output.text == "The capital of France is Paris."
    assert output.finish_reason == "stop"


def test_bfloat16_tokens_do_not_depend_on_company(default_model: LLM) -> None:
    """Native kernels give each row the same bits in any batch, so that even bfloat16 is invariant."""
    if not default_model.info.kernels.startswith("native"):
        pytest.skip("torch's bfloat16 products depend on the batch")
    params = SamplingParams(temperature=0, max_tokens=COUNT, ignore_eos=True)
    together = default_model.generate(PROMPTS, params)
    alone = [default_model.generate(prompt, params)[0] for prompt in PROMPTS]
    assert [output.token_ids for output in together] == [output.token_ids for output in alone]
