"""BurstGPT (HPMLL/BurstGPT), 6 columns, or 8 with sessions and elapsed times; told apart by header name."""

from __future__ import annotations

import math

import polars as pl

from braid.lab.progress import Progress
from braid.lab.readers.csvfile import ROW, read_csv
from braid.lab.readers.draft import Draft, with_turns
from braid.lab.readers.source import Head, Source
from braid.lab.table import KINDS, Finding, TraceInfo

COLUMNS = {
    "Timestamp": pl.Float64,
    "Session ID": pl.String,
    "Elapsed time": pl.Float64,
    "Model": pl.String,
    "Request tokens": pl.Int64,
    "Response tokens": pl.Int64,
    "Total tokens": pl.Int64,
    "Log Type": pl.String,
}
REQUIRED = ("Timestamp", "Model", "Request tokens", "Response tokens", "Log Type")
LICENCE = "CC-BY-4.0"
CITATION = (
    "Wang et al.: BurstGPT: A Real-world Workload Dataset to Optimize LLM Serving Systems. KDD 2025, "
    "arXiv 2401.17644"
)
_KINDS = {"Conversation log": "conv", "API log": "api"}
_DAY = 86_400
_NAMES = {
    "Session ID": "program_id",
    "Elapsed time": "e2e_s",
    "Model": "model",
    "Request tokens": "in_tok",
    "Response tokens": "out_tok",
}


def sees(head: Head) -> bool:
    return {"Timestamp", "Request tokens", "Response tokens", "Log Type"} <= set(head.columns)


def read(source: Source, head: Head, progress: Progress) -> Draft:
    """``t_s`` counts from 00:00 of the first row's day, so that hours of the day are kept. A row without output
    tokens is a failure."""
    frame, problems = read_csv(source, COLUMNS, REQUIRED)
    frame = frame.rename(_NAMES, strict=False)
    day = math.floor(frame.select(pl.col("Timestamp").min()).item() / _DAY) * _DAY
    kind = pl.col("Log Type").replace_strict(_KINDS, default=None, return_dtype=pl.Enum(KINDS))
    frame = frame.with_columns(
        (pl.col("Timestamp") - day).alias("t_s"),
        kind.alias("kind"),
        pl.when(pl.col("out_tok") == 0).then(pl.lit("failed")).otherwise(pl.lit("ok")).alias("status"),
    )
    draft = Draft(frame, _info(source, day), problems)
    _check_kinds(draft, source)
    _check_totals(draft)
    draft.frame = draft.frame.drop("Timestamp", "Log Type", "Total tokens", strict=False)
    if "program_id" in draft.frame.columns and "e2e_s" in draft.frame.columns:
        draft.frame = with_turns(draft.frame)
    return draft


def _info(source: Source, day: int) -> TraceInfo:
    return TraceInfo(
        source=source.path.name,
        format="burstgpt",
        t_quantum_s=1.0,
        input_scope="unknown",
        sha256=source.sha256,
        licence=LICENCE,
        citation=CITATION,
        notes=(
            f"t_s = 0 is 00:00 local time of day {day // _DAY}, counted from 0; no date and no time zone is named.",
            "A request without response tokens is a failure; no cause is given.",
            "Whether a turn's request tokens include earlier turns is not documented.",
        ),
    )


def _check_kinds(draft: Draft, source: Source) -> None:
    """A log type that nobody knows stays without a kind; in a last line without an end it means a cut file."""
    odd = draft.frame.select(pl.col("kind").is_null().arg_true()).to_series()
    if not odd.len():
        return
    last = draft.frame.height - 1
    if odd[-1] == last and not source.data.endswith((b"\n", b"\r")) and _is_cut(draft.frame["Log Type"][-1]):
        row = int(draft.frame[ROW][-1]) if ROW in draft.frame.columns else last + 1
        draft.problems.add(row, f"Log Type is '{draft.frame['Log Type'][-1]}', cut")
        draft.problems.half_line = row
        draft.frame = draft.frame.head(last)
    values = draft.frame.filter(pl.col("kind").is_null())["Log Type"]
    draft.problems.unknown.update(f"Log Type '{value}'" for value in values)


def _is_cut(value: str) -> bool:
    return any(known.startswith(value) for known in _KINDS)


def _check_totals(draft: Draft) -> None:
    if "Total tokens" not in draft.frame.columns:
        return
    wrong = draft.frame.select((pl.col("Total tokens") != pl.col("in_tok") + pl.col("out_tok")).sum()).item()
    if wrong:
        text = "Total tokens is not the sum of request and response tokens; the total is not used"
        draft.findings.append(Finding("total_mismatch", "warning", wrong, text))
