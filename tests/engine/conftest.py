"""A tiny engine, checked for leaks after each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from braid import LLM

SMALL = {
    "dtype": "float32",
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "max_model_len": 256,
    "block_size": 4,
    "kv_cache_memory": 400 * 4 * 2 * 2 * 64 * 4,
    "threads": 1,
}
"""400 blocks of 4 tokens; 2 layers of K and V with one head of 64 float32."""


def small_llm(model: Path, **options: Any) -> LLM:
    return LLM(str(model), **(SMALL | options))


@pytest.fixture
def llm(tiny_llama: Path) -> Iterator[LLM]:
    """A fresh engine; after the test every block must be free again."""
    with small_llm(tiny_llama) as engine:
        yield engine
        assert_nothing_left(engine)


def assert_nothing_left(engine: LLM) -> None:
    """Every block is free again, once a step that was in flight at an abort has come back."""
    for _ in range(1000):
        stats = engine.stats()
        if stats.num_free_blocks == stats.num_blocks:
            break
    assert stats.num_free_blocks == stats.num_blocks
    assert stats.num_running == stats.num_waiting == 0
