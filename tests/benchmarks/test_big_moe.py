"""The generated model: true to its shape and format, the same for the same seed, and with a tokenizer that fits."""

from __future__ import annotations

import zlib
from pathlib import Path

import big_moe
import numpy as np
import pytest

from braid.checkpoint.aliases import ALIASES, is_installed
from braid.checkpoint.open import open_checkpoint
from braid.checkpoint.source import local_source
from braid.models.registry import build_model
from braid.models.spec import model_spec
from braid.text.tokenizer import load_tokenizer

TINY = big_moe.Shape(
    layers=2, experts=3, top_k=2, hidden=64, expert_size=32, heads=2, kv_heads=1, head_dim=32, vocab=600
)


def test_the_default_shape_is_qwen3s() -> None:
    spec = model_spec("x", big_moe.config_of(big_moe.Shape(), {}))
    assert round(spec.num_parameters / 1e9, 1) == 30.5
    assert 3.3e9 < spec.active_parameters < 3.4e9
    assert big_moe.Shape().layout.record_bytes == 2_433_024
    assert big_moe.Shape().routed.cycle == 384


def test_records_are_int4_and_do_not_compress() -> None:
    layout = big_moe.QUICK.layout
    record = bytes(big_moe.random_record(layout, (0, 0, 7)))
    assert record == bytes(big_moe.random_record(layout, (0, 0, 7)))
    assert record != bytes(big_moe.random_record(layout, (0, 0, 8)))
    assert len(zlib.compress(record, 1)) > 0.95 * len(record)
    (q, size), (s, scales) = layout.parts[:2]
    numbers = np.frombuffer(record, np.uint8, size, q)
    nibbles = np.concatenate((numbers & 15, numbers >> 4))
    assert set(nibbles) == set(range(1, 16))
    values = (np.frombuffer(record, np.uint16, scales // 2, s).astype(np.uint32) << 16).view(np.float32)
    assert values.min() >= 2**-8
    assert values.max() < 2**-7
    spread = float(np.std(nibbles.astype(np.float32) - 8) * values.mean())
    assert spread == pytest.approx(big_moe.SPREAD, rel=0.3)


@pytest.mark.skipif(not is_installed(ALIASES["smollm2-135m"]), reason="needs the default model's package")
def test_the_folder_is_a_model(tmp_path: Path) -> None:
    file = big_moe.generate(tmp_path / "moe", TINY)
    assert file.is_random
    checkpoint = open_checkpoint(local_source("moe", tmp_path / "moe"))
    assert checkpoint.experts == file
    file.check_model(TINY.routed, TINY.hidden, TINY.expert_size)
    import torch

    from braid.models.loading import expected_tensors

    model = build_model(checkpoint.config, dtype=torch.bfloat16, device="cpu")
    needed = {
        name: target.shape for name, target in expected_tensors(model).items() if ".experts." not in name
    }
    assert {name: info.shape for name, info in checkpoint.tensors.items()} == needed
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer.vocab_size == TINY.vocab
    assert tokenizer.decode(tokenizer.encode("Grüße, 你好!")) == "Grüße, 你好!"
    assert tokenizer.chat_template is not None
    assert 2 in tokenizer.eos_token_ids


def test_vocabularies_are_filled_up() -> None:
    metadata = {
        "tokenizer.ggml.tokens": [f"t{index}" for index in range(600)] + ["a", "b", "ab"],
        "tokenizer.ggml.token_type": [1] * 603,
        "tokenizer.ggml.merges": ["a b"],
    }
    filled = big_moe.vocabulary(metadata, 700)
    assert len(set(filled["tokenizer.ggml.tokens"])) == len(filled["tokenizer.ggml.token_type"]) == 700
    assert filled["tokenizer.ggml.merges"] == ["a b"]
    assert big_moe.vocabulary(metadata, 602)["tokenizer.ggml.merges"] == []
    with pytest.raises(SystemExit, match="too small"):
        big_moe.vocabulary(metadata, 100)
