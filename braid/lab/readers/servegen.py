"""ServeGen's client profiles (alibaba/ServeGen): rates, laws and length distributions, not requests."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from braid.lab.progress import NoProgress, Progress
from braid.lab.readers.bad import Problems
from braid.lab.readers.source import NOT_JSON, open_source
from braid.lab.table import Finding, TraceError

LICENCE = "Apache-2.0"
CITATION = (
    "ServeGen: Workload Characterization and Generation of LLM Serving in Production (alibaba/ServeGen)"
)
FAMILIES = ("Gamma", "Weibull")
FIELDS = ("input_tokens", "output_tokens", "reason_ratio")
_WINDOWS = re.compile(r"chunk-(\d+)-trace\.csv$")
_LENGTHS = re.compile(r"chunk-(\d+)-dataset\.json$")
_LONGEST_LITERAL = 1 << 26


@dataclass(frozen=True, slots=True)
class PMF:
    """A discrete distribution: ``values`` rise, ``weights`` sum to 1."""

    values: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True, slots=True)
class ServeGenProfile:
    """Args:
    windows: one row per client and window: ``client`` (int), ``start_s``, ``rate`` (requests per second), ``cv``,
        ``family`` (Gamma or Weibull, null when idle), ``shape``, ``scale`` (seconds per gap; scale the law to the
        stated rate where a client was active for a part of the window).
    lengths: distributions by (client, window start in seconds, field of ``FIELDS``); empty ones are absent.
    findings: missing partner files, unusable rows.
    sha256: over all files' names and bytes.
    """

    windows: pl.DataFrame
    lengths: Mapping[tuple[int, int, str], PMF]
    findings: tuple[Finding, ...]
    sha256: str
    licence: str = LICENCE
    citation: str = CITATION


def is_profile(folder: Path) -> bool:
    return any(_WINDOWS.search(path.name) for path in folder.glob("chunk-*-trace.csv"))


def read_profile(folder: Path, progress: Progress | None = None) -> ServeGenProfile:
    """Read all clients of a folder; a client with one of its two files is kept, and said.

    Raises:
        TraceError: no client file, or no usable window.
    """
    progress = progress or NoProgress()
    traces, datasets = _files(folder, _WINDOWS), _files(folder, _LENGTHS)
    if not traces:
        raise TraceError(f"{folder}: no ServeGen client: no chunk-N-trace.csv")
    digest, problems, frames = hashlib.sha256(), Problems(), []
    lengths: dict[tuple[int, int, str], PMF] = {}
    first_row = 0
    for place, client in enumerate(sorted(traces.keys() | datasets.keys())):
        if client in traces:
            frame, rows = _windows(traces[client], client, first_row, problems, digest)
            frames.append(frame)
            first_row += rows
        if client in datasets:
            lengths |= _lengths(datasets[client], client, problems, digest)
        progress.update(f"reading {folder.name}", place + 1, len(traces.keys() | datasets.keys()))
    windows = pl.concat(frames)
    if not windows.height:
        raise TraceError(f"{folder}: no usable window; {problems.findings()[0].text}")
    findings = [*problems.findings(), *_partners(traces, datasets)]
    return ServeGenProfile(windows, lengths, tuple(findings), digest.hexdigest())


def _files(folder: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    found = ((pattern.search(path.name), path) for path in folder.iterdir())
    return {int(match.group(1)): path for match, path in found if match}


def _partners(traces: Mapping[int, Path], datasets: Mapping[int, Path]) -> list[Finding]:
    found = []
    for name, lone in (
        ("dataset", traces.keys() - datasets.keys()),
        ("trace", datasets.keys() - traces.keys()),
    ):
        if lone:
            shown = ", ".join(map(str, sorted(lone)[:10]))
            text = f"clients without their {name} file: {shown}"
            found.append(Finding("missing_partner", "warning", len(lone), text))
    return found


def _windows(
    path: Path, client: int, first: int, problems: Problems, digest: Any
) -> tuple[pl.DataFrame, int]:
    source = open_source(path)
    digest.update(path.name.encode() + source.data)
    lines = [line.strip() for line in source.data.decode("utf-8", "replace").splitlines()]
    rows = []
    for number, line in enumerate(filter(None, lines), first + 1):
        try:
            rows.append((client, *_window(line.split(","))))
        except ValueError as error:
            problems.add(number, f"{path.name}: {error}")
    schema: dict[str, Any] = {"client": pl.Int64, "start_s": pl.Float64, "rate": pl.Float64, "cv": pl.Float64}
    schema |= {"family": pl.String, "shape": pl.Float64, "scale": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row"), len([line for line in lines if line])


def _window(cells: list[str]) -> tuple[float, float, float | None, str | None, float | None, float | None]:
    if len(cells) != 6:
        raise ValueError(f"{len(cells)} fields, not 6")
    family = cells[3].strip() or None
    if family is not None and family not in FAMILIES:
        raise ValueError(f"family is '{family[:40]}', not one of {', '.join(FAMILIES)}")
    start, rate = _number(cells[0], "start"), _number(cells[1], "rate")
    if start is None or rate is None:
        raise ValueError("start or rate is missing")
    shape, scale = _number(cells[4], "shape"), _number(cells[5], "scale")
    if family is not None and not (shape and scale):
        raise ValueError(f"{family} without shape or scale")
    return start, rate, _number(cells[2], "cv"), family, shape, scale


def _number(text: str, name: str) -> float | None:
    if not text.strip():
        return None
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} is '{text.strip()[:40]}', no number") from None
    if not np.isfinite(value) or value < 0:
        raise ValueError(f"{name} is {text.strip()}, negative or not finite")
    return value


def _lengths(path: Path, client: int, problems: Problems, digest: Any) -> dict[tuple[int, int, str], PMF]:
    source = open_source(path)
    digest.update(path.name.encode() + source.data)
    try:
        windows = msgspec.json.decode(source.data, type=dict[str, dict[str, Any]])
    except NOT_JSON as error:
        raise TraceError(f"{path}: is no ServeGen dataset: {error}") from None
    found = {}
    for number, (start, fields) in enumerate(windows.items(), 1):
        for name in FIELDS:
            try:
                pmf = parse_pmf(fields.get(name, "{}"))
                if pmf is not None:
                    found[client, int(float(start)), name] = pmf
            except ValueError as error:
                problems.add(number, f"{path.name}, window {start}, {name}: {error}")
    return found


def parse_pmf(text: Any) -> PMF | None:
    """``"{12: 0.5, 13: 0.5}"`` as a distribution, None for ``{}``. A literal parser: text is never run.

    Raises:
        ValueError: it is no such literal, or holds a negative length or weight.
    """
    if not isinstance(text, str) or len(text) > _LONGEST_LITERAL:
        raise ValueError("is not text of a dict")
    try:
        table = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ValueError(f"is no dict literal: '{text[:40]}'") from None
    if not isinstance(table, dict):
        raise ValueError(f"is no dict literal: '{text[:40]}'")
    if not table:
        return None
    if any(isinstance(x, bool) or not isinstance(x, int | float) for pair in table.items() for x in pair):
        raise ValueError("holds something that is no number")
    values = np.array(list(table), dtype=np.float64)
    weights = np.array(list(table.values()), dtype=np.float64)
    total = weights.sum()
    if (
        not (np.isfinite(values).all() and np.isfinite(total) and total > 0)
        or min(values.min(), weights.min()) < 0
    ):
        raise ValueError("holds a negative or no finite number")
    order = np.argsort(values)
    return PMF(values[order], weights[order] / total)
