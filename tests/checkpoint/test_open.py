"""Configurations: read, synthesised from GGUF metadata, and refused where they make no sense."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from braid.checkpoint.gguf_config import llama3_factors
from braid.checkpoint.gguf_names import LAYER_NAMES
from braid.checkpoint.open import Checkpoint, open_checkpoint
from braid.checkpoint.source import local_source
from braid.core.errors import CheckpointError

Open = Callable[[Path], Checkpoint]

EXPECTED: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "head_dim": 8, "num_key_value_heads": 2},
    "mixtral": {"architectures": ["MixtralForCausalLM"], "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "attention_bias": True},
    "qwen2moe": {
        "architectures": ["Qwen2MoeForCausalLM"],
        "shared_expert_intermediate_size": 64,
        "num_experts": 4,
    },
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "attention_bias": False},
    "qwen3moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
    },
    "olmoe": {"architectures": ["OlmoeForCausalLM"], "norm_topk_prob": False, "num_experts": 4},
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "sliding_window": 16,
        "layer_types": ["sliding_attention"] * 2,
        "query_pre_attn_scalar": 8,
        "rope_local_base_freq": 10000.0,
    },
    "deepseek2": {
        "architectures": ["DeepseekV3ForCausalLM"],
        "kv_lora_rank": 32,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 32,
        "v_head_dim": 8,
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    },
}


@pytest.mark.parametrize("family", EXPECTED)
def test_config_from_metadata(family: str, write_gguf: Any, open_path: Open) -> None:
    checkpoint = open_path(write_gguf(family).path)
    common = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "vocab_size": 96,
        "eos_token_id": 2,
        "dtype": "float32",
    }
    expected = common | EXPECTED[family] | {"tie_word_embeddings": False, "rope_scaling": None}
    assert {key: checkpoint.config[key] for key in expected} == expected
    assert checkpoint.generation_config == {"eos_token_id": 2}
    assert checkpoint.gguf is not None
    assert checkpoint.gguf["tokenizer.ggml.tokens"][:2] == ["t0", "t1"]
    assert checkpoint.size_bytes == sum(info.num_elements * 4 for info in checkpoint.tensors.values())


def test_every_family_has_names_and_a_config() -> None:
    assert EXPECTED.keys() == LAYER_NAMES.keys()


def test_details_of_metadata(write_gguf: Any, open_path: Open) -> None:
    mistral = open_path(write_gguf(metadata={"attention.sliding_window": 128}).path).config
    assert (mistral["architectures"], mistral["sliding_window"]) == (["MistralForCausalLM"], 128)
    assert open_path(write_gguf(tied=True).path).config["tie_word_embeddings"] is True
    assert open_path(write_gguf(dtype="Q8_0").path).config["dtype"] == "bfloat16"


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_llama3_scaling_is_read_from_its_factors(write_gguf: Any, open_path: Open) -> None:
    """The factors of a real Llama 3.2 head: theta 500000, 64 dimensions."""
    factors = np.array(llama3_factors(500000.0, 64, 32.0, 1.0, 4.0, 8192), dtype=np.float32)
    metadata = {"attention.head_count": 4, "attention.key_length": 64, "rope.freq_base": 500000.0}
    path = write_gguf("qwen2", metadata=metadata, extra={"rope_freqs.weight": factors}).path
    config = open_path(path).config
    assert config["rope_scaling"] == LLAMA3
    assert "rope_freqs.weight" not in open_path(path).tensors
    odd = write_gguf("qwen2", metadata=metadata, extra={"rope_freqs.weight": factors * factors}).path
    with pytest.raises(CheckpointError, match="does not follow Llama 3's scaling"):
        open_path(odd)


def test_llama3_factors_are_transformers() -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {"rope_theta": 500000.0, **LLAMA3}
    config = transformers.LlamaConfig(hidden_size=128, num_attention_heads=2, rope_parameters=parameters)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = 1.0 / 500000.0 ** (torch.arange(0, 64, 2) / 64)
    factors = torch.tensor(llama3_factors(500000.0, 64, 32.0, 1.0, 4.0, 8192))
    torch.testing.assert_close(plain / factors, scaled, rtol=1e-5, atol=0)


YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 40.0,
    "rope.scaling.original_context_length": 4096,
}


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"rope.scaling.type": "none"}, None),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scale_linear": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        (
            YARN | {"rope.scaling.yarn_log_multiplier": 0.1},
            {
                "rope_type": "yarn",
                "factor": 40.0,
                "original_max_position_embeddings": 4096,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "mscale": pytest.approx(1.0),
                "mscale_all_dim": pytest.approx(1.0),
            },
        ),
    ],
)
def test_rope_scaling(metadata: dict[str, Any], expected: Any, write_gguf: Any, open_path: Open) -> None:
    family = "deepseek2" if "rope.scaling.yarn_log_multiplier" in metadata else "llama"
    assert open_path(write_gguf(family, metadata=metadata).path).config["rope_scaling"] == expected


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"attention.head_count": 0}, "attention.head_count must be positive"),
        ({"embedding_length": 64}, "embedding_length is 64"),
        ({"block_count": 40}, "block_count must be 2"),
        ({"attention.layer_norm_rms_epsilon": "tiny"}, "must be a finite number"),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, "must be a finite number"),
        ({"rope.freq_base": -1.0}, "rope.freq_base must be positive"),
        ({"rope.dimension_count": 4}, "partial rotary"),
        (YARN | {"rope.scaling.yarn_log_multiplier": 1.0}, "absent in this architecture"),
        ({"rope.scaling.type": "longrope"}, "supported: none, linear, yarn"),
    ],
)
def test_senseless_metadata(metadata: dict[str, Any], message: str, write_gguf: Any, open_path: Open) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_path(write_gguf(metadata=metadata).path)


def test_unsupported_architecture(tmp_path: Path, open_path: Open) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="'mamba' is not supported; supported: llama, qwen2"):
        open_path(tmp_path / "x.gguf")


def test_tensor_without_a_place(write_gguf: Any, open_path: Open) -> None:
    extra = {"blk.0.attn_sinks.weight": np.zeros(4, np.float32)}
    with pytest.raises(CheckpointError, match=r"'blk.0.attn_sinks.weight' has no place"):
        open_path(write_gguf(extra=extra).path)


def test_split_file(write_gguf: Any, tmp_path: Path, hf_weights: Any) -> None:
    """Parts as llama.cpp writes them: the first has the metadata, each its own tensors."""
    whole = gguf.GGUFReader(write_gguf().path)
    for part in range(2):
        writer = gguf.GGUFWriter(tmp_path / f"big-{part + 1:05d}-of-00002.gguf", "llama")
        for key, field in whole.fields.items():
            if part == 0 and not key.startswith(("GGUF.", "general.architecture")):
                sub_type = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(key, field.contents(), field.types[0], sub_type)
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(whole.tensors))
        for tensor in whole.tensors[part::2]:
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    path = tmp_path / "big-00002-of-00002.gguf"
    assert open_checkpoint(local_source("big", path)).tensors.keys() == hf_weights().keys()
    path.rename(tmp_path / "alone.gguf")
    with pytest.raises(CheckpointError, match="one of 2 parts, 1 were found"):
        open_checkpoint(local_source("alone", tmp_path / "alone.gguf"))


def test_folder(hf_folder: Any, open_path: Open, tmp_path: Path, hf_weights: Any) -> None:
    checkpoint = open_path(hf_folder(tmp_path / "model", shards=2))
    assert checkpoint.config["model_type"] == "llama"
    assert checkpoint.generation_config == {"eos_token_id": [1, 2]}
    assert checkpoint.gguf is None
    assert checkpoint.tensors.keys() == hf_weights().keys()
    assert checkpoint.tensors["model.norm.weight"].dtype == "F32"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "not a JSON object"),
        ("{}", "neither architectures nor model_type"),
        ('{"architectures": "Llama"}', "architectures must be a list"),
        ('{"model_type": "llama", "hidden_size": -3}', "hidden_size must be a positive integer, is -3"),
        ('{"model_type": "llama", "vocab_size": "many"}', "vocab_size must be a positive integer"),
        (
            '{"model_type": "llama", "quantization_config": {"quant_method": "awq"}}',
            "'awq' are not supported",
        ),
        ("[" * 100_000, "not valid JSON"),
        ("\udcff", "not valid JSON"),
    ],
)
def test_senseless_config(config: str, message: str, hf_folder: Any, open_path: Open, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "model")
    (folder / "config.json").write_bytes(config.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=message):
        open_path(folder)


def test_index_that_promises_too_much(hf_folder: Any, open_path: Open, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "model", shards=2)
    index = folder / "model.safetensors.index.json"
    promised = json.loads(index.read_text())
    promised["weight_map"]["model.extra"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(promised))
    with pytest.raises(CheckpointError, match=r"'model.extra' is not in 'model-00001"):
        open_path(folder)
