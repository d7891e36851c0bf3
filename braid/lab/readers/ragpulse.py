"""RAGPulse (flashserve/RAGPulse): prompts as lists of parts whose lengths vary and lie in side files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
import polars as pl

from braid.lab.progress import Progress
from braid.lab.readers.draft import Draft, leave_out, with_turns
from braid.lab.readers.jsonlines import column, read_lines
from braid.lab.readers.numbers import Count, with_rows
from braid.lab.readers.source import NOT_JSON, Head, Source
from braid.lab.table import TraceError, TraceInfo

PARTS = {
    "sys_prompt": "sys_prompt_id",
    "passages_ids": "passage_id",
    "history": "history_id",
    "web_search": "web_search_id",
    "user_input": "user_input_id",
}
"""Keys of ``hash_ids``, and the id's name in the side file."""
LICENCE = "MIT"
CITATION = "RAGPulse: An Open-Source RAG Workload Trace to Optimize RAG Serving Systems (flashserve/RAGPulse)"
_PART_BITS = 40
_Ids = list[Annotated[int, msgspec.Meta(ge=0, le=(1 << _PART_BITS) - 1)]]


class _Parts(msgspec.Struct):
    sys_prompt: _Ids = []
    passages_ids: _Ids = []
    history: _Ids = []
    web_search: _Ids = []
    user_input: _Ids = []


class _Line(msgspec.Struct):
    timestamp: str
    input_length: Count
    output_length: Count
    session_id: str
    hash_ids: _Parts


def sees(head: Head) -> bool:
    ids = head.first.get("hash_ids")
    return {"timestamp", "session_id", "input_length"} <= set(head.first) and isinstance(ids, dict)


def read(source: Source, head: Head, progress: Progress) -> Draft:
    """``block_ids`` are parts of varying length (no block size); ``block_tokens`` holds their lengths where the side
    files lie beside the trace. The part's kind is in an id's upper bits."""
    rows, numbers, problems = read_lines(source, _Line, progress)
    frame = pl.DataFrame(
        {
            "time": column(rows, "timestamp"),
            "t_s": pl.Series(column(rows, "timestamp")).cast(pl.Float64, strict=False),
            "program_id": column(rows, "session_id"),
            "in_tok": column(rows, "input_length"),
            "out_tok": column(rows, "output_length"),
            "e2e_s": pl.Series([None] * len(rows), dtype=pl.Float64),
            "block_ids": pl.Series([_ids(row.hash_ids) for row in rows], dtype=pl.List(pl.Int64)),
        }
    ).with_columns(pl.lit("unknown").alias("status"))
    frame = with_rows(frame, numbers, problems)
    good = (pl.col("t_s").is_finite() & (pl.col("t_s") >= 0)).fill_null(False)
    frame = leave_out(frame, problems, ~good, pl.format("timestamp is '{}', no seconds", pl.col("time")))
    if not frame.height:
        raise TraceError(f"{source.path}: no usable line; {problems.findings()[0].text}")
    lengths = _side_lengths(source.path.parent)
    if lengths:
        frame = frame.with_columns(_block_tokens(frame, lengths))
    return Draft(with_turns(frame.drop("time")), _info(source, bool(lengths)), problems)


def _info(source: Source, has_lengths: bool) -> TraceInfo:
    known = "are in block_tokens" if has_lengths else "are unknown: the side files are not beside the trace"
    return TraceInfo(
        source=source.path.name,
        format="ragpulse",
        t_quantum_s=1.0,
        sha256=source.sha256,
        licence=LICENCE,
        citation=CITATION,
        notes=(
            f"Prompt parts vary in length; their lengths {known}.",
            "A template adds a few tokens to the parts.",
        ),
    )


def _ids(parts: _Parts) -> list[int]:
    return [(kind << _PART_BITS) | i for kind, name in enumerate(PARTS) for i in getattr(parts, name)]


def _side_lengths(folder: Path) -> dict[int, int]:
    """Lengths by block id, from the files of the folder that hold ``{<part>_id, token_length}`` lines."""
    lengths: dict[int, int] = {}
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as file:
            first = _entry(file.readline())
        if "token_length" not in first:
            continue
        for kind, name in enumerate(PARTS.values()):
            if name in first:
                entries = [_entry(line) for line in path.read_bytes().splitlines() if line.strip()]
                lengths |= {(kind << _PART_BITS) | e[name]: e["token_length"] for e in entries if name in e}
    return lengths


def _entry(line: bytes) -> Mapping[str, Any]:
    try:
        value = msgspec.json.decode(line)
    except NOT_JSON:
        return {}
    return value if isinstance(value, dict) else {}


def _block_tokens(frame: pl.DataFrame, lengths: dict[int, int]) -> pl.Series:
    values = [[lengths.get(i) for i in ids] for ids in frame["block_ids"].to_list()]
    return pl.Series("block_tokens", values, dtype=pl.List(pl.Int64))
