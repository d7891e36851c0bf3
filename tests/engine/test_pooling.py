"""Embeddings: pooled hidden states of transformers' model, whatever the chunks."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from braid import LLM, SamplingParams
from braid.core.errors import InvalidParameterError
from braid.core.request import FinishReason
from braid.engine.local import LocalClient
from braid.engine.protocol import GenerateRequest

from .conftest import assert_nothing_left, small_llm

PROMPTS = [[(5 * index) % 250 for index in range(70)], [3], [8] * 33]
PLAIN = SamplingParams()


def reference(folder: Path, prompt: list[int], pooling: str) -> list[float]:
    from transformers import LlamaModel

    model = LlamaModel.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        hidden_TD = model(torch.tensor([prompt])).last_hidden_state[0]
    pooled_D = hidden_TD[-1] if pooling == "last" else hidden_TD.mean(0)
    values: list[float] = torch.nn.functional.normalize(pooled_D, dim=0).tolist()
    return values


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("budget", [8, 64])
def test_vectors_are_those_of_transformers(tiny_llama: Path, pooling: str, budget: int) -> None:
    with small_llm(tiny_llama, pooling=pooling, max_num_batched_tokens=budget) as engine:
        assert (engine.info.pooling, engine.info.hidden_size) == (pooling, 128)
        engine.generate(
            PROMPTS[:1], SamplingParams(temperature=0, max_tokens=2)
        )  # what it caches is of no use
        for prompt, output in zip(PROMPTS, engine.embed(PROMPTS), strict=True):
            assert list(output.prompt_token_ids) == prompt
            assert math.hypot(*output.embedding) == pytest.approx(1)
            assert list(output.embedding) == pytest.approx(reference(tiny_llama, prompt, pooling), abs=2e-5)
        assert engine.stats().generation_tokens == 2
        assert_nothing_left(engine)


async def test_a_pooling_request_is_one_delta(tiny_llama: Path) -> None:
    with small_llm(tiny_llama, pooling="last", max_num_batched_tokens=8) as engine:
        wanted = GenerateRequest("a", tuple(PROMPTS[0]), PLAIN, pooling="mean")
        deltas = [delta async for delta in LocalClient(engine._core).generate(wanted)]
    assert len(deltas) == 1
    assert deltas[0].finish_reason is FinishReason.STOP
    assert (deltas[0].token_ids, len(deltas[0].embedding or ())) == ((), 128)
    times = deltas[0].times
    assert times is not None
    assert times.queued is not None
    assert times.prefill is not None
    assert times.decode is None


def with_pooling(model: Path, tmp_path: Path, **modes: bool) -> Path:
    folder = shutil.copytree(model, tmp_path / "embedder")
    (folder / "1_Pooling").mkdir()
    config = {"word_embedding_dimension": 128, "pooling_mode_cls_token": False} | modes
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("modes", "pooling"),
    [
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "last"),
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_cls_token": True}, None),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, None),
    ],
)
def test_the_checkpoint_says_how_to_pool(
    tiny_llama: Path, tmp_path: Path, modes: dict[str, bool], pooling: str | None
) -> None:
    with small_llm(with_pooling(tiny_llama, tmp_path, **modes)) as engine:
        assert engine.info.pooling == pooling


def test_the_user_may_say_no(tiny_llama: Path, tmp_path: Path) -> None:
    folder = with_pooling(tiny_llama, tmp_path, pooling_mode_lasttoken=True)
    with small_llm(folder, pooling="none") as engine:
        assert engine.info.pooling is None


async def test_a_model_without_pooling_says_how_to_start_it(llm: LLM) -> None:
    with pytest.raises(InvalidParameterError, match="pooling='last'"):
        llm.embed("Hello")
    wanted = GenerateRequest("a", (1, 2), PLAIN, pooling="last")
    with pytest.raises(InvalidParameterError, match="--pooling last"):
        await anext(LocalClient(llm._core).generate(wanted))


@pytest.mark.parametrize(
    ("pooling", "params", "named"),
    [("cls", PLAIN, "pooling"), ("last", SamplingParams(prompt_logprobs=1), "prompt_logprobs")],
)
async def test_what_cannot_be_pooled_is_refused(
    tiny_llama: Path, pooling: str, params: SamplingParams, named: str
) -> None:
    with small_llm(tiny_llama, pooling="last") as engine:
        with pytest.raises(InvalidParameterError) as refused:
            await anext(
                LocalClient(engine._core).generate(GenerateRequest("a", (1,), params, pooling=pooling))
            )
        assert refused.value.param == named
