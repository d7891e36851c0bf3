"""What is odd in a trace: what its clock, its rows and its order tell, and whether it looks made up."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import polars as pl

from braid.lab.table import SCHEMA, Finding, Trace

SOURCE_ROW = "source_row"
HOUR = 3_600.0
UNSENDABLE = pl.col("in_tok") == 0
"""Requests without a prompt: they can be counted, not sent."""

_EXAMPLES = 10
_GRIDS_S = (3600.0, 60.0, 30.0, 20.0, 15.0, 10.0, 5.0, 3.0, 2.0, 1.0, 0.5, 0.1, 0.01, 0.001)
_GRID_TOLERANCE = 0.005
_GRID_SHARE = 0.999
_GRID_TIMES = 20
_SILENCE_MEANS = 20.0
_SILENCE_SHARE = 0.3
_SHIFT = 0.1
_SHIFT_ROWS = 200
_RARE = 1_000
"""A run is odd if fewer than one of so many honest traces of the same length would hold one as long."""
_INVENTED_SHARE = 0.2
_KNOWN_ROWS = 30
_KNOWN_SHA256 = "f08f634d5e680640d857e78ce32dafc1081c446c83b47aa65764e13f8b9c7fdd"
_KNOWN_NEXT = 938
"""BurstGPT_1: of the first 30 rows, and the 31st row's request tokens (a public fixture invents other ones)."""


def audit(trace: Trace) -> tuple[Finding, ...]:
    """Everything odd that the table shows. Findings that only the source shows (rows left out, order) are its
    reader's.

    Names: ``ties``, ``quantum``, ``holes``, ``silences``, ``zero_rows``, ``unsendable``, ``failures``,
    ``identical_rows``, ``missing_fields``, ``mix_shift``, ``constant_spacing``, ``alternating_models``,
    ``invented_rows``.
    """
    return (*_clock(trace), *_rows(trace), *_regularity(trace))


def quantum_of(times: np.ndarray) -> float:
    """The grid that times sit on, in seconds, jitter of 0.5 % allowed; 0 for none, or too few times to tell.

    Args:
        times: seconds, in any order.
    """
    distinct = np.unique(times)
    if distinct.size < _GRID_TIMES:
        return 0.0
    distinct = distinct - distinct[0]
    for grid in _GRIDS_S:
        steps = distinct / grid
        if np.mean(np.abs(steps - np.rint(steps)) <= _GRID_TOLERANCE) >= _GRID_SHARE:
            return grid
    return 0.0


def _clock(trace: Trace) -> Iterator[Finding]:
    times = trace.frame["t_s"].drop_nulls().to_numpy()
    if times.size < 2:
        return
    gaps = np.diff(times)
    ties = gaps == 0
    if ties.any():
        text = f"requests that arrive with the one before ({ties.mean():.1%}); kept, bursts are real"
        yield Finding("ties", "info", int(ties.sum()), text, _numbers(trace, np.flatnonzero(ties) + 1))
    if quantum := trace.info.t_quantum_s:
        distinct = int(np.count_nonzero(gaps)) + 1
        text = f"arrival times sit on a grid of {quantum:g} s: {distinct:,} distinct times"
        yield Finding("quantum", "info", distinct, text)
    holes = gaps > HOUR
    if holes.any():
        text = f"gaps over an hour, the longest {gaps.max():,.0f} s; never fit across them"
        yield Finding("holes", "warning", int(holes.sum()), text, _numbers(trace, np.flatnonzero(holes) + 1))
    yield from _silences(trace, gaps)


def _silences(trace: Trace, gaps: np.ndarray) -> Iterator[Finding]:
    limit = _SILENCE_MEANS * gaps.mean()
    long = gaps > limit
    share = gaps[long].sum() / max(gaps.sum(), 1e-12)
    if share >= _SILENCE_SHARE:
        text = f"silences over {limit:.3g} s ({_SILENCE_MEANS:g} mean gaps) hold {share:.0%} of the time: on and off"
        yield Finding("silences", "warning", int(long.sum()), text, _numbers(trace, np.flatnonzero(long) + 1))


