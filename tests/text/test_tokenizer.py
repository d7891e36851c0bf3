"""Tokenizers give the ids and texts of their references."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Backend

from braid.core.errors import CheckpointError, InvalidParameterError
from braid.text.tokenizer import Tokenizer, load_tokenizer


@pytest.fixture(scope="module")
def reference(smollm_path: Path) -> Any:
    """SmolLM2 in transformers, cut as its own tokenizer.json says: digits alone, then GPT-2's pattern.

    transformers does not know the file's ``smollm`` and takes plain GPT-2.
    """
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(smollm_path.parent), gguf_file=smollm_path.name)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    return tokenizer


def test_gguf_ids_equal_transformers(smollm: Tokenizer, reference: Any, sample: str) -> None:
    ids = smollm.encode(sample)
    assert ids == reference.encode(sample)
    assert smollm.decode(ids, skip_special_tokens=False) == reference.decode(ids)
    assert smollm.decode(ids) == reference.decode(ids, skip_special_tokens=True)


def test_gguf_facts(smollm: Tokenizer) -> None:
    assert smollm.vocab_size == 49152
    assert (smollm.bos_token, smollm.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert smollm.eos_token_ids == {0, 2}
    assert {0, 1, 2} <= smollm.special_token_ids
    assert smollm.chat_template is not None
    assert "<|im_start|>" in smollm.chat_template


def test_special_text_can_be_taken_as_plain_text(smollm: Tokenizer) -> None:
    text = "<|im_end|>\nbye"
    assert smollm.encode(text)[0] == 2
    plain = smollm.encode(text, parse_special=False)
    assert not smollm.special_token_ids & set(plain)
    assert smollm.decode(plain) == text


def test_single_tokens_have_bytes_and_text(
    smollm: Tokenizer, piece_tokenizer: Tokenizer, sample: str
) -> None:
    for tokenizer in (smollm, piece_tokenizer):
        ids = tokenizer.encode(sample, add_special_tokens=False)
        joined = b"".join(tokenizer.token_bytes(id) for id in ids).decode()
        assert joined == tokenizer.decode(ids, skip_special_tokens=False, continuation=True)
    assert smollm.token_text(905) == " world"
    assert smollm.token_bytes(10**9) == smollm.token_bytes(-1) == b""


def test_lone_surrogate_is_a_user_error(smollm: Tokenizer) -> None:
    with pytest.raises(InvalidParameterError, match="surrogate"):
        smollm.encode("a\ud800b")


def write(folder: Path, backend: Backend, **config: object) -> Path:
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def byte_backend() -> Backend:
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<s>", special=True), AddedToken("<|im_end|>", special=True)])
    return backend


def checkpoint(folder: Path, **generation: object) -> Any:
    from braid.checkpoint.open import Checkpoint
    from braid.checkpoint.source import ModelSource

    source = ModelSource(name="t", format="safetensors", files=(), root=folder)
    return Checkpoint(source=source, config={}, generation_config=dict(generation), tensors={}, gguf=None)


def bos_processor(backend: Backend) -> Backend:
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    return backend


@pytest.mark.parametrize(
    ("processed", "flag", "expected"),
    [(True, None, [256, 64]), (False, None, [64]), (True, False, [64]), (False, True, [256, 64])],
)
def test_folder_adds_bos_as_told(
    tmp_path: Path, processed: bool, flag: bool | None, expected: list[int]
) -> None:
    backend = bos_processor(byte_backend()) if processed else byte_backend()
    folder = write(
        tmp_path, backend, bos_token={"content": "<s>"}, **({} if flag is None else {"add_bos_token": flag})
    )
    tokenizer = load_tokenizer(checkpoint(folder))
    ids = tokenizer.encode("a")
    assert len(ids) == len(expected)
    assert ids[: len(expected) - 1] == expected[:-1]
    assert tokenizer.encode("a", add_special_tokens=False) == ids[-1:]
    assert tokenizer.decode(ids) == "a"


def test_folder_collects_ends_and_templates(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    folder = write(tmp_path, byte_backend(), eos_token="<s>", chat_template=named)
    tokenizer = load_tokenizer(checkpoint(folder, eos_token_id=[5, 7]))
    assert tokenizer.eos_token_ids == {5, 7, 256, 257}
    assert tokenizer.chat_template == "D"
    (folder / "chat_template.jinja").write_text("J")
    assert load_tokenizer(checkpoint(folder)).chat_template == "J"


def test_folder_declares_tokens_of_the_config(tmp_path: Path) -> None:
    extra = {"258": {"content": "<tool>", "special": True}, "0": {"content": "!"}}
    folder = write(tmp_path, byte_backend(), added_tokens_decoder=extra)
    tokenizer = load_tokenizer(checkpoint(folder))
    assert tokenizer.encode("a<tool>")[-1] == 258
    assert 258 in tokenizer.special_token_ids


@pytest.mark.parametrize("content", [None, "{", '{"model": 1}', "[]"])
def test_broken_folder_is_a_checkpoint_error(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        load_tokenizer(checkpoint(tmp_path))


def test_unknown_decoder_is_refused(tmp_path: Path) -> None:
    from tokenizers import decoders

    backend = byte_backend()
    backend.decoder = decoders.WordPiece()
    with pytest.raises(CheckpointError, match="WordPiece is not supported"):
        load_tokenizer(checkpoint(write(tmp_path, backend)))


def test_room_is_free_of_torch() -> None:
    code = (
        "import sys, braid.text.tokenizer, braid.text.stream, braid.text.template;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
