"""Output that nobody takes any more is no reason to end."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest
from rich.console import Console

from braid.cli.streams import SafeStream


class BrokenStream(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError

    def flush(self) -> None:
        raise OSError(28, "No space left on device")


def test_what_can_be_written_is_written() -> None:
    out = io.StringIO()
    Console(file=SafeStream(out)).print("hello")
    assert out.getvalue() == "hello\n"


@pytest.mark.parametrize("stream", [None, BrokenStream()])
def test_what_cannot_is_lost(stream: io.StringIO | None) -> None:
    safe = SafeStream(stream)
    Console(file=safe).print("hello")
    assert safe.write("abc") == 3
    assert not safe.isatty()


def test_a_closed_stream_is_none() -> None:
    closed = io.StringIO()
    closed.close()
    safe = SafeStream(closed)
    assert (safe.write("abc"), safe.isatty()) == (3, False)


def test_no_socket_becomes_standard_error() -> None:
    code = (
        "import os, socket\nfrom braid.cli.streams import fill_standard_descriptors\n"
        "fill_standard_descriptors()\nassert socket.socket().fileno() > 2\nos.write(2, b'lost')"
    )
    ended = subprocess.run([sys.executable, "-c", code], preexec_fn=lambda: os.close(2), check=False)
    assert ended.returncode == 0