def _rows(trace: Trace) -> Iterator[Finding]:
    frame = trace.frame
    zero = (pl.col("in_tok") == 0) | (pl.col("out_tok") == 0)
    yield from _where(
        trace, "zero_rows", "info", zero, "requests without prompt or output tokens; zero is not unknown"
    )
    yield from _where(
        trace, "unsendable", "warning", UNSENDABLE, "requests without a prompt: they cannot be sent"
    )
    failed = pl.col("status") == "failed"
    share = frame.select(failed.fill_null(False).mean()).item() or 0.0
    yield from _where(trace, "failures", "info", failed, f"failed requests ({share:.2%})")
    yield from _identical(trace)
    yield from _missing(frame)
    yield from _mix_shift(frame)


def _where(trace: Trace, name: str, level: str, mask: pl.Expr, text: str) -> Iterator[Finding]:
    places = trace.frame.select(mask.fill_null(False).arg_true()).to_series().to_numpy()
    if places.size:
        yield Finding(name, level, int(places.size), text, _numbers(trace, places))


def _identical(trace: Trace) -> Iterator[Finding]:
    """Equal rows arrive together, so only ties are compared, and of those the ones of equal lengths."""
    frame, time = trace.frame, pl.col("t_s")
    key = pl.struct(time, "in_tok", "out_tok").hash().alias("key")
    tied = ((time == time.shift(1)) | (time == time.shift(-1))).fill_null(False)
    keys = frame.select(pl.int_range(pl.len()).alias("at"), key, tied.alias("tied")).filter("tied")
    places = keys.filter(pl.col("key").is_duplicated())["at"]
    ties = frame[places]
    skipped = {SOURCE_ROW, "turn", "gap_before_s"}
    columns = [name for name in ties.columns if name not in skipped and ties[name].null_count() < ties.height]
    if not ties.height:
        return
    first = ties.select(pl.struct(columns).is_first_distinct()).to_series()
    again = places.filter(~first).to_numpy()
    if again.size:
        share = again.size / frame.height
        text = f"rows equal to one before them ({share:.1%}); kept: dropping them would delete real bursts"
        yield Finding("identical_rows", "info", int(again.size), text, _numbers(trace, again))


def _missing(frame: pl.DataFrame) -> Iterator[Finding]:
    nulls = frame.select(pl.col(name).null_count() for name in SCHEMA).row(0, named=True)
    missing = {name: count for name, count in nulls.items() if count}
    if missing:
        shown = ", ".join(
            name if count == frame.height else f"{name} ({count / frame.height:.1%})"
            for name, count in missing.items()
        )
        yield Finding("missing_fields", "info", len(missing), f"unknown for all rows, or a share: {shown}")


def _mix_shift(frame: pl.DataFrame) -> Iterator[Finding]:
    if frame.height < _SHIFT_ROWS or frame["t_s"].null_count() == frame.height:
        return
    half = pl.int_range(pl.len()) < pl.len() // 2
    counts = frame.select("model", "kind", half.alias("first")).group_by("model", "kind")
    shares = counts.agg(pl.col("first").sum().alias("before"), (~pl.col("first")).sum().alias("after"))
    if shares.height < 2:
        return
    before, after = (shares[name].to_numpy() / shares[name].sum() for name in ("before", "after"))
    distance = 0.5 * float(np.abs(before - after).sum())
    if distance > _SHIFT:
        at = int(np.argmax(np.abs(before - after)))
        who = " / ".join(str(shares[name][at]) for name in ("model", "kind") if shares[name][at] is not None)
        text = f"the mix of models and kinds moves by {distance:.0%} between the halves; {who}: "
        text += f"{before[at]:.0%} to {after[at]:.0%}. Split by time and stratify"
        yield Finding("mix_shift", "warning", shares.height, text)


