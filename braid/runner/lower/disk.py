"""KV on disk: one file of equal slots, each a block's bytes behind a header that proves them.

A slot begins with its magic, the block's key, when it was written (a count), and a digest (blake2b, 128 bits) over
the file's fingerprint, key, count and content. What does not agree is a miss: a torn write, a flipped bit, another
model's file. Slots are whole pages of 4 KiB, the file's first page is its own header. Native byte order: files
do not travel.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import tempfile
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

from braid.core.errors import InvalidParameterError
from braid.runner.lower.views import BlockViews

FORMAT_VERSION = 2
PAGE = 4096
_FILE = struct.Struct("=8sI32sQ")
_SLOT = struct.Struct("=8s16sQ16s")
_FILE_MAGIC = b"braid-kv"
_SLOT_MAGIC = b"kv-block"
MAX_PARTS = 512
"""Buffers of one system call; systems allow 1,024."""
_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE}
"""What is wrong with the disk or the system, not with the folder that was named."""


class DiskSlots:
    """Slots in a file of its own in ``folder``.

    Args:
        num_bytes: the file is not larger.
        fingerprint: 32 bytes that name whatever the bytes of a block depend on.
        keeps: the file stays for the next engine with this fingerprint; else it is gone when this process ends,
            however it ends.

    Raises:
        InvalidParameterError: not one block fits, the folder cannot be written, or a file there is not Braid's own.
        OSError: the disk has no room or fails, or another engine uses the file.
    """

    name = "disk"

    def __init__(
        self, views: BlockViews, folder: Path, num_bytes: int, fingerprint: bytes, *, keeps: bool = False
    ) -> None:
        self._views = views
        self._slot_bytes = -(-(_SLOT.size + views.num_bytes) // PAGE) * PAGE
        self.num_slots = (num_bytes - PAGE) // self._slot_bytes
        if self.num_slots < 1:
            raise InvalidParameterError(
                f"kv_disk is {num_bytes} bytes, but one block takes {self._slot_bytes}; give it at least "
                f"{PAGE + self._slot_bytes}",
                param="kv_disk",
            )
        self._seed = fingerprint
        self._count = 0
        self._file = _open(folder, fingerprint, keeps=keeps)
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def kept(self) -> list[tuple[int, bytes]]:
        """Slots with content and its keys, those written last last; a key that was written twice is there once."""
        found: dict[bytes, tuple[int, int]] = {}
        for slot in range(self.num_slots):
            header = os.pread(self._file, _SLOT.size, self._offset(slot))
            if len(header) < _SLOT.size:
                break
            magic, key, count, _ = _SLOT.unpack(header)
            if magic == _SLOT_MAGIC and count >= found.get(key, (0, 0))[0]:
                found[key] = (count, slot)
        self._count = max((count for count, _ in found.values()), default=0)
        return [(slot, key) for key, (_, slot) in sorted(found.items(), key=lambda item: item[1])]

    def store(self, slot: int, key: bytes, block: int) -> None:
        """Write a block.

        Raises:
            OSError: the disk is full or fails.
        """
        parts = self._views.read(block)
        self._count += 1
        header = _SLOT.pack(_SLOT_MAGIC, key, self._count, self._digest(key, self._count, parts))
        _write(self._file, [memoryview(header), *parts], self._offset(slot))

    def load(self, slot: int, key: bytes, block: int) -> bool:
        """Read a block; False, and the block zero, if the slot does not hold just that.

        Raises:
            OSError: the disk fails.
        """
        header = bytearray(_SLOT.size)
        parts = self._views.room(block)
        is_whole = False
        try:
            if _read(self._file, [memoryview(header), *parts], self._offset(slot)):
                magic, found, count, digest = _SLOT.unpack(header)
                is_whole = (magic, found) == (_SLOT_MAGIC, key) and digest == self._digest(key, count, parts)
        finally:
            if is_whole:
                self._views.commit(block)
            else:
                self._views.clear(block)
        return is_whole

    def wait(self) -> None:
        """Reads and writes are over when they return."""

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _prepare(self) -> None:
        """Take a file with slots of the same shape over, and make any other new."""
        header = _FILE.pack(_FILE_MAGIC, FORMAT_VERSION, self._seed, self._slot_bytes)
        if os.pread(self._file, len(header), 0) != header:
            os.ftruncate(self._file, 0)
        _reserve(self._file, PAGE + self.num_slots * self._slot_bytes)
        os.pwrite(self._file, header, 0)

    def _offset(self, slot: int) -> int:
        return PAGE + slot * self._slot_bytes

    def _digest(self, key: bytes, count: int, parts: Sequence[memoryview]) -> bytes:
        digest = blake2b(key=self._seed, digest_size=16, person=b"braid.kv")
        digest.update(key + count.to_bytes(8, "little"))
        for part in parts:
            digest.update(part)
        return digest.digest()


def _open(folder: Path, fingerprint: bytes, *, keeps: bool) -> int:
    """A file that nobody else can read, and no other engine uses."""
    path = folder / f"braid-kv-{fingerprint.hex()[:16]}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not keeps:
            file, name = tempfile.mkstemp(prefix="braid-kv-", dir=folder)
            os.unlink(name)
            return file
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError as error:
        if error.errno in _TROUBLE:
            raise
        raise InvalidParameterError(
            f"kv_disk_path {str(folder)!r} cannot be written: {error.strerror or error}; choose a folder that can",
            param="kv_disk_path",
        ) from error
    try:
        _check_own(file, path)
        os.fchmod(file, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(file)
        raise
    return file


def _check_own(file: int, path: Path) -> None:
    """Whoever else can write to it could make the model say anything, and what is there is about to be written over."""
    found = os.fstat(file)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink != 1:
        raise InvalidParameterError(
            f"{str(path)!r} is not a plain file of this user, with this name only; remove it, or choose another folder "
            "with kv_disk_path",
            param="kv_disk_path",
        )


def _reserve(file: int, size: int) -> None:
    """Make sure of the room, where the file system can."""
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
    os.ftruncate(file, size)


def _write(file: int, parts: Sequence[memoryview], offset: int) -> None:
    for batch in _batches(parts):
        size = sum(part.nbytes for part in batch)
        if os.pwritev(file, batch, offset) != size:
            raise OSError(errno.ENOSPC, "the disk took a part of a block only")
        offset += size


def _read(file: int, parts: Sequence[memoryview], offset: int) -> bool:
    """Fill ``parts``; False if the file ends before."""
    for batch in _batches(parts):
        size = sum(part.nbytes for part in batch)
        if os.preadv(file, batch, offset) != size:
            return False
        offset += size
    return True


def _batches(parts: Sequence[memoryview]) -> Iterator[Sequence[memoryview]]:
    for first in range(0, len(parts), MAX_PARTS):
        yield parts[first : first + MAX_PARTS]
