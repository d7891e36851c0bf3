"""The same greedy tokens whatever the batch, chunk size, cache hits, preemptions and arrival order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from braid import LLM, SamplingParams

from .conftest import assert_nothing_left, small_llm

TIGHT = 40 * 4 * 2 * 2 * 64 * 4
"""40 blocks of 4 tokens: two long requests cannot both finish without a preemption."""


@pytest.fixture(scope="module")
def engines(tiny_llama: Path) -> Iterator[list[LLM]]:
    """The same model with roomy blocks, with tiny chunks, and short of memory.

    The last admits whatever fits now: a policy that learns how long answers get would soon preempt nothing.
    """
    made = [
        small_llm(tiny_llama),
        small_llm(tiny_llama, max_num_batched_tokens=8, max_num_seqs=8),
        small_llm(
            tiny_llama,
            kv_cache_memory=TIGHT,
            max_model_len=120,
            max_num_batched_tokens=24,
            agent_policy="lru",
        ),
    ]
    yield made
    for engine in made:
        assert_nothing_left(engine)
        engine.close()


@pytest.fixture(scope="module")
def oracle(engines: list[LLM]) -> dict[tuple[int, ...], tuple[int, ...]]:
    return {}


PREFIXES = [[7] * 30, list(range(40, 65)), []]
prompts = st.builds(
    lambda prefix, own: tuple(PREFIXES[prefix] + own),
    st.integers(0, 2),
    st.lists(st.integers(0, 255), min_size=1, max_size=30),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=st.lists(prompts, min_size=1, max_size=7), which=st.integers(0, 2))
def test_tokens_do_not_depend_on_company(
    engines: list[LLM],
    oracle: dict[tuple[int, ...], tuple[int, ...]],
    wanted: list[tuple[int, ...]],
    which: int,
) -> None:
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    for prompt in wanted:
        if prompt not in oracle:
            oracle[prompt] = engines[0].generate([list(prompt)], params)[0].token_ids
    outputs = engines[which].generate([list(prompt) for prompt in wanted], params)
    for prompt, output in zip(wanted, outputs, strict=True):
        assert output.token_ids == oracle[prompt]


def test_memory_pressure_preempts_and_changes_nothing(engines: list[LLM]) -> None:
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    asked = [[index + 1] * 20 for index in range(6)]
    before = engines[2].stats().num_preemptions
    tight = engines[2].generate(asked, params)
    assert engines[2].stats().num_preemptions > before
    roomy = engines[0].generate(asked, params)
    assert [output.token_ids for output in tight] == [output.token_ids for output in roomy]


def test_sampled_tokens_survive_preemption(engines: list[LLM]) -> None:
    params = SamplingParams(temperature=1.2, seed=9, max_tokens=60, ignore_eos=True)
    asked = [[index + 1] * 20 for index in range(6)]
    tight = engines[2].generate(asked, params)
    roomy = [engines[0].generate([prompt], params)[0] for prompt in asked]
    assert [output.token_ids for output in tight] == [output.token_ids for output in roomy]
