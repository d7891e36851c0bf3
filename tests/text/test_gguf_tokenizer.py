"""Vocabularies of both GGUF kinds, against naive references."""

from __future__ import annotations

import unicodedata
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from braid.checkpoint.open import Checkpoint
from braid.checkpoint.source import ModelSource
from braid.core.errors import CheckpointError
from braid.text import merges
from braid.text.gguf_tokenizer import build
from braid.text.pretokenizers import PRE_TOKENIZERS
from braid.text.tokenizer import Tokenizer, load_tokenizer

PREFIX = "tokenizer.ggml."


def byte_metadata(**changes: object) -> dict[str, Any]:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, "he", "Ġt", "<|end|>"]
    values: dict[str, Any] = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": ["h e", "Ġ t"]}
    values |= {"token_type": [1] * 258 + [3], "eos_token_id": 258, **changes}
    return {PREFIX + key: value for key, value in values.items() if value is not None}


def sentence_piece(text: str, tokens: list[str], scores: list[float], types: list[int]) -> list[int]:
    """SentencePiece's BPE, naively: join the best-scored neighbours, leftmost first; bytes for what is left over."""
    ids = {token: id for id, token in enumerate(tokens) if types[id] == 1}
    parts = list("▁" + text.replace(" ", "▁")) if text else []
    while True:
        joined = [(-scores[ids[a + b]], at) for at, (a, b) in enumerate(pairwise(parts)) if a + b in ids]
        if not joined:
            break
        _, at = min(joined)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    byte = {f"<0x{value:02X}>": value for value in range(256)}
    found = {byte[token]: id for id, token in enumerate(tokens) if token in byte}
    return [
        id for part in parts for id in ([ids[part]] if part in ids else [found[b] for b in part.encode()])
    ]


@given(st.text(alphabet="abhteing .éx日😀", max_size=20))
@settings(max_examples=150, deadline=None)
def test_pieces_equal_sentence_piece(piece_tokenizer: Tokenizer, text: str) -> None:
    backend = piece_tokenizer._backend
    tokens = [backend.id_to_token(id) for id in range(piece_tokenizer.vocab_size)]
    begin = 261
    types = [3] * begin + [1] * (len(tokens) - begin)
    scores = [0.0] * begin + [-float(rank) for rank in range(14)] + [-100.0] * (len(tokens) - begin - 14)
    expected = sentence_piece(text, tokens, scores, types)
    assert piece_tokenizer.encode(text, add_special_tokens=False) == expected


def test_piece_flags(piece_tokenizer: Tokenizer) -> None:
    assert piece_tokenizer.encode("the")[0] == piece_tokenizer.bos_token_id == 1
    assert piece_tokenizer.eos_token_ids == {2}
    ids = piece_tokenizer.encode("a\n\nb<turn>the")
    assert piece_tokenizer.token_id("\n\n") in ids
    assert piece_tokenizer.token_id("<turn>") in ids
    assert piece_tokenizer.decode(piece_tokenizer.encode("the in")) == "the in"


def test_kept_merges_equal_computed_ones(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAID_CACHE", str(tmp_path))
    monkeypatch.setattr(merges, "_WORTH_KEEPING", 0)
    tokens = ["<s>", "a", "b", "ab", "aba", "ba"]
    scores = {token: -float(rank) for rank, token in enumerate(tokens) if rank}
    first = merges.merges_from_scores(tokens, scores)
    assert first == [("a", "b"), ("a", "ba"), ("ab", "a"), ("b", "a")]
    (kept,) = tmp_path.rglob("*.merges")
    assert merges.merges_from_scores(tokens, scores) == first
    kept.write_bytes(kept.read_bytes()[:-1] + b"\xff")
    assert merges.merges_from_scores(tokens, scores) == first


def test_byte_level_vocabulary() -> None:
    backend = build(byte_metadata()).backend
    assert backend.encode("he t<|end|>").ids == [256, 257, 258]


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_every_pattern_compiles_and_keeps_the_text(name: str, sample: str) -> None:
    metadata = byte_metadata(pre=name, add_bos_token=False)
    source = ModelSource(name="t", format="gguf", files=(), root=Path())
    checkpoint = Checkpoint(source=source, config={}, generation_config={}, tensors={}, gguf=metadata)
    tokenizer = load_tokenizer(checkpoint)
    text = unicodedata.normalize("NFC", sample)
    assert tokenizer.decode(tokenizer.encode(text)) == text


PIECES = {
    "qwen2": ("It's 123 ok\n\n x", ["It", "'s", "Ġ", "1", "2", "3", "Ġok", "ĊĊ", "Ġx"]),
    "llama-bpe": ("IT'S 12345  a!\n", ["IT", "'S", "Ġ", "123", "45", "Ġ", "Ġa", "!Ċ"]),
    "smollm": ("a 12  b", ["a", "Ġ", "1", "2", "Ġ", "Ġb"]),
    "gpt-2": ("a 12\n\nb", ["a", "Ġ12", "Ċ", "Ċ", "b"]),
    "deepseek-v3": ("x.y 1234 z", ["x", ".y", "Ġ", "123", "4", "Ġz"]),
    "deepseek-llm": ("ab 12\n", ["ab", "Ġ", "1", "2", "Ċ"]),
    "tekken": ("camelCase 12", ["camel", "Case", "Ġ", "1", "2"]),
}


@pytest.mark.parametrize("name", PIECES)
def test_pieces_of_known_patterns(name: str) -> None:
    text, expected = PIECES[name]
    backend = build(byte_metadata(pre=name)).backend
    pieces = backend.pre_tokenizer.pre_tokenize_str(text)
    assert [piece for piece, _ in pieces] == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "bert"}, "'bert' is not supported; supported: gpt2, llama"),
        ({"model": None}, "model is missing"),
        ({"pre": "nonsense"}, "'nonsense' is not supported; supported: default, gpt-2"),
        ({"pre": 7}, "'7' is not supported"),
        ({"tokens": None}, "tokens is missing"),
        ({"tokens": []}, "tokens is empty"),
        ({"tokens": [1, 2]}, "must hold values of type str"),
        ({"token_type": [1]}, "has 1 values for 259 tokens"),
        ({"merges": ["h e", "h"]}, r"merges\[1\] 'h' is not two parts"),
        ({"merges": [""]}, r"merges\[0\] '' is not two parts"),
        ({"merges": ["h zz"]}, "do not fit the vocabulary"),
        ({"eos_token_id": 259}, r"must be in \[0, 259\)"),
        ({"eos_token_id": "x"}, r"must be in \[0, 259\)"),
        ({"model": "llama"}, "scores is missing"),
    ],
)
def test_wrong_metadata_is_a_checkpoint_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        build(byte_metadata(**changes))


def test_twice_the_same_token_is_refused() -> None:
    metadata = byte_metadata()
    metadata[PREFIX + "tokens"][257] = "he"
    with pytest.raises(CheckpointError, match="'he' twice, at 256 and 257"):
        build(metadata)
