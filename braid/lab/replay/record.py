"""A finished run as it lies on the disk: a folder with ``run.json`` and ``requests.parquet`` (and what was drawn)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from braid.lab.table import TraceError

VERSION = 1
HEAD, ROWS = "run.json", "requests.parquet"


class RunHead(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a run beside its rows.

    Args:
        label: what people call it (default: the folder's name).
        url, model, endpoint, server: where it went and what answered (``Server`` header or /version, if any).
        plan_sha256, source, data_sha256, licence, citation: of the plan and the trace behind it.
        plan: the plan's options; ``run``: the run's, both as plain mappings.
        notes: what a reader must know (what differs from the trace, what the server cannot do).
        unsendable: rows of the trace that were never planned, counted by reason.
        output_enforced: False where the server could not be made to answer with the planned number of tokens.
        history: ``recorded`` or ``live``.
        lag_limit_s: p99 of the send lag above this makes the run invalid.
        window_s: requests scheduled within this stretch are measured (warm-up before, drain after).
        stopped: why the run ended before its plan did; empty if it did not.
        problems: what went wrong on the client's side (a sender died, ...); any makes the run invalid.
        machine: the client's, in words.
        planned_hit_rate: share of the plan's prompt tokens that a prefix cache without limit would hold.
    """

    version: int = VERSION
    label: str
    started_at: str
    url: str
    model: str
    endpoint: str
    server: str
    plan_sha256: str
    source: str
    data_sha256: str
    licence: str = ""
    citation: str = ""
    plan: Mapping[str, Any]
    run: Mapping[str, Any]
    notes: tuple[str, ...]
    unsendable: Mapping[str, int]
    output_enforced: bool
    history: str
    lag_limit_s: float
    window_s: tuple[float, float]
    stopped: str = ""
    problems: tuple[str, ...] = ()
    machine: str
    planned_hit_rate: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """A run. ``frame`` has one row per planned request: ``PLAN_SCHEMA`` without the segments, then ``outcome_schema()``
    without ``request``."""

    head: RunHead
    frame: pl.DataFrame


def join(plan: pl.DataFrame, outcomes: pl.DataFrame) -> pl.DataFrame:
    """The frame of a run from its plan and its outcomes, both in order of ``request``."""
    return pl.concat([plan.drop("segment_keys", "segment_toks"), outcomes.drop("request")], how="horizontal")


def save_run(run: Run, folder: Path) -> None:
    """Write both files, the folder too if it is not there.

    Raises:
        TraceError: they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        run.frame.write_parquet(folder / ROWS, compression="zstd")
        (folder / HEAD).write_bytes(msgspec.json.format(msgspec.json.encode(run.head), indent=1) + b"\n")
    except OSError as error:
        raise TraceError(f"cannot write {folder}: {error.strerror or error}") from None


def load_run(folder: Path) -> Run:
    """Read what ``save_run`` wrote.

    Raises:
        TraceError: it is no run, or one of another version.
    """
    try:
        raw = (folder / HEAD).read_bytes()
        head = msgspec.json.decode(raw)
        if not isinstance(head, dict) or head.get("version") != VERSION:
            raise TraceError(f"{folder}: {HEAD} is not of a run of version {VERSION}")
        return Run(msgspec.json.decode(raw, type=RunHead), pl.read_parquet(folder / ROWS))
    except OSError as error:
        raise TraceError(f"{folder}: is no run: {error.strerror or error}") from None
    except (msgspec.MsgspecError, pl.exceptions.PolarsError) as error:
        raise TraceError(f"{folder}: is no run: {error}") from None
