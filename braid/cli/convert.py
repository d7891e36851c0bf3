"""``braid convert``: a mixture of experts as a folder whose experts can stay on disk."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from braid.checkpoint.convert import Converted, convert
from braid.checkpoint.open import Checkpoint, open_checkpoint
from braid.checkpoint.resolve import resolve
from braid.cli.progress import ConsoleProgress
from braid.cli.units import format_bytes
from braid.text import gguf_tokenizer

SPELLINGS = {"bf16": "bfloat16"}


def run(model: str, experts: str, out: Path, *, offline: bool) -> None:
    """Convert and print what came of it.

    Raises:
        BraidError: the model is not there, has no experts or is damaged, or the folder cannot be written.
    """
    progress = ConsoleProgress()
    checkpoint = open_checkpoint(resolve(model, progress=progress, offline=offline))
    made = convert(
        checkpoint,
        out,
        SPELLINGS.get(experts, experts),
        progress=progress,
        write_tokenizer=partial(write_tokenizer, checkpoint),
    )
    print("\n".join(lines(made)))


def lines(made: Converted) -> list[str]:
    """Sizes before and after, of one expert, and of those that a token uses."""
    file = made.experts
    shape, record = file.shape, file.layout.record_bytes
    experts_bytes = shape.total * record
    before, after = format_bytes(made.source_expert_bytes), format_bytes(experts_bytes)
    return [
        f"{made.folder}: {format_bytes(made.source_bytes)} -> {format_bytes(file.size_bytes + made.dense_bytes)}",
        f"experts: {before} -> {after} as {file.layout.format}; {shape.layers} layers of {shape.per_layer}",
        f"an expert: {format_bytes(record)}; a token uses {shape.cycle}, {format_bytes(shape.cycle * record)}",
        f"all else, always in memory: {format_bytes(made.dense_bytes)}",
        f"serve it: braid serve {made.folder} --expert-memory 25%",
    ]


def write_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a GGUF file's tokenizer and chat template as the files of a Hugging Face folder.

    Raises:
        CheckpointError: the tokenizer is of a kind that is not supported.
    """
    assert checkpoint.gguf is not None
    built = gguf_tokenizer.build(checkpoint.gguf)
    built.backend.save(str(folder / "tokenizer.json"))
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": built.add_bos,
        "add_eos_token": built.add_eos,
    }
    for role in ("bos", "eos"):
        if role in built.ids:
            config[f"{role}_token"] = built.backend.id_to_token(built.ids[role])
    if built.chat_template is not None:
        config["chat_template"] = built.chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
