"""Records of experts straight from their file into rows."""

from __future__ import annotations

import os

from braid.checkpoint.expert_file import ExpertFile
from braid.core.faults import Faults
from braid.runner.experts.arena import Arena
from braid.runner.experts.reader import ExpertReadError, Read


class FileSource:
    """The file, and the rows that it fills.

    Args:
        always_verify: check every record that is read, not only the first time that each one is.
        faults: place ``experts.read``; its phase is the cause.

    Raises:
        CheckpointError: the file is gone, or has changed.
    """

    def __init__(
        self, file: ExpertFile, arena: Arena, *, always_verify: bool = False, faults: Faults | None = None
    ) -> None:
        self._file, self._arena, self._always = file, arena, always_verify
        self._verified = bytearray(file.shape.total)
        self._opened = file.open_file(direct=True)
        self.fill = (faults or Faults()).around("experts.read", self._fill, lambda read: read.cause.label)

    @property
    def is_direct(self) -> bool:
        return self._opened.direct

    def close(self) -> None:
        if self._opened.descriptor >= 0:
            os.close(self._opened.descriptor)
            self._opened = self._opened._replace(descriptor=-1)

    def _fill(self, read: Read) -> None:
        file, expert = self._file, read.expert
        room, offset, done = self._arena.buffer(read.row), file.offset(expert), 0
        while done < len(room):
            count = os.preadv(self._opened.descriptor, [room[done:]], offset + done)
            if count == 0:
                raise ExpertReadError(f"{file.path}: {file.name(expert)} is cut off: the file is truncated")
            done += count
        if not self._opened.direct:  # or the same bytes would be held twice
            os.posix_fadvise(self._opened.descriptor, offset, len(room), os.POSIX_FADV_DONTNEED)
        if self._always or not self._verified[expert]:
            file.check_record(expert, room)
            self._verified[expert] = 1
        self._arena.landed(read.row)
