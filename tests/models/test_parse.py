"""Configs as they are found in the wild, and clear words about those that cannot be served."""

from __future__ import annotations

from typing import Any

import pytest

from braid.core.errors import CheckpointError
from braid.models.parse import ARCHITECTURES, parse_config

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 49152,
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
GEMMA3: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "vocab_size": 262144,
    "hidden_size": 640,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "intermediate_size": 2048,
    "max_position_embeddings": 32768,
    "sliding_window": 512,
    "rope_local_base_freq": 10000.0,
    "rope_theta": 1000000.0,
}


def test_llama() -> None:
    config = parse_config(LLAMA)
    assert (config.head_dim, config.num_kv_heads, config.tied) == (64, 3, True)
    assert config.ropes[0].theta == 100000.0
    assert config.windows == (None,) * 30


def test_gemma3_pattern_and_its_two_rotations() -> None:
    config = parse_config(GEMMA3)
    assert config.windows == (512,) * 5 + (None,) + (512,) * 2
    assert config.layer_ropes == (1, 1, 1, 1, 1, 0, 1, 1)
    assert [rope.theta for rope in config.ropes] == [1e6, 1e4]
    assert config.tied
    assert config.embedding_scale == 640**0.5


def test_gemma3_inside_a_model_that_sees_images() -> None:
    inner = {name: value for name, value in GEMMA3.items() if name not in ("architectures", "vocab_size")}
    config = parse_config({"architectures": ["Gemma3ForConditionalGeneration"], "text_config": inner})
    assert (config.family, config.vocab_size) == ("gemma3", 262208)


def test_gemma3_old_scaling_stretches_only_global_layers() -> None:
    scaled = parse_config({**GEMMA3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    assert [rope.kind for rope in scaled.ropes] == ["linear", "default"]


def test_an_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(CheckpointError) as error:
        parse_config({**LLAMA, "architectures": ["GPT2LMHeadModel"]})
    assert "GPT2LMHeadModel" in str(error.value)
    assert all(name in str(error.value) for name in ARCHITECTURES)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": None}, "unsupported model architecture None"),
        ({"architectures": [3]}, "unsupported model architecture 3"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"hidden_size": "576"}, "'hidden_size' in config.json must be a positive integer, got '576'"),
        ({"num_hidden_layers": 0}, "must be a positive integer, got 0"),
        ({"num_key_value_heads": 2}, "9 is not a multiple of num_key_value_heads 2"),
        ({"rms_norm_eps": float("nan")}, "'rms_norm_eps' in config.json must be a positive number"),
        ({"hidden_act": "relu"}, "'hidden_act' in config.json must be one of"),
        (
            {"rope_scaling": {"rope_type": "longrope"}},
            "must be one of default, linear, llama3, yarn, got 'longrope'",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope_scaling of config.json lacks 'factor'"),
        ({"rope_scaling": [1]}, "'rope_scaling' in config.json must be an object"),
        ({"tie_word_embeddings": "yes"}, "must be true or false"),
        (
            {"quantization_config": {"quant_method": "fp8"}},
            "quantised safetensors checkpoints are not supported",
        ),
    ],
)
def test_bad_values_are_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError) as error:
        parse_config({**LLAMA, **changes})
    assert words in str(error.value)


def test_parsing_and_counting_need_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, braid.models.spec; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
