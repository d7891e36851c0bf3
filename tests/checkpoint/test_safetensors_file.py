"""Headers that lie are refused, with the file and the tensor named."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from braid.checkpoint.safetensors_file import read_header
from braid.core.errors import CheckpointError

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]},
}


def write(path: Path, header: Any, data: int = 24) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data))
    return path


def test_good_header(tmp_path: Path) -> None:
    header = read_header(write(tmp_path / "x.safetensors", {"__metadata__": {"format": "pt"}} | GOOD))
    assert list(header.tensors) == ["a", "b"]
    assert header.tensors["b"].shape == (4,)
    assert header.metadata == {"format": "pt"}
    extent = header.tensors["b"].extents[0]
    assert (extent.offset - header.data_start, extent.num_bytes, extent.dtype) == (16, 8, "BF16")


BAD = {
    "beyond the end": (GOOD | {"b": {"dtype": "BF16", "shape": [400], "data_offsets": [16, 816]}}, "'b'"),
    "size and shape differ": (
        GOOD | {"b": {"dtype": "BF16", "shape": [5], "data_offsets": [16, 24]}},
        "needs 10",
    ),
    "overlap": (GOOD | {"b": {"dtype": "BF16", "shape": [8], "data_offsets": [8, 24]}}, "overlap"),
    "unsupported type": (
        GOOD | {"b": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [16, 24]}},
        "F8_E4M3",
    ),
    "negative size": (GOOD | {"b": {"dtype": "BF16", "shape": [-4], "data_offsets": [16, 24]}}, "shape"),
    "huge size": (GOOD | {"b": {"dtype": "BF16", "shape": [2**80, 0], "data_offsets": [16, 24]}}, "shape"),
    "offsets reversed": (GOOD | {"b": {"dtype": "BF16", "shape": [4], "data_offsets": [24, 16]}}, "'b'"),
    "offsets not whole": (GOOD | {"b": {"dtype": "BF16", "shape": [4], "data_offsets": [16.0, 24]}}, "'b'"),
    "not an object": (GOOD | {"b": 3}, "'b'"),
    "a list": ([1, 2], "not a JSON object"),
    "unowned bytes": ({"a": GOOD["a"]}, "belong to no tensor"),
    "twice": (b'{"a": 1, "a": 2}', "'a' occurs twice"),
    "not JSON": (b"{", "not valid JSON"),
    "not UTF-8": (b'{"\xff": 1}', "not valid JSON"),
    "deep nesting": (b"[" * 100_000, "not valid JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_header(case: str, tmp_path: Path) -> None:
    header, message = BAD[case]
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(write(tmp_path / "x.safetensors", header))
    assert "x.safetensors" in str(caught.value)


@pytest.mark.parametrize("length", [0, 4, 8, 20])
def test_truncated(length: int, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", GOOD)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"truncated|JSON"):
        read_header(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        read_header(tmp_path / "x.safetensors")
