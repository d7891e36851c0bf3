"""A mixture of experts larger than memory, of seeded random numbers, for the benchmarks of experts and for trying.

    python benchmarks/big_moe.py FOLDER [--quick] && braid serve FOLDER --expert-memory 25%

No package ships real weights of such a model, so the numbers are random and its text means nothing: the header of its
expert file says so, and the server repeats it. Shape, bytes and work are the real ones: Qwen3-30B-A3B, 6,144 int4
experts of 2.4 MB, which do not compress and are not sparse. It speaks with the default model's tokenizer and chat
template, whose vocabulary is cut or filled up to the shape's size.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from braid.checkpoint.aliases import DEFAULT_MODEL
from braid.checkpoint.expert_file import EXPERT_FILE, ExpertFile, ExpertWriter, check_space
from braid.checkpoint.open import open_checkpoint
from braid.checkpoint.progress import NullProgress, Progress
from braid.checkpoint.resolve import resolve
from braid.checkpoint.safetensors_file import Layout, header_bytes
from braid.cli.convert import write_tokenizer
from braid.cli.progress import ConsoleProgress
from braid.cli.units import format_bytes
from braid.core.experts import ExpertLayout, ExpertShape

CHUNK = 2**22
"""Numbers made at once."""
SPREAD = 0.02
"""Standard deviation of weights, as models are initialised."""
SMALLEST_SCALE = np.uint16(0x3B80)
"""2^-8 in bfloat16; scales are random from here to 2^-7, which gives the int4 numbers a spread of about `SPREAD`."""
LEAST_VOCAB = 512
"""Special tokens and all single bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A Qwen3-MoE, by default in the sizes of Qwen3-30B-A3B."""

    layers: int = 48
    experts: int = 128
    top_k: int = 8
    hidden: int = 2048
    expert_size: int = 768
    heads: int = 32
    kv_heads: int = 4
    head_dim: int = 128
    vocab: int = 151_936

    @property
    def routed(self) -> ExpertShape:
        return ExpertShape(self.layers, self.experts, self.top_k)

    @property
    def layout(self) -> ExpertLayout:
        return ExpertLayout("int4", self.hidden, self.expert_size)


QUICK = Shape(layers=6, experts=64, top_k=4, hidden=1024, expert_size=384, heads=8, kv_heads=2, vocab=49_152)
"""A cycle of a 16th of all experts, as in the true shape, in half a gigabyte."""


def generate(folder: Path, shape: Shape, *, seed: int = 0, progress: Progress | None = None) -> ExpertFile:
    """Write the model there, a record at a time; the same seed and shape give the same bytes.

    Raises:
        BraidError: the disk is too small or cannot be written, or the default model is not installed.
    """
    progress = progress or NullProgress()
    checkpoint = open_checkpoint(resolve(DEFAULT_MODEL))
    folder.mkdir(parents=True, exist_ok=True)
    stored = [Layout(name, "BF16", size) for name, size in dense_shapes(shape)]
    dense_bytes = sum(item.num_bytes for item in stored)
    expert_bytes = shape.routed.total * shape.layout.record_bytes
    check_space(folder, dense_bytes + expert_bytes + 2**26)
    write_tokenizer(replace(checkpoint, gguf=vocabulary(checkpoint.gguf or {}, shape.vocab)), folder)
    progress.start(dense_bytes + expert_bytes, f"Making {folder}")
    try:
        with (folder / "model.safetensors").open("wb") as file:
            file.write(header_bytes(stored, {"format": "pt"}))
            for index, item in enumerate(stored):
                for chunk in dense_numbers(item, (seed, 1, index)):
                    file.write(chunk)
                    progress.advance(len(chunk))
        source = f"random numbers, seed {seed}"
        with ExpertWriter(
            folder / EXPERT_FILE, shape.routed, shape.layout, source=source, is_random=True
        ) as writer:
            for expert in range(shape.routed.total):
                writer.write(expert, random_record(shape.layout, (seed, 0, expert)))
                progress.advance(shape.layout.record_bytes)
            experts = writer.commit()
    finally:
        progress.done()
    # A folder is a model once it has this file.
    (folder / "config.json").write_text(json.dumps(config_of(shape, checkpoint.config), indent=2) + "\n")
    return experts


def config_of(shape: Shape, tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """Its config.json; ``tokenizer``: the one of the model whose tokenizer it has."""
    ids = {name: tokenizer.get(name) for name in ("bos_token_id", "eos_token_id")}
    return ids | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": shape.hidden,
        "intermediate_size": 3 * shape.hidden,
        "moe_intermediate_size": shape.expert_size,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "num_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "vocab_size": shape.vocab,
        "max_position_embeddings": 40_960,
        "rope_theta": 1_000_000.0,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def dense_shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all that is not a routed expert."""
    hidden, head = shape.hidden, shape.head_dim
    yield "model.embed_tokens.weight", (shape.vocab, hidden)
    yield "lm_head.weight", (shape.vocab, hidden)
    yield "model.norm.weight", (hidden,)
    for layer in range(shape.layers):
        at = f"model.layers.{layer}."
        yield f"{at}self_attn.q_proj.weight", (shape.heads * head, hidden)
        yield f"{at}self_attn.k_proj.weight", (shape.kv_heads * head, hidden)
        yield f"{at}self_attn.v_proj.weight", (shape.kv_heads * head, hidden)
        yield f"{at}self_attn.o_proj.weight", (hidden, shape.heads * head)
        yield f"{at}self_attn.q_norm.weight", (head,)
        yield f"{at}self_attn.k_norm.weight", (head,)
        yield f"{at}input_layernorm.weight", (hidden,)
        yield f"{at}post_attention_layernorm.weight", (hidden,)
        yield f"{at}mlp.gate.weight", (shape.experts, hidden)


