from __future__ import annotations

from dataclasses import MISSING, fields

import pytest

from braid.cli.options import EngineOptions, SamplingOptions
from braid.core.config import EngineConfig
from braid.core.errors import InvalidParameterError
from braid.core.sampling import SamplingParams


def test_engine_options_are_the_config_with_the_same_defaults() -> None:
    config = {field.name: field.default for field in fields(EngineConfig) if field.name != "model"}
    assert {field.name: field.default for field in fields(EngineOptions)} == config
    assert MISSING not in config.values()


def test_engine_options_become_a_config() -> None:
    options = EngineOptions(dtype="float32", max_num_seqs=3, kv_cache_memory=1 << 30)
    expected = EngineConfig(model="m", dtype="float32", max_num_seqs=3, kv_cache_memory=1 << 30)
    assert options.config("m") == expected


def test_wrong_values_are_refused_by_the_config() -> None:
    with pytest.raises(InvalidParameterError, match="block_size"):
        EngineOptions(block_size=17).config("m")


def test_sampling_options_become_sampling_params() -> None:
    assert SamplingOptions(max_tokens=3, top_k=5).params() == SamplingParams(
        max_tokens=3, top_k=5, temperature=0.0
    )
