"""What a replay asks of a server before it begins, asked of our own."""

from __future__ import annotations

import asyncio
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from braid.checkpoint.open import open_checkpoint
from braid.checkpoint.resolve import resolve
from braid.core.errors import EngineDeadError
from braid.text.tokenizer import Tokenizer, load_tokenizer

pytest.importorskip("polars")

from braid.lab.replay.asking.target import Target, TargetError, probe
from braid.lab.replay.asking.words import WORDS

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    """Bytes, and a token for every word of a replay's prompts."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    backend.add_tokens([AddedToken(word, normalized=False) for word in WORDS])
    backend.save(str(tmp_path / "tokenizer.json"))
    config = {"eos_token": SPECIAL[2], "bos_token": SPECIAL[0]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    model = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 1024}
    (tmp_path / "config.json").write_text(json.dumps(model))
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    return load_tokenizer(open_checkpoint(resolve(str(tmp_path))))


@pytest.fixture
def engine(engine: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """One whose model has all these tokens, and which answers with as many as are asked for."""
    info = replace(engine.info, vocab_size=1024)
    monkeypatch.setattr(type(engine), "info", property(lambda _: info))
    engine.reply = "".join(WORDS[:64])
    return engine


# By the chat template: <|im_start|>user, "The" and the words, <|im_end|>, <|im_start|>assistant, and line breaks.
ASKS, ANSWERS = 1 + len("user\nThe"), 1 + len("\n") + 1 + len("assistant\n")


@pytest.mark.parametrize(
    ("form", "overhead", "turn"),
    [("ids", 0, 0), ("text", 3, 0), ("chat", ASKS + ANSWERS, ANSWERS + 2 + ASKS)],
)
async def test_everything_is_found(url: str, form: Any, overhead: int, turn: int) -> None:
    facts = await asyncio.to_thread(probe, Target(url=url, model="alias"), form)
    assert (facts.model, facts.max_tokens, facts.form) == ("alias", 1024, form)
    assert facts.server.startswith("braid ")
    assert facts.vocabulary.texts == WORDS
    assert facts.output_enforced
    assert facts.continuous_usage
    assert facts.reports_cached
    assert facts.tells_ids == (form == "ids")
    assert facts.notes == ()
    assert facts.overhead_tokens == overhead
    assert facts.turn_overhead_tokens == turn


async def test_the_first_form_is_ids_and_one_of_the_names_will_do(url: str) -> None:
    facts = await asyncio.to_thread(probe, Target(url=f"{url}/v1"))
    assert (facts.model, facts.form) == ("tiny", "ids")


async def test_a_model_that_is_not_served(url: str) -> None:
    with pytest.raises(TargetError, match="'tiny', 'alias'"):
        await asyncio.to_thread(probe, Target(url=url, model="gpt-4"))


async def test_an_engine_that_is_down(url: str, engine: Any) -> None:
    engine.error = EngineDeadError("the engine is down")
    with pytest.raises(TargetError, match="503: "):
        await asyncio.to_thread(lambda: probe(Target(url=url), timeout_s=0.2))
