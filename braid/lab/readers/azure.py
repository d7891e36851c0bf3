"""Azure's public LLM inference traces (Azure/AzurePublicDataset): 2023, and 2024, which has the same header."""

from __future__ import annotations

import polars as pl

from braid.lab.progress import Progress
from braid.lab.readers.csvfile import read_csv
from braid.lab.readers.draft import Draft, leave_out
from braid.lab.readers.source import Head, Source
from braid.lab.table import TraceError, TraceInfo

COLUMNS = {"TIMESTAMP": pl.String, "ContextTokens": pl.Int64, "GeneratedTokens": pl.Int64}
LICENCE = "CC-BY-4.0"
CITATION = (
    "Patel et al.: Splitwise: Efficient Generative LLM Inference Using Phase Splitting. ISCA 2024 (trace of 2023); "
    "Stojkovic et al.: DynamoLLM. HPCA 2025 (trace of 2024)"
)
_FORMAT = "%Y-%m-%d %H:%M:%S%.f"


def sees(head: Head) -> bool:
    return set(COLUMNS) <= set(head.columns)


def read(source: Source, head: Head, progress: Progress) -> Draft:
    """``t_s`` counts from the first request; the exact time stays in ``t_ns``, int64 nanoseconds since 1970, UTC."""
    frame, problems = read_csv(source, COLUMNS, tuple(COLUMNS))
    frame = frame.with_columns(nanoseconds("TIMESTAMP").alias("t_ns"))
    reason = pl.format("TIMESTAMP is '{}', not a time", pl.col("TIMESTAMP").str.slice(0, 40))
    frame = leave_out(frame, problems, pl.col("t_ns").is_null(), reason)
    if not frame.height:
        raise TraceError(f"{source.path}: no usable row; {problems.findings()[0].text}")
    first = frame["t_ns"].min()
    begin = frame.select(pl.col("t_ns").min().cast(pl.Datetime("ns")).dt.to_string(_FORMAT)).item()
    frame = frame.with_columns(
        ((pl.col("t_ns") - first) / 1e9).alias("t_s"),
        pl.lit("unknown").alias("status"),
    )
    frame = frame.rename({"ContextTokens": "in_tok", "GeneratedTokens": "out_tok"}).drop("TIMESTAMP")
    info = TraceInfo(
        source=source.path.name,
        format="azure",
        sha256=source.sha256,
        licence=LICENCE,
        citation=CITATION,
        notes=(f"t_s = 0 is {begin} UTC.", "The source names no model, no conversation and no failure."),
    )
    return Draft(frame, info, problems)


def nanoseconds(name: str) -> pl.Expr:
    """Text such as ``2023-11-16 18:15:46.6805900`` as exact int64 nanoseconds; null where it is no UTC time.

    Hundreds of nanoseconds are beyond ``datetime``'s microseconds.
    """
    text = pl.col(name).str.strip_suffix("Z").str.strip_suffix("+00:00").str.replace("T", " ", literal=True)
    return text.str.to_datetime(_FORMAT, time_unit="ns", strict=False).cast(pl.Int64)
