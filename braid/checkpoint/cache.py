"""Converted GGUF weights kept on disk, so that a second start maps them instead of dequantising.

One safetensors file per (GGUF path, dtype) under ``cache_dir()/converted``. Its metadata names the source's size and
time and the converter's version (else it is stale), and a CRC-32 of the whole file (else it is corrupt). A file appears
by rename, so processes that convert at the same time do not disturb each other, and a reader keeps what it has mapped.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from braid.checkpoint.safetensors_file import Layout, SafetensorsHeader, header_bytes, read_header
from braid.checkpoint.tensors import Extent
from braid.core.env import cache_dir
from braid.core.errors import CheckpointError

logger = logging.getLogger(__name__)

CONVERTER_VERSION = 1
"""Raise it whenever the same GGUF file would be converted to other numbers or names."""

_CHUNK_BYTES = 2**24
_SPARE_BYTES = 2**28


def converted_dir() -> Path:
    """The folder of all converted weights."""
    return cache_dir() / "converted"


def experts_dir() -> Path:
    """The folder of expert files that were made for checkpoints elsewhere."""
    return cache_dir() / "experts"


class ConvertedCache:
    """The place of one converted model.

    Args:
        files: the GGUF parts it is made from.
        dtype: safetensors name of the matrices' type.
        names: the tensors of it that are kept, where that is not all.
    """

    def __init__(self, files: Sequence[Path], dtype: str, names: Sequence[str] | None = None) -> None:
        first = files[0].resolve()
        some = "" if names is None else "\n".join(("", *names))
        place = hashlib.sha256(f"{first}\n{dtype}{some}".encode()).hexdigest()[:16]
        # The link's name: a downloaded file itself is named by its hash.
        self.path = converted_dir() / f"{files[0].stem[:80]}-{dtype.lower()}-{place}.safetensors"
        self._identity = json.dumps([CONVERTER_VERSION, dtype, [identify(file) for file in files]])
        self._source = str(files[0])

    def find(self) -> dict[str, Extent] | None:
        """The stored tensors, checked against their checksum; None (logged where it is news) if they are no use."""
        try:
            if not self.path.exists():
                return None
            header = read_header(self.path)
            if header.metadata.get("identity") != self._identity:
                logger.warning("%s is stale (its source changed): converting again", self.path)
                return None
            if header.metadata.get("crc32") != _checksum(self.path, header):
                raise CheckpointError(f"{self.path}: its checksum is wrong")
        except (CheckpointError, OSError) as error:
            logger.warning("The cache of converted weights is damaged, converting again: %s", error)
            return None
        return {name: info.extents[0] for name, info in header.tensors.items()}

    def writer(self, layout: Sequence[Layout]) -> CacheWriter:
        """A writer for these tensors, in this order."""
        return CacheWriter(self.path, layout, {"identity": self._identity, "source": self._source})


class CacheWriter:
    """Writes tensors beside their use; on any trouble with the disk it warns once and lets the caller go on."""

    def __init__(self, path: Path, layout: Sequence[Layout], metadata: dict[str, str]) -> None:
        self._path = path
        self._layout = layout
        self._metadata = metadata
        self._crc = 0
        self._file: IO[bytes] | None = None

    def __enter__(self) -> CacheWriter:
        try:
            self._open()
        except OSError as error:
            self._give_up(error)
        return self

    def __exit__(self, *exc: object) -> None:
        self._discard()

    def _open(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        needed = sum(item.num_bytes for item in self._layout)
        free = shutil.disk_usage(self._path.parent).free
        if free < needed + _SPARE_BYTES:
            raise OSError(f"{needed} bytes are needed beside a reserve of {_SPARE_BYTES}, {free} are free")
        self._file = tempfile.NamedTemporaryFile(  # noqa: SIM115 (closed by commit or __exit__)
            dir=self._path.parent, prefix=f".{self._path.stem}-", suffix=".tmp", delete=False
        )
        header = self._header(0)
        self._file.write(header)
        self._crc = zlib.crc32(header)

    def _header(self, checksum: int) -> bytes:
        """The checksum is that of the file with 0 in its place; its width is fixed, so it can be put in last."""
        return header_bytes(self._layout, {"crc32": f"{checksum:08x}", **self._metadata})

    def write(self, data: memoryview) -> None:
        """The next tensor's bytes."""
        if self._file is None:
            return
        try:
            self._file.write(data)
            self._crc = zlib.crc32(data, self._crc)
        except OSError as error:
            self._give_up(error)

    def commit(self) -> None:
        """All tensors are written: make them visible."""
        if self._file is None:
            return
        try:
            self._file.seek(0)
            self._file.write(self._header(self._crc))
            self._file.flush()
            size = os.fstat(self._file.fileno()).st_size
            os.replace(self._file.name, self._path)
        except OSError as error:
            self._give_up(error)
            return
        self._file.close()
        self._file = None
        logger.info("Kept the converted weights (%d bytes on disk) in %s", size, self._path)

    def _give_up(self, error: OSError) -> None:
        logger.warning("Converted weights are not kept on disk (%s): %s", self._path, error)
        self._discard()

    def _discard(self) -> None:
        if self._file is None:
            return
        file, self._file = self._file, None
        with contextlib.suppress(OSError):
            os.unlink(file.name)
        with contextlib.suppress(OSError):
            file.close()


def identify(file: Path) -> list[object]:
    """What tells a file from another and from its own later state."""
    status = file.resolve().stat()
    return [str(file.resolve()), status.st_size, status.st_mtime_ns]


def _checksum(path: Path, header: SafetensorsHeader) -> str:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        stored = f'"crc32": "{header.metadata.get("crc32")}"'.encode()
        crc = zlib.crc32(data[: header.data_start].replace(stored, b'"crc32": "00000000"', 1))
        view = memoryview(data)
        for begin in range(header.data_start, header.size_bytes, _CHUNK_BYTES):
            crc = zlib.crc32(view[begin : begin + _CHUNK_BYTES], crc)
        view.release()
    return f"{crc:08x}"
