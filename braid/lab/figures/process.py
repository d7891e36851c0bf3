"""A process that draws figures of a description while this one draws others.

What crosses, both ways, are frames: 4 bytes of length, then the bytes. First comes the description (MessagePack), then
the name of one plot after the other; for each a PNG file comes back, empty where there is nothing to see.
"""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType
from typing import IO

import msgspec

from braid.core.errors import BraidError
from braid.lab.describe.description import Description

LENGTH_BYTES = 4


class DrawingProcess:
    """Starts at once, so that it is ready when there is something to draw; ends with the ``with`` block."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "braid.lab.figures.drawer"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> DrawingProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()

    def show(self, description: Description) -> None:
        """Send what is to be drawn.

        Raises:
            BraidError: the process has ended.
        """
        self._send(msgspec.msgpack.encode(description))

    def draw(self, name: str) -> bytes:
        """The plot of that name as a PNG file, empty where there is nothing to see.

        Raises:
            BraidError: the process has ended.
        """
        self._send(name.encode())
        assert self._process.stdout is not None
        png = read_frame(self._process.stdout)
        if png is None:
            raise self._ended()
        return png

    def _send(self, frame: bytes) -> None:
        assert self._process.stdin is not None
        try:
            write_frame(self._process.stdin, frame)
        except OSError:
            raise self._ended() from None

    def _ended(self) -> BraidError:
        return BraidError(f"the process that draws figures ended early, with code {self._process.wait()}")


def write_frame(stream: IO[bytes], frame: bytes) -> None:
    stream.write(len(frame).to_bytes(LENGTH_BYTES, "little") + frame)
    stream.flush()


def read_frame(stream: IO[bytes]) -> bytes | None:
    """The next frame; None where the stream has ended."""
    head = stream.read(LENGTH_BYTES)
    if len(head) < LENGTH_BYTES:
        return None
    length = int.from_bytes(head, "little")
    frame = stream.read(length)
    return frame if len(frame) == length else None
