"""GGUF headers: values, extents, and counts that a file cannot hold."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from braid.checkpoint import gguf_file
from braid.checkpoint.gguf_file import read_header
from braid.checkpoint.tensors import ENCODINGS
from braid.core.errors import CheckpointError

Edit = Callable[[bytearray], None]


def test_storage_types_are_the_librarys() -> None:
    kinds = gguf.GGMLQuantizationType
    for number, name in (gguf_file._TYPES | gguf_file._OTHER_TYPES).items():
        assert kinds(number).name == name
    for name, encoding in ENCODINGS.items():
        assert gguf.GGML_QUANT_SIZES[kinds[name]] == tuple(encoding)


def test_header_equals_the_librarys_reading(write_gguf: Any) -> None:
    written = write_gguf("qwen3moe", dtype="Q4_1", metadata={"a.flag": True, "a.text": "é"})
    header, reader = read_header(written.path), gguf.GGUFReader(written.path)
    for name, field in reader.fields.items():
        if not name.startswith("GGUF."):
            assert header.metadata[name] == field.contents(), name
    assert len(header.extents) == len(reader.tensors)
    for tensor in reader.tensors:
        extent = header.extents[tensor.name]
        assert (extent.offset, extent.num_bytes) == (tensor.data_offset, tensor.n_bytes)
        assert extent.shape == tuple(int(dim) for dim in tensor.shape[::-1])
        assert extent.dtype == tensor.tensor_type.name


def _put(offset: int, code: str, value: int) -> Edit:
    return lambda data: struct.pack_into("<" + code, data, offset, value)


def _cut(data: bytearray) -> None:
    del data[-40:]


def _rename(old: bytes, new: bytes) -> Edit:
    def edit(data: bytearray) -> None:
        place = data.index(old)
        data[place : place + len(new)] = new

    return edit


def _after(text: bytes, skip: int, code: str, value: int) -> Edit:
    def edit(data: bytearray) -> None:
        struct.pack_into("<" + code, data, data.rindex(text) + len(text) + skip, value)

    return edit


BAD: dict[str, tuple[Edit, str]] = {
    "magic": (_put(0, "I", 7), "not a GGUF file"),
    "version": (_put(4, "I", 9), "version 9"),
    "big endian": (_put(4, "I", 3 << 24), "big-endian"),
    "too many tensors": (_put(8, "Q", 2**62), "cannot fit"),
    "too many keys": (_put(16, "Q", 2**62), "cannot fit"),
    "more tensors than there are": (_put(8, "Q", 24), "tensor"),
    "long key": (_put(24, "Q", 2**60), "metadata key 0 is 1152921504606846976 bytes"),
    "truncated data": (_cut, "truncated or corrupt"),
    "tensor of unsupported type": (_after(b"output_norm.weight", 12, "I", 16), "IQ2_XXS is not supported"),
    "tensor of unknown type": (_after(b"output_norm.weight", 12, "I", 999), "number 999 is not supported"),
    "too many dimensions": (_after(b"output_norm.weight", 0, "I", 5), "5 dimensions"),
    "dimension zero": (_after(b"output_norm.weight", 4, "Q", 0), "not valid"),
    "huge dimension": (_after(b"output_norm.weight", 4, "Q", 2**63), "ends at byte"),
    "unaligned": (_after(b"output_norm.weight", 16, "Q", 7), "not a multiple of the alignment"),
    "overlap": (_after(b"output_norm.weight", 16, "Q", 0), "overlap"),
    "tensor twice": (_rename(b"blk.1.attn_q.weight", b"blk.0.attn_q.weight"), "occurs twice"),
    "array too long": (_after(b"tokenizer.ggml.tokens", 8, "Q", 2**50), "the limit is"),
    "array of arrays": (_after(b"tokenizer.ggml.tokens", 4, "I", 9), "array of unsupported type 9"),
    "unknown value type": (_after(b"tokenizer.ggml.tokens", 0, "I", 77), "unknown type 77"),
    "not UTF-8": (_rename(b"blk.1.attn_q.weight", b"\xff\xfe"), "UTF-8"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_header(case: str, write_gguf: Any) -> None:
    edit, message = BAD[case]
    path: Path = write_gguf().path
    data = bytearray(path.read_bytes())
    edit(data)
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(path)
    assert "tiny.gguf" in str(caught.value)


def test_empty_file(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").touch()
    with pytest.raises(CheckpointError, match="too short"):
        read_header(tmp_path / "x.gguf")
