from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.lab.replay.planning.content import planned_hit_rate, prompt_words, words
from braid.lab.replay.planning.plan import PLAN_SCHEMA, PlanOptions, ReplayPlan


@given(st.integers(0, 2**63 - 1), st.integers(0, 300), st.integers(0, 300), st.integers(0, 2**40))
def test_a_longer_read_begins_with_the_shorter_one(key: int, short: int, more: int, seed: int) -> None:
    long = words(key, short + more, seed, 1000)
    assert np.array_equal(words(key, short, seed, 1000), long[:short])
    assert long.size == short + more
    assert ((long >= 0) & (long < 1000)).all()


def test_streams_are_fixed_for_ever() -> None:
    assert words(7, 6, 0, 50_000).tolist() == [47508, 43984, 45055, 3099, 36405, 8038]
    assert words(7, 3, 1, 50_000).tolist() != words(7, 3, 0, 50_000).tolist()


def test_different_keys_are_different_streams() -> None:
    table = np.stack([words(key, 200, 0, 1000) for key in range(300)])
    same = [float((table[i] == table[i + 1]).mean()) for i in range(299)]
    assert np.mean(same) < 0.01
    assert max(same) < 0.05
    for shift in (1, 2, 64):
        assert (table[:-1, shift:] == table[1:, :-shift]).mean() < 0.01


def test_every_word_is_as_likely() -> None:
    counts = np.bincount(words(3, 100_000, 0, 10), minlength=10)
    assert counts.size == 10
    assert abs(counts / 10_000 - 1).max() < 0.05
    assert set(words(3, 64, 0, 1).tolist()) == {0}


@given(st.lists(st.tuples(st.integers(0, 2**63 - 1), st.integers(0, 20)), max_size=8))
def test_a_prompt_is_its_segments_one_after_another(segments: list[tuple[int, int]]) -> None:
    whole = prompt_words([key for key, _ in segments], [tok for _, tok in segments], 5, 777)
    parts = [words(key, tok, 5, 777) for key, tok in segments]
    assert np.array_equal(whole, np.concatenate([np.empty(0, np.int32), *parts]))


@pytest.mark.parametrize("num_words", [0, -1, 2**31 + 1])
def test_a_vocabulary_has_words(num_words: int) -> None:
    with pytest.raises(ValueError, match=f"got {num_words}"):
        words(1, 1, 0, num_words)


def _plan(*prompts: list[tuple[int, int]]) -> ReplayPlan:
    rows = [
        {
            "request": number,
            "in_tok": sum(tok for _, tok in prompt),
            "segment_keys": [key for key, _ in prompt],
            "segment_toks": [tok for _, tok in prompt],
        }
        for number, prompt in enumerate(prompts)
    ]
    schema = {name: PLAN_SCHEMA[name] for name in ("request", "in_tok", "segment_keys", "segment_toks")}
    frame = pl.DataFrame(rows, schema=schema)
    told: dict[str, Any] = {"source": "", "data_sha256": "", "unsendable": {}, "notes": (), "sha256": ""}
    return ReplayPlan(frame=frame, options=PlanOptions(), **told)


def test_hit_rate_counts_prefixes_by_content() -> None:
    # 3 blocks; 2 found and 1 new; the same block behind another one is not found.
    plan = _plan([(1, 4), (2, 4), (3, 4)], [(1, 4), (2, 4), (9, 4)], [(8, 4), (2, 4)])
    assert planned_hit_rate(plan, 4) == pytest.approx(2 / 8)
    # At 8 tokens: the first two prompts share one block, and their last ones are partial.
    assert planned_hit_rate(plan, 8) == pytest.approx(1 / 5)


def test_equal_words_count_however_they_are_cut() -> None:
    plan = _plan([(1, 10)], [(1, 7), (2, 9)], [(1, 10)])
    # Blocks of 5: two, four (one found), two (both found).
    assert planned_hit_rate(plan, 5) == pytest.approx(3 / 8)


def test_nothing_shared_is_no_hit() -> None:
    assert planned_hit_rate(_plan([(1, 100)], [(2, 100)]), 16) == 0
    assert planned_hit_rate(_plan(), 16) == 0
    with pytest.raises(ValueError, match="got 0"):
        planned_hit_rate(_plan([(1, 1)]), 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=4),
        min_size=1,
        max_size=8,
    ),
    st.integers(1, 7),
)
def test_hit_rate_is_that_of_a_cache_of_words(prompts: list[list[tuple[int, int]]], block_tok: int) -> None:
    seen, found, total = set(), 0, 0
    for prompt in prompts:
        text = tuple(prompt_words([k for k, _ in prompt], [n for _, n in prompt], 0, 2**31).tolist())
        for end in range(block_tok, len(text) + block_tok, block_tok):
            total += 1
            found += text[:end] in seen
            seen.add(text[:end])
    assert planned_hit_rate(_plan(*prompts), block_tok) == pytest.approx(found / total)
