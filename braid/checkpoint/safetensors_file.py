"""Headers of ``.safetensors`` files, checked in full before any number is looked at.

Format: 8 bytes little-endian header length, a JSON header ``{name: {dtype, shape, data_offsets}}``, then the numbers
(https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from braid.checkpoint.tensors import ENCODINGS, Extent, TensorInfo
from braid.core.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSION = 2**40
_READABLE = ("F32", "F16", "BF16")


class SafetensorsHeader(NamedTuple):
    """What a file holds: tensors by name in the order of their offsets, and the free-form metadata."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, Any]
    data_start: int
    size_bytes: int


class Layout(NamedTuple):
    """One tensor to be stored: its name, safetensors dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * ENCODINGS[self.dtype].block_bytes


def header_bytes(layout: Iterable[Layout], metadata: Mapping[str, str]) -> bytes:
    """What comes before the numbers of tensors in this order; they begin at a multiple of 64 bytes."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    offset = 0
    for item in layout:
        end = offset + item.num_bytes
        entries[item.name] = {"dtype": item.dtype, "shape": item.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(entries).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return struct.pack("<Q", len(text)) + text


def read_header(path: Path) -> SafetensorsHeader:
    """Read and check the header of one file.

    Raises:
        CheckpointError: naming the file, and the tensor where one is at fault.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            raw = _read_raw(path, file.read(8), size)
            text = file.read(raw)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    entries = _parse(path, text)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"{path}: __metadata__ is not an object")
    start = 8 + raw
    tensors = [_tensor(path, name, entry, start, size) for name, entry in entries.items()]
    tensors.sort(key=lambda info: (info.extents[0].offset, info.extents[0].num_bytes))
    _check_overlap(path, tensors, start, size)
    return SafetensorsHeader({info.name: info for info in tensors}, metadata, start, size)


def _read_raw(path: Path, prefix: bytes, size: int) -> int:
    if len(prefix) < 8:
        raise CheckpointError(f"{path}: truncated: {size} bytes is too short for a safetensors file")
    (length,) = struct.unpack("<Q", prefix)
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(
            f"{path}: header of {length} bytes does not fit (file {size} bytes, limit {MAX_HEADER_BYTES}); "
            "the file is truncated or not a safetensors file"
        )
    return int(length)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice!r} occurs twice")
    return result


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is not valid JSON: {error}") from error
    if not isinstance(entries, dict):
        raise CheckpointError(f"{path}: the header is not a JSON object")
    return entries


def _whole(value: object, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= limit


def _tensor(path: Path, name: str, entry: object, start: int, size: int) -> TensorInfo:
    where = f"{path}: tensor {name!r}"
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where}: its header entry is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if dtype not in _READABLE:
        raise CheckpointError(f"{where}: dtype {dtype!r} is not supported; supported: {', '.join(_READABLE)}")
    if not (isinstance(shape, list) and all(_whole(dim, MAX_DIMENSION) for dim in shape) and len(shape) <= 8):
        raise CheckpointError(f"{where}: shape {str(shape)[:80]} is not a list of sizes")
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(_whole(end, size) for end in offsets)):
        raise CheckpointError(
            f"{where}: data_offsets {str(offsets)[:80]} do not lie in the file ({size} bytes); is it truncated?"
        )
    begin, end = offsets
    needed = prod(shape) * ENCODINGS[dtype].block_bytes
    if end - begin != needed:
        raise CheckpointError(
            f"{where}: {dtype} of shape {shape} needs {needed} bytes, its offsets hold {end - begin}"
        )
    if start + end > size:
        raise CheckpointError(
            f"{where}: ends at byte {start + end}, the file has {size}: it is truncated or corrupt"
        )
    extent = Extent(path, start + begin, end - begin, dtype, tuple(shape))
    return TensorInfo(name=name, shape=tuple(shape), extents=(extent,))


def _check_overlap(path: Path, tensors: list[TensorInfo], start: int, size: int) -> None:
    end = start
    for info in tensors:
        extent = info.extents[0]
        if extent.num_bytes and extent.offset < end:
            raise CheckpointError(f"{path}: tensor {info.name!r}: its bytes overlap with another tensor's")
        end = max(end, extent.offset + extent.num_bytes)
    if end != size:
        raise CheckpointError(f"{path}: {size - end} bytes belong to no tensor: the file is damaged")
