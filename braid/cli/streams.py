"""Standard error that may go away: whoever read it has ended, or its disk is full. Serving goes on without it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import IO, TextIO, cast


class SafeStream(io.TextIOBase):
    """What is written to ``stream`` as long as that works; lost after that.

    Args:
        stream: None where the process was started without one.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8" if self._stream is None else self._stream.encoding

    def write(self, text: str) -> int:
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError, ValueError):
                self._stream.flush()

    def isatty(self) -> bool:
        return self._stream is not None and not self._stream.closed and self._stream.isatty()

    def fileno(self) -> int:
        if self._stream is None:
            raise io.UnsupportedOperation("there is no stream")
        return self._stream.fileno()

    def writable(self) -> bool:
        return True


def safe_stderr() -> IO[str]:
    """Standard error as a ``SafeStream``."""
    return cast("IO[str]", SafeStream(sys.stderr))


def fill_standard_descriptors() -> None:
    """Point those of 0, 1 and 2 that are closed to nothing: no socket may take the place of standard error."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