def random_bytes(count: int, seed: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The raw stream of a generator, which no version of numpy may change."""
    words = np.random.SFC64(list(seed)).random_raw(-(-count // 8))
    return words.astype("<u8", copy=False).view(np.uint8)[:count]


def random_record(layout: ExpertLayout, seed: tuple[int, ...]) -> memoryview:
    """One int4 expert: numbers from -7 to 7 and scales of two neighbouring powers."""
    assert layout.format == "int4", layout
    record = random_bytes(layout.record_bytes, seed)
    for index, (offset, count) in enumerate(layout.parts):
        part = record[offset : offset + count]
        if index % 2:
            scales = part.view(np.uint16)
            np.bitwise_and(scales, np.uint16(0x7F), out=scales)
            np.bitwise_or(scales, SMALLEST_SCALE, out=scales)
        else:  # a nibble of 0 would be -8, which the format does not have: it becomes 8, the number 0
            part |= ((part & 0x0F) == 0).astype(np.uint8) << 3
            part |= ((part & 0xF0) == 0).astype(np.uint8) << 7
    return record.data


def dense_numbers(item: Layout, seed: tuple[int, ...]) -> Iterator[bytes]:
    """The bfloat16 numbers of a tensor, in chunks: ones for norms, else evenly spread about 0."""
    total = item.num_bytes // 2
    for begin in range(0, total, CHUNK):
        count = min(CHUNK, total - begin)
        if len(item.shape) == 1:
            values = np.ones(count, np.float32)
        else:
            raw = random_bytes(2 * count, (*seed, begin)).view(np.uint16)
            values = (raw.astype(np.float32) - 32767.5) * np.float32(SPREAD * 12**0.5 / 65536)
        yield (values.view(np.uint32) >> 16).astype("<u2").tobytes()


def vocabulary(metadata: Mapping[str, Any], size: int) -> dict[str, Any]:
    """GGUF metadata of a tokenizer of ``size`` tokens: the first ones of another, and fillers that no text becomes."""
    if size < LEAST_VOCAB:
        raise SystemExit(f"a vocabulary of {size} is too small for all single bytes; at least {LEAST_VOCAB}")
    tokens = list(metadata["tokenizer.ggml.tokens"])[:size]
    types = list(metadata["tokenizer.ggml.token_type"])[:size]
    known = set(tokens)
    parts = (merge.split(" ", 1) for merge in metadata["tokenizer.ggml.merges"])
    merges = [f"{left} {right}" for left, right in parts if {left, right, left + right} <= known]
    fillers = [f"<filler{index}>" for index in range(len(tokens), size)]
    return {
        **metadata,
        "tokenizer.ggml.tokens": tokens + fillers,
        "tokenizer.ggml.token_type": types + [1] * len(fillers),
        "tokenizer.ggml.merges": merges,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--quick", action="store_true", help="half a gigabyte instead of 18")
    parser.add_argument("--seed", type=int, default=0)
    for field in fields(Shape):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int)
    options = parser.parse_args()
    if (options.folder / "config.json").exists():
        raise SystemExit(f"{options.folder} holds a model already")
    given = {field.name: getattr(options, field.name) for field in fields(Shape)}
    shape = replace(QUICK if options.quick else Shape(), **{name: n for name, n in given.items() if n})
    file = generate(options.folder, shape, seed=options.seed, progress=ConsoleProgress())
    record = bytearray(file.layout.record_bytes)
    file.read_into(0, record)
    Console().print(
        f"{shape}\n{file.shape.total} random experts of {format_bytes(len(record))}, "
        f"{format_bytes(file.size_bytes)} in all; one compresses to {len(zlib.compress(record, 1)) / len(record):.0%}; "
        f"a token uses {file.shape.cycle}\nbraid serve {options.folder} --expert-memory 25%",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
