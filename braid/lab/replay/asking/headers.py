"""Header lines of requests: what all have, and which program each belongs to."""

from __future__ import annotations

import re
from hashlib import sha256

import polars as pl

from braid import __version__

PROGRAM_HEADER, PARENT_HEADER, FINAL_HEADER = "X-Session-ID", "X-Parent-Session-ID", "X-Dynamo-Session-Final"
"""Which program a request belongs to, which one started it, and that no turn follows."""
_UNSAFE = re.compile(r"[^A-Za-z0-9._:-]")
_LONGEST_ID = 128


def common_headers(netloc: str, stream: bool) -> str:
    """Header lines of every request, but for its length and the key."""
    accept = "text/event-stream, application/json" if stream else "application/json"
    lines = (
        f"Host: {netloc}",
        f"User-Agent: braid-lab/{__version__}",
        "Content-Type: application/json",
        f"Accept: {accept}",
    )
    return "".join(f"{line}\r\n" for line in lines)


def program_headers(frame: pl.DataFrame) -> list[bytes]:
    """Each request's own header lines: none for one without a program (a plan calls it by its row), the final mark for
    a program's last turn."""
    programs, parents = frame["program"].to_list(), frame["parent"].to_list()
    lone = (frame["program"] == frame.select(pl.format("row {}", "source_row")).to_series()).to_list()
    last = {program: number for number, program in enumerate(programs)}
    return [
        b"" if lone[number] else header_lines(program, last[program] == number, parents[number])
        for number, program in enumerate(programs)
    ]


def header_lines(program: str, final: bool, parent: str | None = None) -> bytes:
    """A request's own header lines. Ids come from a trace and may be anything: they can neither end a line nor leave
    ASCII, and two different ones stay different."""
    started_by = "" if parent is None else f"{PARENT_HEADER}: {_safe(parent)}\r\n"
    last = f"{FINAL_HEADER}: true\r\n" if final else ""
    return f"{PROGRAM_HEADER}: {_safe(program)}\r\n{started_by}{last}".encode()


def _safe(program: str) -> str:
    name = _UNSAFE.sub("_", program)[:_LONGEST_ID]
    if name == program and name:
        return name
    return f"{name}.{sha256(program.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"
