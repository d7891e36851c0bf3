"""Seeded mutants of good files: each one loads or is refused with a CheckpointError, and never anything else."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from braid.checkpoint.expert_file import ExpertWriter, open_experts
from braid.checkpoint.open import open_checkpoint
from braid.checkpoint.source import local_source
from braid.checkpoint.weights import iter_weights
from braid.core.errors import CheckpointError
from braid.core.experts import ExpertLayout, ExpertShape

MUTANTS = 300
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)


def mutate(data: bytes, header: int, rng: random.Random) -> bytes:
    """One to three edits, most of them in the header: bytes, eight-byte numbers, a cut, a doubled piece."""
    mutant = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        if not mutant:
            break
        place = rng.randrange(header if rng.random() < 0.9 else len(mutant))
        place = min(place, max(len(mutant) - 9, 0))
        kind = rng.randrange(5)
        if kind == 0:
            mutant[place] = rng.choice(INTERESTING)
        elif kind == 1:
            mutant[place] ^= 1 << rng.randrange(8)
        elif kind == 2:
            mutant[place : place + 8] = rng.choice((2**64 - 1, 2**63, 2**31, 2**20, 0)).to_bytes(8, "little")
        elif kind == 3:
            del mutant[place : place + rng.choice((1, 8, 100, len(mutant)))]
        else:
            mutant[place:place] = mutant[place : place + rng.randint(1, 40)]
    return bytes(mutant)


def try_to_load(path: Path) -> bool:
    """Whether the mutant is still a checkpoint; anything but a CheckpointError escapes."""
    try:
        for _name, tensor in iter_weights(open_checkpoint(local_source("mutant", path)), torch.float32):
            tensor.reshape(-1)[:1].sum()
    except CheckpointError:
        return False
    return True


@pytest.mark.parametrize("family", ["llama", "deepseek2"])
def test_gguf_mutants(family: str, write_gguf: Any, tmp_path: Path) -> None:
    written = write_gguf(family, dtype="Q8_0", split_kv_b=family == "deepseek2")
    data = written.path.read_bytes()
    header = data.rindex(b".weight") + 40
    rng, loaded, path = random.Random(1), 0, tmp_path / "mutant.gguf"
    for _ in range(MUTANTS):
        path.write_bytes(mutate(data, header, rng))
        loaded += try_to_load(path)
    assert 0 < loaded < MUTANTS


def test_safetensors_mutants(hf_folder: Any, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "model")
    file = folder / "model.safetensors"
    data = file.read_bytes()
    rng, loaded = random.Random(2), 0
    for _ in range(MUTANTS):
        file.write_bytes(mutate(data, int.from_bytes(data[:8], "little") + 8, rng))
        loaded += try_to_load(folder)
    assert 0 < loaded < MUTANTS


def test_expert_file_mutants(tmp_path: Path) -> None:
    shape, layout, path = ExpertShape(2, 3, 1), ExpertLayout("int8", 32, 32), tmp_path / "experts.braid"
    with ExpertWriter(path, shape, layout, source="a test") as writer:
        for expert in range(shape.total):
            writer.write(expert, bytes([expert]) * layout.record_bytes)
        start = writer.commit().start
    data, buffer = path.read_bytes(), bytearray(layout.record_bytes)
    rng, read = random.Random(4), 0
    for _ in range(MUTANTS):
        path.write_bytes(mutate(data, start, rng))
        try:
            file = open_experts(path)
            for expert in range(shape.total):
                file.read_into(expert, buffer)
                assert set(buffer) == {expert}
                read += 1
        except CheckpointError:
            continue
    assert 0 < read < MUTANTS * shape.total


def test_config_mutants(hf_folder: Any, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "model")
    file = folder / "config.json"
    data = file.read_bytes()
    rng = random.Random(3)
    for _ in range(MUTANTS):
        file.write_bytes(mutate(data, len(data), rng))
        try_to_load(folder)
