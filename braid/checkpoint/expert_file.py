"""The file of a model's routed experts: every expert one record, read straight to where it is computed with. No torch.

``experts.braid`` is a header and then one record per expert, by id, each at a multiple of a page. The header:

    8 bytes   ``BRAIDEXP``
    4 x u32   version, bytes of JSON, number of records, CRC-32 of the header (all of it with 0 in this place)
    JSON      shape, layout, what it was made from
    u32 each  CRC-32 of the records
    zeros     to the page where record 0 begins

All numbers are little-endian. How the numbers of an expert lie in its record: `core.experts.ExpertLayout`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import shutil
import struct
import tempfile
import zlib
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from braid.core.errors import CheckpointError
from braid.core.experts import PAGE, ExpertLayout, ExpertShape

EXPERT_FILE = "experts.braid"
"""Its name in a model's folder."""
MAGIC = b"BRAIDEXP"
VERSION = 1
MAX_JSON_BYTES = 2**16
MAX_RECORDS = 2**20
MAX_SIZE = 2**24
Record = bytes | bytearray | memoryview | mmap.mmap
"""What holds the bytes of a record."""
_FIXED = struct.Struct("<8s4I")
_ACCESS_MODE = 0o644


class OpenedFile(NamedTuple):
    """A descriptor for reading, the caller's to close; ``direct``: reads of it go past the page cache."""

    descriptor: int
    direct: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertFile:
    """An expert file whose header was checked.

    Args:
        source: what it was made from, for people.
        identity: what tells its maker whether it is stale; empty where nobody asks.
        is_random: its numbers are random: made for measuring, of no use for text.
        start: byte of record 0.
        checksums: CRC-32 of every record.
    """

    path: Path
    shape: ExpertShape
    layout: ExpertLayout
    source: str
    identity: str
    is_random: bool
    start: int
    checksums: array[int]

    @property
    def size_bytes(self) -> int:
        return self.start + self.shape.total * self.layout.record_bytes

    def offset(self, expert: int) -> int:
        """Where the record of ``expert`` begins: a multiple of a page."""
        assert 0 <= expert < self.shape.total, expert
        return self.start + expert * self.layout.record_bytes

    def crc(self, expert: int) -> int:
        """``zlib.crc32`` of the record."""
        return self.checksums[expert]

    def name(self, expert: int) -> str:
        """The record, for messages."""
        layer = self.shape.layer_of(expert)
        return f"record {expert} (expert {expert % self.shape.per_layer} of MoE layer {layer})"

    def check_model(self, shape: ExpertShape, hidden: int, size: int) -> None:
        """Raise unless these are the experts of a model of that shape.

        Raises:
            CheckpointError: naming both shapes.
        """
        own, wanted = (self.shape, self.layout.hidden, self.layout.size), (shape, hidden, size)
        if own != wanted:
            raise CheckpointError(
                f"{self.path}: holds experts of another model: {_describe(*own)}; the model has {_describe(*wanted)}"
            )

    def open_file(self, direct: bool) -> OpenedFile:
        """Open for reading; with ``direct`` past the page cache, where the file system can (``OpenedFile`` says).

        Raises:
            CheckpointError: it is gone, or its size changed.
        """
        try:
            descriptor = self._open_direct() if direct else None
            opened = OpenedFile(self._open(), False) if descriptor is None else OpenedFile(descriptor, True)
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if os.fstat(opened.descriptor).st_size != self.size_bytes:
            os.close(opened.descriptor)
            raise CheckpointError(f"{self.path}: its size changed since it was opened")
        return opened

    def _open(self, flags: int = 0) -> int:
        return os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | flags)

    def _open_direct(self) -> int | None:
        """Some file systems refuse at open, others at the first read, so one page is read to know."""
        try:
            descriptor = self._open(os.O_DIRECT)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                return None
            raise
        try:
            with mmap.mmap(-1, PAGE) as page:
                if os.preadv(descriptor, [page], self.start) == PAGE:
                    return descriptor
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                os.close(descriptor)
                raise
        os.close(descriptor)
        return None

    def read_into(self, expert: int, buffer: Record) -> None:
        """Read one record through the page cache and check it.

        Args:
            buffer: writable, exactly ``layout.record_bytes`` long.

        Raises:
            CheckpointError: the record is cut off or was altered, or the file cannot be read.
        """
        view = memoryview(buffer).cast("B")
        assert len(view) == self.layout.record_bytes, (len(view), self.layout)
        descriptor = self.open_file(direct=False).descriptor
        try:
            done = 0
            while done < len(view):
                count = os.preadv(descriptor, [view[done:]], self.offset(expert) + done)
                if count == 0:
                    raise CheckpointError(
                        f"{self.path}: {self.name(expert)} is cut off: the file is truncated"
                    )
                done += count
        except OSError as error:
            raise CheckpointError(
                f"{self.path}: {self.name(expert)} cannot be read: {error.strerror or error}"
            ) from error
        finally:
            os.close(descriptor)
        self.check_record(expert, view)

    def check_record(self, expert: int, record: Record) -> None:
        """Raise unless ``record`` is what was written.

        Raises:
            CheckpointError: naming the record.
        """
        if zlib.crc32(record) != self.crc(expert):
            raise CheckpointError(
                f"{self.path}: {self.name(expert)} does not match its checksum: the file was altered"
            )


