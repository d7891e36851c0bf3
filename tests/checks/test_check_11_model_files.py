"""Check 11: model files that lie about their extents, counts and depth are refused, and so are mutants, or they load.

A few hundred mutants of each kind are in ``tests/checkpoint/test_fuzz.py``; thousands of them run from here, at night.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from ..checkpoint import test_fuzz as mutants
from ..checkpoint.conftest import hf_folder, hf_weights, private_cache, write_gguf

__all__ = ["hf_folder", "hf_weights", "private_cache", "write_gguf"]
MANY = 2_500
"""Of each of four kinds."""


def mutate_all(write_gguf: Any, hf_folder: Any, folder: Path) -> None:
    for family in ("llama", "deepseek2"):
        mutants.test_gguf_mutants(family, write_gguf, folder)
    for number, check in enumerate((mutants.test_safetensors_mutants, mutants.test_config_mutants)):
        inner = folder / str(number)
        inner.mkdir()
        check(hf_folder, inner)


def _safetensors(header: object, *, length: int | None = None, data: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}}


SAFETENSORS = {
    "empty": b"",
    "half a length": b"\x10\x00",
    "a header of 2^63 bytes": _safetensors({}, length=2**63),
    "a header beyond the file": _safetensors({}, length=1000),
    "no JSON": _safetensors(b"{" * 30),
    "nested 100,000 deep": _safetensors(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "data beyond the file": _safetensors(_tensor("F32", [1000], 0, 4000)),
    "negative offsets": _safetensors(_tensor("F32", [1], -4, 0)),
    "offsets that turn back": _safetensors(_tensor("F32", [1], 8, 4)),
    "a shape that overflows": _safetensors(_tensor("F32", [2**32, 2**32], 0, 16)),
    "a negative shape": _safetensors(_tensor("F32", [-4], 0, 16)),
    "a shape that is none": _safetensors(_tensor("F32", ["4"], 0, 16)),  # type: ignore[list-item]
    "another size than its shape's": _safetensors(_tensor("F32", [3], 0, 16)),
    "an unknown type": _safetensors(_tensor("X9", [4], 0, 16)),
}
_HEAD = b"GGUF" + struct.pack("<I", 3)
_KEY = struct.pack("<Q", 1) + b"k"
GGUF = {
    "empty": b"",
    "a magic alone": b"GGUF",
    "another version": b"GGUF" + struct.pack("<IQQ", 99, 0, 0),
    "2^63 tensors": _HEAD + struct.pack("<QQ", 2**63, 0),
    "2^63 keys": _HEAD + struct.pack("<QQ", 0, 2**63),
    "a key of 2^63 bytes": _HEAD + struct.pack("<QQQ", 0, 1, 2**63) + b"x" * 64,
    "an array of 2^62 numbers": _HEAD + struct.pack("<QQ", 0, 1) + _KEY + struct.pack("<IIQ", 9, 10, 2**62),
    "arrays in arrays": _HEAD
    + struct.pack("<QQ", 0, 1)
    + _KEY
    + struct.pack("<I", 9)
    + struct.pack("<IQ", 9, 1) * 50_000,
    "an unknown type": _HEAD + struct.pack("<QQ", 0, 1) + _KEY + struct.pack("<I", 77) + bytes(64),
    "a tensor of 4,000,000,000 dimensions": _HEAD
    + struct.pack("<QQ", 1, 0)
    + _KEY
    + struct.pack("<I", 2**32 - 1),
}


@pytest.mark.parametrize("name", GGUF)
def test_gguf_files_that_lie_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(GGUF[name])
    assert not mutants.try_to_load(path)


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_files_that_lie_are_refused(name: str, hf_folder: Any, tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(SAFETENSORS[name])
    assert not mutants.try_to_load(folder)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_mutants(
    write_gguf: Any, hf_folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutants, "MUTANTS", MANY)
    mutate_all(write_gguf, hf_folder, tmp_path)
