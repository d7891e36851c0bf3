"""Where the numbers of a checkpoint lie: plain descriptions, no numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal, NamedTuple

Transform = Literal["none", "unpermute", "minus_one", "mla_kv_b"]
"""What turns the stored numbers into Hugging Face's convention (see ``weights``)."""


class Encoding(NamedTuple):
    """A storage type: ``block_size`` numbers take ``block_bytes`` bytes."""

    block_size: int
    block_bytes: int


ENCODINGS: Mapping[str, Encoding] = {
    "F32": Encoding(1, 4),
    "F16": Encoding(1, 2),
    "BF16": Encoding(1, 2),
    "Q4_0": Encoding(32, 18),
    "Q4_1": Encoding(32, 20),
    "Q5_0": Encoding(32, 22),
    "Q5_1": Encoding(32, 24),
    "Q8_0": Encoding(32, 34),
    "Q4_K": Encoding(256, 144),
    "Q5_K": Encoding(256, 176),
    "Q6_K": Encoding(256, 210),
}
"""The storage types that Braid reads (GGML's names and layouts)."""


class Extent(NamedTuple):
    """Bytes ``[offset, offset + num_bytes)`` of ``file`` that hold a row-major array of ``shape``."""

    file: Path
    offset: int
    num_bytes: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorInfo:
    """One tensor under its Hugging Face name.

    Args:
        shape: the shape after ``transform``.
        extents: where the stored numbers lie; one, except for ``mla_kv_b`` (key part, value part).
        transform: how the stored numbers become Hugging Face's.
        num_heads: heads of the stored rows, for ``unpermute``.
    """

    name: str
    shape: tuple[int, ...]
    extents: tuple[Extent, ...]
    transform: Transform = "none"
    num_heads: int = 1

    @property
    def dtype(self) -> str:
        """The storage type: one of ``ENCODINGS``."""
        return self.extents[0].dtype

    @property
    def file(self) -> Path:
        return self.extents[0].file

    @property
    def num_bytes(self) -> int:
        return sum(extent.num_bytes for extent in self.extents)

    @property
    def num_elements(self) -> int:
        return prod(self.shape)


def encoded_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a row-major array of ``shape`` (at least one dimension for block types) stored as ``dtype``."""
    encoding = ENCODINGS[dtype]
    return prod(shape) // encoding.block_size * encoding.block_bytes
