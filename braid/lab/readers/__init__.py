"""Readers of traces: any known format to one table, told apart by header and keys, never by a column's place."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from braid.lab.audit import audit
from braid.lab.progress import NoProgress, Progress
from braid.lab.readers import (
    azure,
    braid_log,
    burstgpt,
    lmcache,
    mooncake,
    ragpulse,
    servegen,
    spans,
    tracelab,
    weka,
)
from braid.lab.readers.draft import Draft, finish
from braid.lab.readers.servegen import PMF, ServeGenProfile, read_profile
from braid.lab.readers.source import Head, Source, head_of, open_source
from braid.lab.table import Trace, TraceError, load

__all__ = ["FORMATS", "PMF", "ServeGenProfile", "read_profile", "read_trace"]

AUTO = "auto"
PARQUET = "parquet"


class Reader(NamedTuple):
    """Args:
    name: the format's.
    needs: what it is told by, for errors.
    sees: whether a file's head is of this format.
    read: the rest.
    """

    name: str
    needs: str
    sees: Callable[[Head], bool]
    read: Callable[[Source, Head, Progress], Draft]


_READERS = (
    Reader("burstgpt", "Timestamp, Request tokens, Response tokens, Log Type", burstgpt.sees, burstgpt.read),
    Reader("azure", "TIMESTAMP, ContextTokens, GeneratedTokens", azure.sees, azure.read),
    Reader("weka", "trace, agent, idx, think_s, best_prefix_tok", weka.sees_csv, weka.read_table),
    Reader("weka-raw", "id, requests, hash_id_scope", weka.sees_raw, weka.read_raw),
    Reader("braid-log", "v, arrival, scope, prompt_tokens, elapsed_s", braid_log.sees, braid_log.read),
    Reader("ragpulse", "timestamp, session_id, hash_ids (an object)", ragpulse.sees, ragpulse.read),
    Reader(
        "mooncake", "timestamp, input_length, output_length, hash_ids (a list)", mooncake.sees, mooncake.read
    ),
    Reader(
        "tracelab",
        "session_id, round_index, input_tokens_total, timing_events, tools",
        tracelab.sees,
        tracelab.read,
    ),
    Reader(
        "tracelab-csv",
        "id, round_idx, input_len, prefix_len, output_len, tool_wait_after_ms",
        tracelab.sees_csv,
        tracelab.read_table,
    ),
    Reader("lmcache", "session_id, model_id, pre_gap_s, output_tokens", lmcache.sees, lmcache.read),
    Reader("spans", "span_id and start_time_s, or attributes, or resourceSpans", spans.sees, spans.read),
)
FORMATS = (PARQUET, *(reader.name for reader in _READERS))
"""What ``read_trace`` takes as ``format``, beside ``auto``."""


def read_trace(path: Path | str, format: str = AUTO, progress: Progress | None = None) -> Trace:
    """Read any known trace: plain or gzip, a file or (weka-raw) a folder of files.

    Returns:
        Rows in order of time, and findings: the reader's own (``bad_rows``, ``half_line``, ``inversions``, ...), then
        those of ``audit``. A parquet file of ours keeps its reader's findings; the others are found anew.

    Raises:
        TraceError: not a known format (the text lists them and what was seen), not of ``format``, or nothing usable.
    """
    path, progress = Path(path), progress or NoProgress()
    if format != AUTO and format not in FORMATS:
        raise TraceError(f"{format!r} is no format; one of: {', '.join((AUTO, *FORMATS))}")
    if path.is_dir():
        return _read_folder(path, progress)
    progress.update(f"reading {path.name}", 0, None)
    if format == PARQUET or (format == AUTO and _is_parquet(path)):
        return _again(load(path))
    draft = _draft(path, format, progress)
    progress.update(f"auditing {path.name}", 0, None)
    return finish(draft)


def _draft(path: Path, format: str, progress: Progress) -> Draft:
    """What the file's reader makes of it; its bytes are given back before the audit."""
    source = open_source(path)
    head = head_of(source.data)
    reader = _named(path, format, head) if format != AUTO else _seen(path, head)
    return reader.read(source, head, progress)


def _is_parquet(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return head_of(file.read(4)).is_parquet
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror}") from None


def _again(trace: Trace) -> Trace:
    fresh = audit(trace)
    names = {finding.name for finding in fresh}
    kept = [f for f in trace.findings if f.name in READER_FINDINGS and f.name not in names]
    return replace(trace, findings=(*kept, *fresh))


READER_FINDINGS = (
    *("bad_rows", "half_line", "unknown_values", "inversions", "unordered"),
    *("total_mismatch", "block_mismatch", "scopes", "other_spans", "other_keys", "repeats"),
)
"""Findings that only the source shows; they are kept in the parquet file."""


def _seen(path: Path, head: Head) -> Reader:
    found = next((reader for reader in _READERS if reader.sees(head)), None)
    if found is None:
        raise TraceError(f"{path}: no known format; {_known()}; seen: {head.describe()}")
    return found


def _named(path: Path, format: str, head: Head) -> Reader:
    reader = next(reader for reader in _READERS if reader.name == format)
    if not reader.sees(head):
        raise TraceError(f"{path}: is not {format}, which needs {reader.needs}; seen: {head.describe()}")
    return reader


def _known() -> str:
    return "known are " + "; ".join(f"{reader.name} ({reader.needs})" for reader in _READERS)


def _read_folder(folder: Path, progress: Progress) -> Trace:
    if servegen.is_profile(folder):
        raise TraceError(
            f"{folder}: is a ServeGen profile: laws, no requests; braid trace generate and braid trace fit take it"
        )
    files = sorted([*folder.glob("*.json"), *folder.glob("*.json.gz")])
    if not files or not weka.is_session(files[0]):
        raise TraceError(
            f"{folder}: no known folder; known are weka-raw (*.json, *.json.gz) and ServeGen profiles"
        )
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + path.read_bytes())
    return finish(weka.read_folder(folder, files, digest.hexdigest(), progress))
