"""Headers of ``.gguf`` files: metadata and tensor extents, checked against the file's size.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The ``gguf`` library's own reader is not used: it
trusts the counts of a file and builds an array per token (seconds for a usual vocabulary). Its dequantisation is
(``weights``).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from braid.checkpoint.tensors import ENCODINGS, Extent, encoded_bytes
from braid.core.errors import CheckpointError

GGUFMetadata = Mapping[str, Any]
"""Metadata key to python value: int, float, bool, str, or a list of one of them."""

MAGIC = b"GGUF"
MAX_STRING_BYTES = 2**24
MAX_ARRAY_LENGTH = 2**24
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 2**20
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TYPES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0"}
_TYPES |= {12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 30: "BF16"}
_OTHER_TYPES = {9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS"}
_OTHER_TYPES |= {
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
}
_OTHER_TYPES |= {27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"}


class GGUFHeader(NamedTuple):
    """Metadata, and the extents of tensors under their GGUF names; shapes are row-major (slowest dimension first)."""

    metadata: dict[str, Any]
    extents: dict[str, Extent]
    size_bytes: int


class _Cursor:
    """Reads little-endian values from bytes ``[0, len(data))`` and refuses to leave them."""

    __slots__ = ("data", "path", "position")

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.position = path, data, 0

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {what}")

    def take(self, count: int, what: str) -> int:
        """Claim ``count`` bytes; returns where they begin."""
        begin = self.position
        if count > len(self.data) - begin:
            raise self.fail(
                f"{what} needs {count} bytes at byte {begin} of {len(self.data)}: the file is truncated or corrupt"
            )
        self.position = begin + count
        return begin

    def number(self, code: str, what: str) -> Any:
        begin = self.take(struct.calcsize("<" + code), what)
        return struct.unpack_from("<" + code, self.data, begin)[0]

    def string(self, what: str) -> str:
        length = self.number("Q", what)
        if length > MAX_STRING_BYTES:
            raise self.fail(f"{what} is {length} bytes long, the limit is {MAX_STRING_BYTES}")
        begin = self.take(length, what)
        try:
            return self.data[begin : begin + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not valid UTF-8") from error

    def array(self, what: str) -> list[Any]:
        kind, count = self.number("I", what), self.number("Q", what)
        if count > MAX_ARRAY_LENGTH:
            raise self.fail(f"{what} has {count} elements, the limit is {MAX_ARRAY_LENGTH}")
        if kind == _STRING:
            return [self.string(what) for _ in range(count)]
        if kind not in _SCALARS:
            raise self.fail(f"{what} is an array of unsupported type {kind}")
        layout = f"<{count}{_SCALARS[kind]}"
        begin = self.take(struct.calcsize(layout), what)
        return list(struct.unpack_from(layout, self.data, begin))

    def value(self, what: str) -> Any:
        kind = self.number("I", what)
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            return self.array(what)
        if kind not in _SCALARS:
            raise self.fail(f"{what} has unknown type {kind}")
        return self.number(_SCALARS[kind], what)


def read_header(path: Path) -> GGUFHeader:
    """Read and check the header of one file.

    Raises:
        CheckpointError: naming the file, and the key or tensor at fault.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size < 24:
                raise CheckpointError(f"{path}: truncated: {size} bytes is too short for a GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(_Cursor(path, data))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


def _read(cursor: _Cursor) -> GGUFHeader:
    num_tensors, num_keys = _preamble(cursor)
    metadata: dict[str, Any] = {}
    for index in range(num_keys):
        key = cursor.string(f"metadata key {index}")
        if key in metadata:
            raise cursor.fail(f"metadata key {key!r} occurs twice")
        metadata[key] = cursor.value(f"metadata {key!r}")
    entries = [_entry(cursor, index) for index in range(num_tensors)]
    alignment = _alignment(cursor, metadata)
    start = -(-cursor.position // alignment) * alignment
    extents: dict[str, Extent] = {}
    for name, dtype, shape, offset in entries:
        if name in extents:
            raise cursor.fail(f"tensor {name!r} occurs twice")
        extents[name] = _extent(cursor, name, dtype, shape, offset, start, alignment)
    _check_overlap(cursor, extents)
    return GGUFHeader(metadata, extents, len(cursor.data))


def _preamble(cursor: _Cursor) -> tuple[int, int]:
    if cursor.data[:4] != MAGIC:
        raise cursor.fail("is not a GGUF file: it does not begin with 'GGUF'")
    cursor.take(4, "magic")
    version = cursor.number("I", "version")
    if version not in (2, 3):
        byte_order = " (big-endian files are not supported)" if version & 0xFFFF == 0 else ""
        raise cursor.fail(f"GGUF version {version} is not supported{byte_order}; supported: 2, 3")
    num_tensors, num_keys = cursor.number("Q", "tensor count"), cursor.number("Q", "metadata count")
    # A tensor entry takes at least 24 bytes, a metadata entry 13.
    if num_tensors * 24 + num_keys * 13 > len(cursor.data):
        raise cursor.fail(
            f"{num_tensors} tensors and {num_keys} metadata keys cannot fit in {len(cursor.data)} bytes"
        )
    return num_tensors, num_keys


def _entry(cursor: _Cursor, index: int) -> tuple[str, int, tuple[int, ...], int]:
    name = cursor.string(f"the name of tensor {index}")
    what = f"tensor {name!r}"
    num_dimensions = cursor.number("I", what)
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise cursor.fail(f"{what} has {num_dimensions} dimensions, must be 1 to {MAX_DIMENSIONS}")
    shape = tuple(cursor.number("Q", what) for _ in range(num_dimensions))
    return name, cursor.number("I", what), shape[::-1], cursor.number("Q", what)


def _alignment(cursor: _Cursor, metadata: dict[str, Any]) -> int:
    value = metadata.get("general.alignment", 32)
    if type(value) is not int or not 1 <= value <= MAX_ALIGNMENT or value & (value - 1):
        raise cursor.fail(
            f"general.alignment is {str(value)[:40]}, must be a power of two up to {MAX_ALIGNMENT}"
        )
    return value


def _extent(
    cursor: _Cursor, name: str, kind: int, shape: tuple[int, ...], offset: int, start: int, alignment: int
) -> Extent:
    what = f"tensor {name!r}"
    dtype = _TYPES.get(kind)
    if dtype is None:
        known = _OTHER_TYPES.get(kind, f"number {kind}")
        raise cursor.fail(f"{what}: type {known} is not supported; supported: {', '.join(ENCODINGS)}")
    if min(shape) < 1 or shape[-1] % ENCODINGS[dtype].block_size:
        raise cursor.fail(
            f"{what}: shape {list(shape)} is not valid for {dtype}: "
            f"rows are multiples of {ENCODINGS[dtype].block_size}"
        )
    if offset % alignment:
        raise cursor.fail(f"{what}: offset {offset} is not a multiple of the alignment {alignment}")
    num_bytes = encoded_bytes(shape, dtype)
    end = start + offset + num_bytes
    if end > len(cursor.data):
        raise cursor.fail(
            f"{what} ({prod(shape)} numbers) ends at byte {end}, the file has {len(cursor.data)}: "
            "it is truncated or corrupt"
        )
    return Extent(cursor.path, start + offset, num_bytes, dtype, shape)


def _check_overlap(cursor: _Cursor, extents: dict[str, Extent]) -> None:
    end = 0
    for name, extent in sorted(extents.items(), key=lambda item: item[1].offset):
        if extent.offset < end:
            raise cursor.fail(f"tensor {name!r}: its bytes overlap with another tensor's")
        end = extent.offset + extent.num_bytes
