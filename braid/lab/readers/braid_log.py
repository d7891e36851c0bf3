"""Braid's own request log (``braid serve --request-log``)."""

from __future__ import annotations

from typing import Annotated

import msgspec
import polars as pl

from braid.lab.progress import Progress
from braid.lab.readers.draft import Draft, with_turns
from braid.lab.readers.endings import finish_of, tool_key
from braid.lab.readers.jsonlines import column, read_lines
from braid.lab.readers.numbers import Count, Length, with_rows
from braid.lab.readers.source import Head, Source
from braid.lab.table import FINISHES, STATUSES, Finding, TraceError, TraceInfo

VERSION = 1
_CLIENT_GONE = 499
_BELOW_ERRORS = 400
_SCOPE_BITS = 53
"""An id of the log has so many bits; the number of its scope goes above."""


class _Line(msgspec.Struct):
    v: Annotated[int, msgspec.Meta(ge=VERSION, le=VERSION)]
    arrival: Length
    scope: str
    program: str | None
    parent: str | None
    final: bool
    endpoint: str
    model: str
    stream: bool
    status: int
    finish_reason: str | None
    n: Count
    prompt_tokens: Count
    cached_tokens: Count
    output_tokens: Count
    ttft_s: Length | None
    elapsed_s: Length
    tools: list[str]
    block_size: Annotated[int, msgspec.Meta(gt=0)]
    hash_ids: list[Annotated[int, msgspec.Meta(ge=0, le=(1 << _SCOPE_BITS) - 1)]]


def sees(head: Head) -> bool:
    return {"v", "arrival", "scope", "prompt_tokens", "elapsed_s"} <= set(head.first)


def read(source: Source, head: Head, progress: Progress) -> Draft:
    """Lines are in order of ends, the trace in order of arrivals. What the server found in its cache is kept as
    ``found_tok``: an ideal cache (``cached_tok``) is another thing."""
    rows, numbers, problems = read_lines(source, _Line, progress)
    sizes = sorted({row.block_size for row in rows})
    if len(sizes) > 1:
        raise TraceError(f"{source.path}: mixes block sizes {sizes}: split it")
    scopes = {scope: place for place, scope in enumerate(dict.fromkeys(column(rows, "scope")))}
    first = min(column(rows, "arrival"))
    frame = pl.DataFrame(
        {
            "t_s": pl.Series(column(rows, "arrival"), dtype=pl.Float64) - first,
            "model": column(rows, "model"),
            "kind": ["api" if row.program is None else "agent" for row in rows],
            "program_id": pl.Series([_named(row, row.program) for row in rows], dtype=pl.String),
            "parent_id": pl.Series([_named(row, row.parent) for row in rows], dtype=pl.String),
            "in_tok": column(rows, "prompt_tokens"),
            "out_tok": column(rows, "output_tokens"),
            "status": pl.Series([_status(row) for row in rows], dtype=pl.Enum(STATUSES)),
            "e2e_s": pl.Series(column(rows, "elapsed_s"), dtype=pl.Float64),
            "ttft_s": pl.Series(column(rows, "ttft_s"), dtype=pl.Float64),
            "block_ids": pl.Series([_ids(row, scopes) for row in rows], dtype=pl.List(pl.Int64)),
            "found_tok": column(rows, "cached_tokens"),
            "n": column(rows, "n"),
            "endpoint": column(rows, "endpoint"),
            "http_status": column(rows, "status"),
            "finish_reason": pl.Series(column(rows, "finish_reason"), dtype=pl.String),
            "final": column(rows, "final"),
            "finish": pl.Series([_finish(row) for row in rows], dtype=pl.Enum(FINISHES)),
            "tool": pl.Series([tool_key(row.tools) for row in rows], dtype=pl.String),
        }
    )
    frame = with_rows(with_turns(frame), numbers, problems)
    return Draft(frame, _info(source, sizes[0], first), problems, _restarts(len(scopes)))


def _named(row: _Line, name: str | None) -> str | None:
    return None if name is None else f"{row.scope}/{name}"


def _status(row: _Line) -> str:
    if row.status == _CLIENT_GONE or row.finish_reason == "abort":
        return "cancelled"
    return "ok" if row.status < _BELOW_ERRORS and row.finish_reason != "error" else "failed"


def _finish(row: _Line) -> str | None:
    finish = finish_of(row.finish_reason)
    return "tool" if finish == "text" and row.tools else finish


def _ids(row: _Line, scopes: dict[str, int]) -> list[int]:
    above = scopes[row.scope] << _SCOPE_BITS
    return [above | i for i in row.hash_ids]


def _restarts(num_scopes: int) -> list[Finding]:
    if num_scopes == 1:
        return []
    text = "server runs in one log: programs and blocks of different runs cannot be compared"
    return [Finding("scopes", "info", num_scopes, text)]


def _info(source: Source, block_size: int, first: float) -> TraceInfo:
    return TraceInfo(
        source=source.path.name,
        format="braid-log",
        block_size=block_size,
        sha256=source.sha256,
        notes=(
            f"t_s = 0 is {first:.6f} s since 1970 UTC.",
            "Calls that generated nothing are not in the log.",
            "out_tok is the sum over a call's n choices.",
        ),
    )
