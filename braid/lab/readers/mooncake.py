"""Mooncake's traces (kvcache-ai/Mooncake, FAST25-release): conversation and tool-agent lines of one schema."""

from __future__ import annotations

import msgspec
import numpy as np
import polars as pl

from braid.lab.progress import Progress
from braid.lab.readers.draft import Draft
from braid.lab.readers.jsonlines import column, read_lines
from braid.lab.readers.numbers import Count, Ids, Length, with_rows
from braid.lab.readers.source import Head, Source
from braid.lab.table import Finding, TraceInfo

BLOCK_SIZE = 512
LICENCE = "repository Apache-2.0; no licence of its own for the traces"
CITATION = (
    "Qin et al.: Mooncake: Trading More Storage for Less Computation - A KVCache-centric Architecture for Serving "
    "LLM Chatbot. FAST 2025"
)


class _Line(msgspec.Struct):
    timestamp: Length
    input_length: Count
    output_length: Count
    hash_ids: Ids


def sees(head: Head) -> bool:
    return set(_Line.__struct_fields__) <= set(head.first) and isinstance(head.first["hash_ids"], list)


def read(source: Source, head: Head, progress: Progress) -> Draft:
    """Times are milliseconds on a grid of about 3 s."""
    rows, numbers, problems = read_lines(source, _Line, progress)
    frame = pl.DataFrame(
        {
            "t_s": pl.Series(column(rows, "timestamp"), dtype=pl.Float64) / 1e3,
            "in_tok": column(rows, "input_length"),
            "out_tok": column(rows, "output_length"),
            "block_ids": pl.Series(column(rows, "hash_ids"), dtype=pl.List(pl.Int64)),
        }
    ).with_columns(pl.lit("unknown").alias("status"))
    info = TraceInfo(
        source=source.path.name,
        format="mooncake",
        block_size=BLOCK_SIZE,
        sha256=source.sha256,
        licence=LICENCE,
        citation=CITATION,
        notes=("The source names no model and no conversation; equal block ids are equal blocks.",),
    )
    return Draft(with_rows(frame, numbers, problems), info, problems, block_findings(frame, BLOCK_SIZE))


def block_findings(frame: pl.DataFrame, block_size: int) -> list[Finding]:
    """``block_mismatch`` where a prompt's blocks are not as many as its length needs, the last one partial."""
    needed = np.ceil(frame["in_tok"].to_numpy() / block_size)
    wrong = frame["block_ids"].list.len().to_numpy() != needed
    if not wrong.any():
        return []
    text = f"block ids are not as many as prompt tokens need at {block_size} a block"
    rows = tuple(int(place) + 1 for place in np.flatnonzero(wrong)[:10])
    return [Finding("block_mismatch", "warning", int(wrong.sum()), text, rows)]
