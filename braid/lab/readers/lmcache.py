"""LMCache's agentic calls (HF dataset sammshen/lmcache-agentic-traces): sessions in line order, no times."""

from __future__ import annotations

import msgspec
import polars as pl

from braid.lab.progress import Progress
from braid.lab.readers.draft import Draft
from braid.lab.readers.jsonlines import column, read_lines
from braid.lab.readers.numbers import Count, Length, with_rows
from braid.lab.readers.source import Head, Source
from braid.lab.table import FINISHES, TraceInfo

LICENCE = "MIT (dataset card)"
CITATION = "sammshen/lmcache-agentic-traces, Hugging Face"


class _Line(msgspec.Struct):
    session_id: str
    model_id: str
    pre_gap_s: Length
    output_tokens: Count
    input_len: Count = 0


def sees(head: Head) -> bool:
    return {"session_id", "model_id", "pre_gap_s", "output_tokens"} <= set(head.first)


def read(source: Source, head: Head, progress: Progress) -> Draft:
    """No arrival times; ``input_len`` 0 means unknown. The sessions are loops without a person in them, so a call that
    another one follows has called a tool; how a session's last call ended is not known (sessions are cut at 50)."""
    rows, numbers, problems = read_lines(source, _Line, progress)
    frame = pl.DataFrame(
        {
            "t_s": pl.Series([None] * len(rows), dtype=pl.Float64),
            "model": column(rows, "model_id"),
            "program_id": column(rows, "session_id"),
            "in_tok": column(rows, "input_len"),
            "out_tok": column(rows, "output_tokens"),
            "gap_before_s": column(rows, "pre_gap_s"),
        }
    ).with_columns(
        pl.lit("agent").alias("kind"),
        pl.lit("unknown").alias("status"),
        pl.int_range(pl.len(), dtype=pl.Int32).over("program_id").alias("turn"),
        pl.when(pl.col("in_tok") > 0).then("in_tok").alias("in_tok"),
        pl.when(pl.int_range(pl.len()).over("program_id") < pl.len().over("program_id") - 1)
        .then(pl.lit("tool", pl.Enum(FINISHES)))
        .alias("finish"),
    )
    info = TraceInfo(
        source=source.path.name,
        format="lmcache",
        sha256=source.sha256,
        licence=LICENCE,
        citation=CITATION,
        notes=(
            "No arrival times: sessions and their turns are in line order.",
            "Prompt lengths are missing.",
            "finish is deduced: every call that another one follows called a tool.",
        ),
    )
    return Draft(with_rows(frame, numbers, problems), info, problems)
