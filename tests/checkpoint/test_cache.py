"""Converted weights on disk: used when good, rebuilt when stale or damaged, done without when the disk is full."""

from __future__ import annotations

import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from braid.checkpoint.cache import CacheWriter, converted_dir
from braid.checkpoint.open import Checkpoint
from braid.checkpoint.weights import iter_weights

Open = Callable[[Path], Checkpoint]


def load(checkpoint: Checkpoint, dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in iter_weights(checkpoint, dtype)}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def kept() -> list[Path]:
    return sorted(converted_dir().iterdir()) if converted_dir().exists() else []


@pytest.fixture
def checkpoint(write_gguf: Any, open_path: Open) -> Checkpoint:
    return open_path(write_gguf("qwen2moe", dtype="Q4_1").path)


def forbid_conversion(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr("braid.checkpoint.weights._convert", fail)


def test_second_load_maps_what_the_first_converted(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first = load(checkpoint)
    (file,) = kept()
    assert f"{file.stat().st_size} bytes on disk" in caplog.text
    assert same(load_file(file), first)  # the library reads it too
    forbid_conversion(monkeypatch)
    assert same(load(checkpoint), first)


def test_each_dtype_has_its_own(checkpoint: Checkpoint) -> None:
    load(checkpoint), load(checkpoint, torch.float32)
    assert len(kept()) == 2


def test_nothing_is_kept_where_nothing_is_converted(write_gguf: Any, open_path: Open, hf_folder: Any) -> None:
    load(open_path(write_gguf("qwen2").path), torch.float32)
    assert kept() == []


@pytest.mark.parametrize("place", [-1, -1000, 200, 3])
def test_damage_is_noticed(place: int, checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    first = load(checkpoint)
    (file,) = kept()
    data = bytearray(file.read_bytes())
    data[place] ^= 0x10
    file.write_bytes(data)
    assert same(load(checkpoint), first)
    assert "converting again" in caplog.text
    assert kept() == [file]
    caplog.clear()
    assert same(load(checkpoint), first)
    assert caplog.text == ""


def test_truncation_is_noticed(checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    first = load(checkpoint)
    (file,) = kept()
    file.write_bytes(file.read_bytes()[:-7])
    assert same(load(checkpoint), first)
    assert "damaged" in caplog.text


def test_changed_source_makes_it_stale(
    write_gguf: Any, open_path: Open, caplog: pytest.LogCaptureFixture
) -> None:
    written = write_gguf("qwen2", dtype="Q8_0")
    load(open_path(written.path))
    write_gguf("qwen2", dtype="Q8_0", seed=1)
    os.utime(written.path, ns=(1, 1))
    second = load(open_path(written.path))
    assert "stale" in caplog.text
    expected = torch.from_numpy(written.weights["model.embed_tokens.weight"])
    assert not torch.allclose(second["model.embed_tokens.weight"].float(), expected, atol=0.1)
    assert len(kept()) == 1


def test_abandoned_load_leaves_nothing(checkpoint: Checkpoint) -> None:
    weights = iter_weights(checkpoint, torch.bfloat16)
    next(weights)
    assert len(kept()) == 1  # its temporary file
    weights.close()  # type: ignore[attr-defined]
    assert kept() == []


def test_full_disk_is_served_without(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = load(checkpoint)
    shutil.rmtree(converted_dir())
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    assert same(load(checkpoint), first)
    assert "not kept on disk" in caplog.text
    assert kept() == []


def test_disk_that_fills_midway_is_served_without(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.name = file, file.name

        def write(self, data: memoryview) -> None:
            if self.file.tell() > 20_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            self.file.write(data)

        def close(self) -> None:
            self.file.close()

    opened = CacheWriter._open

    def open_full(writer: CacheWriter) -> None:
        opened(writer)
        writer._file = Full(writer._file)  # type: ignore[assignment]

    monkeypatch.setattr(CacheWriter, "_open", open_full)
    weights = load(checkpoint)
    assert weights.keys() == checkpoint.tensors.keys()
    assert caplog.text.count("No space left on device") == 1
    assert kept() == []


def test_unwritable_folder_is_served_without(
    checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture
) -> None:
    converted_dir().parent.mkdir(parents=True)
    converted_dir().write_text("a file where the folder should be")
    assert load(checkpoint).keys() == checkpoint.tensors.keys()
    assert "not kept on disk" in caplog.text


def test_two_at_once_do_not_disturb_each_other(checkpoint: Checkpoint) -> None:
    one, two = iter_weights(checkpoint, torch.bfloat16), iter_weights(checkpoint, torch.bfloat16)
    left: dict[str, torch.Tensor] = {}
    right: dict[str, torch.Tensor] = {}
    for (name, tensor), (other, twin) in zip(one, two, strict=True):
        left[name], right[other] = tensor.clone(), twin.clone()
    assert same(left, right)
    assert len(kept()) == 1
    assert same(load(checkpoint), left)