def open_experts(path: Path) -> ExpertFile:
    """Read and check the header of an expert file, and the file's size; records are checked when they are read.

    Raises:
        CheckpointError: naming the file and what is wrong with it.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = file.read(_FIXED.size)
            made = _fixed(path, header)
            header += file.read(made.json_bytes + 4 * made.records)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(header) != _FIXED.size + made.json_bytes + 4 * made.records:
        raise CheckpointError(f"{path}: truncated: its header ends at byte {len(header)}")
    if zlib.crc32(_with_crc(header, 0)) != made.crc:
        raise CheckpointError(f"{path}: its header does not match its checksum: the file was altered")
    made_file = _described(path, header, made)
    if size != made_file.size_bytes:
        raise _wrong_size(made_file, size)
    return made_file


def _wrong_size(file: ExpertFile, size: int) -> CheckpointError:
    if size > file.size_bytes:
        return CheckpointError(f"{file.path}: has {size - file.size_bytes} bytes after its last record")
    first = max(0, size - file.start) // file.layout.record_bytes
    return CheckpointError(
        f"{file.path}: truncated in {file.name(first)}: {size} bytes, not {file.size_bytes}"
    )


class _Fixed(NamedTuple):
    json_bytes: int
    records: int
    crc: int


def _fixed(path: Path, header: bytes) -> _Fixed:
    if not header.startswith(MAGIC):
        raise CheckpointError(f"{path}: is not an expert file: it does not begin with {MAGIC.decode()!r}")
    if len(header) < _FIXED.size:
        raise CheckpointError(f"{path}: truncated: its header ends at byte {len(header)}")
    _, version, json_bytes, records, crc = _FIXED.unpack(header)
    if version != VERSION:
        raise CheckpointError(
            f"{path}: version {version} of the expert file is not supported; supported: {VERSION}. "
            "Make it again with `braid convert`"
        )
    if json_bytes > MAX_JSON_BYTES or not 1 <= records <= MAX_RECORDS:
        raise CheckpointError(f"{path}: its header is damaged: {json_bytes} bytes of JSON, {records} records")
    return _Fixed(json_bytes, records, crc)


def _described(path: Path, header: bytes, made: _Fixed) -> ExpertFile:
    end = _FIXED.size + made.json_bytes
    try:
        said: dict[str, Any] = json.loads(header[_FIXED.size : end])
        shape = ExpertShape(*(_count(said[name], MAX_RECORDS) for name in ExpertShape._fields))
        layout = ExpertLayout(
            said["format"], _count(said["hidden"], MAX_SIZE), _count(said["size"], MAX_SIZE)
        )
        texts = str(said["source"]), str(said["identity"]), said["random"] is True
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is damaged: {type(error).__name__}: {error}") from error
    if shape.total != made.records or shape.top_k > shape.per_layer:
        raise CheckpointError(f"{path}: its header is damaged: {made.records} records for {shape}")
    if said.get("record_bytes") != layout.record_bytes:
        raise CheckpointError(
            f"{path}: its records have {str(said.get('record_bytes'))[:20]} bytes, this version of Braid reads "
            f"records of {layout.record_bytes}. Make it again with `braid convert`"
        )
    source, identity, is_random = texts
    return ExpertFile(
        path=path,
        shape=shape,
        layout=layout,
        source=source,
        identity=identity,
        is_random=is_random,
        start=_pages(len(header)),
        checksums=_table(header[end:]),
    )


def _count(value: object, limit: int) -> int:
    if type(value) is not int or not 1 <= value <= limit:
        raise ValueError(f"{str(value)[:20]} is not a number from 1 to {limit}")
    return value


def _table(packed: bytes) -> array[int]:
    return array("L", struct.unpack(f"<{len(packed) // 4}I", packed))


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _with_crc(header: bytes, crc: int) -> bytes:
    return header[: _FIXED.size - 4] + struct.pack("<I", crc) + header[_FIXED.size :]


def _describe(shape: ExpertShape, hidden: int, size: int) -> str:
    return (
        f"{shape.layers} MoE layers of {shape.per_layer} experts, {shape.top_k} per token, "
        f"hidden size {hidden}, expert size {size}"
    )


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(f"{path}: cannot be read: {error.strerror or error}")


class ExpertWriter:
    """Writes an expert file, records in any order and from any thread; it appears whole, by rename, or not at all.

    Use it in a ``with`` block: without ``commit`` nothing stays.

    Args:
        path: where it shall appear; what was there is replaced.
        source, identity, is_random: as in `ExpertFile`.

    Raises:
        CheckpointError: the disk is too small, or cannot be written.
    """

    def __init__(
        self,
        path: Path,
        shape: ExpertShape,
        layout: ExpertLayout,
        *,
        source: str,
        identity: str = "",
        is_random: bool = False,
    ) -> None:
        if not 1 <= shape.total <= MAX_RECORDS:
            raise CheckpointError(f"{path}: {shape.total} experts do not fit, the limit is {MAX_RECORDS}")
        self.path, self.shape, self.layout = path, shape, layout
        self._said = json.dumps(
            shape._asdict()
            | {"format": layout.format, "hidden": layout.hidden, "size": layout.size}
            | {"record_bytes": layout.record_bytes, "random": is_random}
            | {"source": source[:1000], "identity": identity}
        ).encode()
        assert len(self._said) <= MAX_JSON_BYTES, len(self._said)
        self._crcs: list[int | None] = [None] * shape.total
        self._start = _pages(_FIXED.size + len(self._said) + 4 * shape.total)
        self._descriptor, self._temporary = self._create()

    @property
    def size_bytes(self) -> int:
        """Bytes of the file when it is whole."""
        return self._start + self.shape.total * self.layout.record_bytes

    def _create(self) -> tuple[int, str]:
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(folder, f".{self.path.name}-*.tmp")
            check_space(folder, self.size_bytes)
            made = tempfile.mkstemp(dir=folder, prefix=f".{self.path.name}-", suffix=".tmp")
            with contextlib.suppress(
                OSError
            ):  # held until the descriptor is closed, however its process ends
                fcntl.flock(made[0], fcntl.LOCK_SH)
            os.fchmod(made[0], _ACCESS_MODE)
        except OSError as error:
            raise self._unwritable(error) from error
        return made

    def __enter__(self) -> ExpertWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        """Without ``commit`` nothing stays."""
        if self._descriptor < 0:
            return
        descriptor, self._descriptor = self._descriptor, -1
        with contextlib.suppress(OSError):
            os.unlink(self._temporary)
        with contextlib.suppress(OSError):
            os.close(descriptor)

    def write(self, expert: int, record: Record) -> None:
        """Write the record of ``expert``: exactly ``layout.record_bytes``, once.

        Raises:
            CheckpointError: the disk is full or fails.
        """
        view = memoryview(record).cast("B")
        assert 0 <= expert < self.shape.total, expert
        assert self._crcs[expert] is None, f"record {expert} is written twice"
        assert len(view) == self.layout.record_bytes, (len(view), self.layout)
        self._put(view, self._start + expert * self.layout.record_bytes)
        self._crcs[expert] = zlib.crc32(view)

    def _put(self, view: memoryview, offset: int) -> None:
        try:
            while view:
                count = os.pwrite(self._descriptor, view, offset)
                view, offset = view[count:], offset + count
        except OSError as error:
            raise self._unwritable(error) from error

    def commit(self) -> ExpertFile:
        """Every record is written: write the header, bring all to the disk, and make it visible.

        Raises:
            CheckpointError: the disk is full or fails.
        """
        crcs = [crc for crc in self._crcs if crc is not None]
        assert len(crcs) == self.shape.total, f"{self.shape.total - len(crcs)} records were not written"
        fixed = _FIXED.pack(MAGIC, VERSION, len(self._said), len(crcs), 0)
        header = fixed + self._said + struct.pack(f"<{len(crcs)}I", *crcs)
        header = _with_crc(header, zlib.crc32(header))
        self._put(memoryview(header.ljust(self._start, b"\0")), 0)
        try:
            os.fsync(self._descriptor)
            os.replace(self._temporary, self.path)
            os.close(self._descriptor)
        except OSError as error:
            raise self._unwritable(error) from error
        self._descriptor = -1
        return open_experts(self.path)

    def _unwritable(self, error: OSError) -> CheckpointError:
        return CheckpointError(f"{self.path}: cannot be written: {error.strerror or error}")


def _remove_abandoned(folder: Path, pattern: str) -> None:
    """Files of writers that were killed; those that are being written are locked."""
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_size:  # one that is about to be locked is empty
                path.unlink()


def check_space(folder: Path, needed: int) -> None:
    """Raise unless ``needed`` bytes are free where ``folder`` lies.

    Raises:
        CheckpointError: with both numbers.
        OSError: the folder cannot be read.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise CheckpointError(
            f"{folder}: {needed / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free on its disk"
        )
