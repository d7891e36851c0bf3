"""A larger model for ``phases.py``: a Llama of 0.3 billion random weights, since no real one may be downloaded here."""

from __future__ import annotations

import json
from pathlib import Path

SIZES = {
    "vocab_size": 32_000,
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "eos_token_id": 258,
    "bos_token_id": 256,
    "pad_token_id": None,
}


def generate(folder: Path) -> str:
    """Write it there, in bfloat16, with a tokenizer of bytes; the name to load it by."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        LlamaForCausalLM(LlamaConfig(**SIZES)).save_pretrained(folder)
    finally:
        torch.set_default_dtype(torch.float32)
    _write_tokenizer(folder)
    return str(folder)


def _write_tokenizer(folder: Path) -> None:
    """Ids from 259 on stand for nothing."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: index for index, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "eos_token": "<|im_end|>",
        "bos_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