def _regularity(trace: Trace) -> Iterator[Finding]:
    invented: list[Finding] = []
    times = trace.frame["t_s"].drop_nulls().to_numpy()
    num = times.size
    start, length = _longest_run(np.rint(np.diff(times) * 1e6).astype(np.int64))
    # At most 1/e of all counts per tick are 1 under Poisson arrivals, so a run of n equal gaps has a chance of e**-n.
    if num > 1 and length >= math.log(_RARE * num):
        gap = times[start + 1] - times[start]
        rows = _numbers(trace, np.arange(start, start + length + 1))
        text = f"{length + 1:,} requests in a row, exactly {gap:g} s apart, from row {rows[0]} on: a machine's rhythm"
        yield Finding("constant_spacing", "warning", length + 1, text, rows)
        if start + length == num - 1 and length >= _INVENTED_SHARE * num:
            invented.append(
                _invented(trace, start + (start > 0), num - start - (start > 0), "their even spacing")
            )
    yield from _alternating(trace)
    yield from invented or _contradicted(trace)


def _invented(trace: Trace, start: int, count: int, why: str) -> Finding:
    rows = _numbers(trace, np.arange(start, start + count))
    text = f"from row {rows[0]} on the rows look invented, by {why}; do not measure with this file"
    return Finding("invented_rows", "error", count, text, rows)


def _longest_run(values: np.ndarray) -> tuple[int, int]:
    """Start and length of the longest run of equal positive values."""
    if not values.size:
        return 0, 0
    edges = np.flatnonzero(np.diff(values)) + 1
    starts = np.concatenate(([0], edges))
    lengths = np.diff(np.concatenate((starts, [values.size])))
    lengths = np.where(values[starts] > 0, lengths, 0)
    best = int(np.argmax(lengths))
    return int(starts[best]), int(lengths[best])


def _alternating(trace: Trace) -> Iterator[Finding]:
    """A, B, A, B: with two models at best every second pair differs by chance."""
    codes = trace.frame["model"].drop_nulls()
    if codes.len() < 3:
        return
    models = codes.cast(pl.Categorical).to_physical().to_numpy().astype(np.int64)
    steps = (models[2:] == models[:-2]) & (models[2:] != models[1:-1])
    start, length = _longest_run(steps.astype(np.int64))
    if length >= math.log2(_RARE * models.size):
        rows = _numbers(trace, np.arange(start, start + length + 2))
        text = f"two models take turns, strictly, for {length + 2:,} rows from row {rows[0]} on"
        yield Finding("alternating_models", "warning", length + 2, text, rows)


def _contradicted(trace: Trace) -> Iterator[Finding]:
    """The known first rows of BurstGPT_1, followed by a row that is not the known next one."""
    frame = trace.frame
    if trace.info.format != "burstgpt" or frame.height <= _KNOWN_ROWS:
        return
    if fingerprint(frame.head(_KNOWN_ROWS)) == _KNOWN_SHA256 and frame["in_tok"][_KNOWN_ROWS] != _KNOWN_NEXT:
        why = f"row 31 of BurstGPT_1, which has {_KNOWN_NEXT} request tokens"
        yield _invented(trace, _KNOWN_ROWS, frame.height - _KNOWN_ROWS, why)


def fingerprint(frame: pl.DataFrame) -> str:
    """sha256 of times and lengths, as text."""
    rows = frame.select(pl.col("t_s").cast(pl.Int64), "in_tok", "out_tok").rows()
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def _numbers(trace: Trace, places: Any) -> tuple[int, ...]:
    """Row numbers of the source, of up to ten rows of the table."""
    first = [int(place) for place in places[:_EXAMPLES]]
    if SOURCE_ROW in trace.frame.columns:
        return tuple(trace.frame[SOURCE_ROW].gather(first).to_list())
    return tuple(place + 1 for place in first)
