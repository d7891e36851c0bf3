"""Numbers: every family and storage type comes back under the names and in the layout it had before conversion."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize

from braid.checkpoint.aliases import ALIASES, is_installed
from braid.checkpoint.open import Checkpoint
from braid.checkpoint.resolve import resolve
from braid.checkpoint.weights import iter_weights
from braid.core.errors import CheckpointError, InvalidParameterError

FAMILIES = ["llama", "mixtral", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "olmoe", "gemma3", "deepseek2"]
NEEDS_SMOLLM2 = pytest.mark.skipif(
    not is_installed(ALIASES["smollm2-135m"]), reason="needs the default model's package"
)
SMOLLM2_BFLOAT16_CRC = 0x960F198B
Open = Callable[[Path], Checkpoint]


def load(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    pairs = list(iter_weights(checkpoint, dtype))
    assert len({name for name, _ in pairs}) == len(pairs)
    return {name: tensor.clone() for name, tensor in pairs}


@pytest.mark.parametrize(
    ("family", "split_kv_b"), [*((family, False) for family in FAMILIES), ("deepseek2", True)]
)
def test_gguf_gives_back_what_was_converted(
    family: str, split_kv_b: bool, write_gguf: Any, open_path: Open
) -> None:
    metadata = {}
    if split_kv_b:  # files whose kv_b_proj is in two parts also count one KV head
        metadata = {
            "attention.key_length_mla": 36,
            "attention.value_length_mla": 8,
            "attention.head_count_kv": 1,
        }
    written = write_gguf(family, split_kv_b=split_kv_b, metadata=metadata)
    loaded = load(open_path(written.path))
    assert loaded.keys() == written.weights.keys()
    for name, tensor in loaded.items():
        # Gemma's norms had 1 added in float32.
        tolerance = 1e-6 if family == "gemma3" else 0
        torch.testing.assert_close(
            tensor, torch.from_numpy(written.weights[name]), rtol=0, atol=tolerance, msg=name
        )


@pytest.mark.parametrize("dtype", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_block_types_are_the_librarys_numbers(dtype: str, write_gguf: Any, open_path: Open) -> None:
    written = write_gguf("qwen2", dtype=dtype)
    loaded = load(open_path(written.path))
    kind = gguf.GGMLQuantizationType[dtype]
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"):
        expected = dequantize(quantize(written.weights[name], kind), kind)
        np.testing.assert_array_equal(loaded[name].numpy(), expected.reshape(loaded[name].shape))


@pytest.mark.parametrize(("dtype", "block"), [("Q4_K", 144), ("Q5_K", 176), ("Q6_K", 210)])
def test_k_types_are_the_librarys_numbers(dtype: str, block: int, tmp_path: Path) -> None:
    from braid.checkpoint.tensors import Extent
    from braid.checkpoint.weights import _dequantise, _Maps

    blocks = np.random.default_rng(0).integers(0, 60, (3000, block), dtype=np.uint8)
    (tmp_path / "raw").write_bytes(b"pad!" + blocks.tobytes())
    extent = Extent(tmp_path / "raw", 4, blocks.size, dtype, (1500, 512))
    with _Maps() as maps:
        loaded = _dequantise(maps, "raw", extent, torch.float32)
    expected = dequantize(blocks, gguf.GGMLQuantizationType[dtype]).reshape(1500, 512)
    np.testing.assert_array_equal(loaded.numpy(), expected)


@pytest.mark.parametrize("shards", [1, 3])
def test_folder_streams_every_tensor_once(
    shards: int, tmp_path: Path, hf_folder: Any, hf_weights: Any
) -> None:
    from braid.checkpoint.open import open_checkpoint

    path = hf_folder(tmp_path / "model", shards=shards)
    loaded = load(open_checkpoint(resolve(str(path))))
    expected = hf_weights()
    assert loaded.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(loaded[name].numpy(), value)


def test_half_precision_folder_is_converted(tmp_path: Path, hf_folder: Any, open_path: Open) -> None:
    loaded = load(open_path(hf_folder(tmp_path / "model", dtype="float16")), torch.bfloat16)
    assert loaded["lm_head.weight"].dtype is torch.bfloat16
    assert loaded["model.norm.weight"].dtype is torch.float16


def test_vectors_and_routers_keep_their_precision(write_gguf: Any, open_path: Open) -> None:
    loaded = load(open_path(write_gguf("qwen2moe", dtype="Q8_0").path), torch.bfloat16)
    kept = {name for name, tensor in loaded.items() if tensor.dtype is torch.float32}
    assert {"model.norm.weight", "model.layers.0.mlp.gate.weight"} <= kept
    assert "model.layers.0.mlp.shared_expert_gate.weight" in kept
    assert loaded["model.layers.0.mlp.experts.3.up_proj.weight"].dtype is torch.bfloat16


def test_damaged_scale_is_an_error(write_gguf: Any, open_path: Open) -> None:
    checkpoint = open_path(write_gguf(dtype="Q8_0").path)
    extent = checkpoint.tensors["model.layers.0.mlp.up_proj.weight"].extents[0]
    with extent.file.open("r+b") as file:
        file.seek(extent.offset)
        file.write(np.array([np.inf], np.float16).tobytes())
    with pytest.raises(CheckpointError, match=r"up_proj.*not finite"):
        load(checkpoint)


def test_unknown_dtype_is_refused(write_gguf: Any, open_path: Open) -> None:
    with pytest.raises(InvalidParameterError, match=r"torch.int8"):
        next(iter_weights(open_path(write_gguf().path), torch.int8))


def test_file_cut_after_opening_is_an_error(write_gguf: Any, open_path: Open) -> None:
    written = write_gguf()
    checkpoint = open_path(written.path)
    written.path.write_bytes(written.path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="became shorter"):
        load(checkpoint)


def test_progress_adds_up(write_gguf: Any, open_path: Open) -> None:
    class Recorder:
        total = advanced = ended = 0

        def start(self, total_bytes: int, what: str) -> None:
            self.total = total_bytes

        def advance(self, num_bytes: int) -> None:
            self.advanced += num_bytes

        def done(self) -> None:
            self.ended += 1

    checkpoint = open_path(write_gguf(dtype="Q4_1").path)
    for _ in range(2):  # converted, then from the cache
        recorder = Recorder()
        for _pair in iter_weights(checkpoint, torch.bfloat16, progress=recorder):
            pass
        assert recorder.advanced == recorder.total == checkpoint.size_bytes
        assert recorder.ended == 1


@NEEDS_SMOLLM2
def test_smollm2_numbers_are_those_compared_with_transformers() -> None:
    """The fingerprint of what ``test_real_models_equal_transformers`` (slow) compared tensor by tensor."""
    from braid.checkpoint.open import open_checkpoint

    checksum = 0
    for name, tensor in sorted(load(open_checkpoint(resolve("smollm2-135m")), torch.bfloat16).items()):
        checksum = zlib.crc32(name.encode() + tensor.view(torch.uint8).numpy().tobytes(), checksum)
    assert checksum == SMOLLM2_BFLOAT16_CRC


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2-135m", "gemma3-270m"])
def test_real_models_equal_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    if not is_installed(ALIASES[name]):
        pytest.skip(f"needs the package {ALIASES[name].package}")
    from braid.checkpoint.open import open_checkpoint

    source = resolve(name)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source.root,
        gguf_file=source.files[0].name,
        dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )
    expected = model.state_dict()
    checkpoint = open_checkpoint(source)
    for key in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "vocab_size", "rms_norm_eps"):
        assert checkpoint.config[key] == getattr(model.config, key)
    names = set()
    for tensor_name, tensor in iter_weights(checkpoint, torch.float32):
        assert torch.equal(tensor, expected[tensor_name]), tensor_name
        names.add(tensor_name)
    assert expected.keys() - names == {"lm_head.weight"}
    assert checkpoint.config["tie_word_embeddings"]
