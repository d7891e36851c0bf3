"""A trace's file, and what its beginning tells about its format."""

from __future__ import annotations

import csv
import gzip
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from braid.lab.table import TraceError

_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_PARQUET = b"PAR1"
_HEAD_LINES = 100
NOT_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises where there is no JSON, or nested far too deeply."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file in memory, unpacked.

    Args:
        path: where it is.
        data: its bytes, unpacked, without a byte order mark.
        sha256: of the file as it lies on disk.
    """

    path: Path
    data: bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class Head:
    """What a format is told by: the header cells of a CSV, or the first JSON object.

    Args:
        columns: header cells, blanks trimmed; empty for JSON.
        first: the first object; for a file that is one list, the list's first object. Empty for CSV.
        whole: the file is one JSON value, and this is it; None for lines.
        is_parquet: the file begins as parquet does.
    """

    columns: tuple[str, ...] = ()
    first: Mapping[str, Any] = field(default_factory=dict)
    whole: Any = None
    is_parquet: bool = False

    def describe(self) -> str:
        """What was seen, for an error."""
        if self.columns:
            return "columns " + _listed(self.columns)
        if self.first:
            return "JSON keys " + _listed(tuple(self.first))
        return "no header and no JSON object"


def open_source(path: Path) -> Source:
    """Read ``path`` whole, unpacking gzip.

    Raises:
        TraceError: it cannot be read, is empty, or its gzip data is broken.
    """
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw.startswith(_GZIP) else raw
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (EOFError, zlib.error) as error:
        raise TraceError(f"{path}: its gzip data is cut or damaged: {error}") from None
    if not data.startswith(_PARQUET):
        data = data.removeprefix(_BOM).lstrip()
    if not data:
        raise TraceError(f"{path}: is empty")
    return Source(path, data, hashlib.sha256(raw).hexdigest())


def head_of(data: bytes) -> Head:
    """Look at the beginning only, unless the file is one JSON value."""
    if data.startswith(_PARQUET):
        return Head(is_parquet=True)
    start = data[:64].lstrip()[:1]
    if start not in (b"{", b"["):
        return Head(columns=_header(data))
    for line in data.split(b"\n", _HEAD_LINES)[:_HEAD_LINES]:
        value = _decoded(line)
        if isinstance(value, dict) and value:
            only = data.strip() == line.strip()
            return Head(first=value, whole=value if only else None)
    return _whole_head(data)


def _whole_head(data: bytes) -> Head:
    whole = _decoded(data)
    if isinstance(whole, dict):
        return Head(first=whole, whole=whole)
    if isinstance(whole, list):
        first = next((entry for entry in whole if isinstance(entry, dict)), {})
        return Head(first=first, whole=whole)
    return Head()


def _header(data: bytes) -> tuple[str, ...]:
    line = data[:65_536].split(b"\n", 1)[0].decode("utf-8", "replace").strip("\r")
    return tuple(cell.strip() for cell in csv_cells(line))


def csv_cells(line: str) -> list[str]:
    """One line of CSV; what no quoting rule explains is taken apart at the commas."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return line.split(",")


def _decoded(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except NOT_JSON:
        return None


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:20])
    return shown + (f" and {len(names) - 20} more" if len(names) > 20 else "")
