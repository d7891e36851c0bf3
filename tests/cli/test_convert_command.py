"""``braid convert``: a folder that any verb opens, sizes that add up, and a line where it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from braid.checkpoint.open import Checkpoint, open_checkpoint
from braid.checkpoint.source import ModelSource, local_source
from braid.cli.app import main
from braid.cli.convert import write_tokenizer
from braid.cli.units import format_bytes
from braid.text.tokenizer import Tokenizer, load_tokenizer

TEXTS = [
    "",
    " Hello,  world!\n\n\tIt's 2024; they'LL see.",
    "<|im_start|>user\nhi<|im_end|>",
    "naïve café 你好 😀 👩‍👩‍👧‍👦",
]


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(local_source(str(folder), folder))


def test_the_folder_is_the_model_and_the_sizes_are_said(
    tiny_moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["convert", str(tiny_moe), "--experts", "bf16", "--out", str(out)]) == 0
    made = opened(out)
    assert made.experts is not None
    assert made.experts.layout.format == "bfloat16"
    assert load_tokenizer(made).encode("hi") == load_tokenizer(opened(tiny_moe)).encode("hi")
    said = capsys.readouterr()
    record = 3 * 128 * 64 * 2
    assert f"experts: {format_bytes(16 * record * 2)} -> {format_bytes(16 * record)} as bfloat16" in said.out
    assert f"an expert: {format_bytes(record)}; a token uses 4, {format_bytes(4 * record)}" in said.out
    after = sum(file.stat().st_size for file in (out / "experts.braid", out / "model.safetensors"))
    total = said.out.splitlines()[0].rsplit("-> ", 1)[1]
    assert total in (format_bytes(after), format_bytes(after - 4096))
    assert "Converting" in said.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "{out}", "--experts", "int3"], "int3"),
        ([], "--out"),
        (["--out", "{model}"], "is not an empty folder"),
    ],
)
def test_what_cannot_be_is_a_line(
    words: list[str], said: str, tiny_moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [word.format(out=tmp_path / "out", model=tiny_moe) for word in words]
    assert main(["convert", str(tiny_moe), *filled]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("braid: error: ")
    assert said in error
    assert not (tmp_path / "out").exists()


def test_a_dense_model_is_refused(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(tiny_llama), "--out", str(tmp_path / "out")]) == 2
    assert "has no routed experts (LlamaForCausalLM is not a mixture of experts)" in capsys.readouterr().err


def described(metadata: dict[str, object], folder: Path) -> tuple[Tokenizer, Tokenizer]:
    """A GGUF file's tokenizer, and what comes back from the folder it was written to."""
    ids = {"eos_token_id": metadata.get("tokenizer.ggml.eos_token_id")}
    source = ModelSource(name="t", format="gguf", files=(), root=folder)
    old = Checkpoint(source=source, config={}, generation_config=ids, tensors={}, gguf=metadata)
    write_tokenizer(old, folder)
    source = ModelSource(name="t", format="safetensors", files=(), root=folder)
    new = Checkpoint(source=source, config={}, generation_config=ids, tensors={}, gguf=None)
    return load_tokenizer(old), load_tokenizer(new)


def assert_same(old: Tokenizer, new: Tokenizer) -> None:
    for text in TEXTS:
        ids = old.encode(text)
        assert new.encode(text) == ids
        assert new.decode(ids) == old.decode(ids)
        assert new.encode(text, add_special_tokens=False, parse_special=False) == old.encode(
            text, add_special_tokens=False, parse_special=False
        )
    for name in ("chat_template", "bos_token_id", "bos_token", "eos_token", "vocab_size"):
        assert getattr(new, name) == getattr(old, name), name
    assert new.eos_token_ids == old.eos_token_ids
    assert new.special_token_ids == old.special_token_ids


def test_byte_level_vocabularies_are_written(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "he", "Ġw", "<|im_start|>", "<|im_end|>", "<think>"]
    metadata: dict[str, object] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["h e", "Ġ w"],
        "tokenizer.ggml.token_type": [*[1] * 258, 3, 3, 4],
        "tokenizer.ggml.bos_token_id": 258,
        "tokenizer.ggml.eos_token_id": 259,
    }
    old, new = described(metadata, tmp_path)
    assert old.encode("he")[-1] == 256
    assert_same(old, new)


def test_sentence_pieces_are_written(tmp_path: Path) -> None:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "i", "▁h", "hi"]
    metadata: dict[str, object] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": pieces,
        "tokenizer.ggml.scores": [-float(index) for index in range(len(pieces))],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * 5],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.chat_template": "{{ bos_token }}\r\n{{ messages }}",
    }
    old, new = described(metadata, tmp_path)
    assert old.encode("hi")[0] == 1
    assert_same(old, new)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["add_bos_token"] is True
