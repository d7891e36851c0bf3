"""A run over time: load, throughput, open requests, latency, lag and outcomes in steps of equal length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

from braid.lab.measures.samples import Floats, Samples
from braid.lab.replay.outcome import STATUSES
from braid.lab.replay.record import Run

NUM_STEPS = 30
ROUND_STEPS = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0)
MAX_STEPS = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """One step, ``[start_s, end_s)`` from the run's start; the last one ends with the run, and is up to
    half a step shorter or longer.

    Args:
        measured: it lies within the measured window, by its middle.
        planned: requests by when they were scheduled (or would have been); ``outcomes`` the same by status, those that
            are not zero; ``failed`` those neither answered nor cancelled as planned.
        load, load_prompt, load_output: planned requests and tokens per second.
        throughput, prompt, output: answers that ended, prompt tokens whose answer began, and output tokens, per second.
        open: requests scheduled and not ended, mean over the step.
        ttft_p50, ttft_p99: of answered requests scheduled in it; ``tbt_p50``, ``tbt_p99``: of tokens that came in it.
        lag_p50, lag_p99, lag_max: of requests scheduled in it.
    """

    start_s: float
    end_s: float
    measured: bool
    planned: int
    load: float
    load_prompt: float
    load_output: float
    throughput: float
    prompt: float
    output: float
    open: float
    ttft_p50: float | None
    ttft_p99: float | None
    tbt_p50: float | None
    tbt_p99: float | None
    lag_p50: float | None
    lag_p99: float | None
    lag_max: float | None
    failed: int
    outcomes: Mapping[str, int]


def windows(run: Run, found: Samples, step_s: float | None = None) -> tuple[float, tuple[Window, ...]]:
    """The length of a step and the steps. By itself a 30th of the time that requests are scheduled in, at least 1 s,
    and so long that a long drain gives at most 300; rounded up."""
    last = _last(found.at, found.end, found.piece_at)
    if last is None:
        return step_s or 1.0, ()
    step = step_s or _rounded(max(1.0, (_last(found.at) or 0.0) / NUM_STEPS, last / MAX_STEPS))
    edges = np.arange(max(1, round(last / step)) + 1) * step
    edges[-1] = max(last, edges[-2] + step / 2)  # the last step takes a short rest in, or is a bit shorter
    columns = _columns(run, found, edges)
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return step, tuple(Window(**row) for row in rows)


def _rounded(step_s: float) -> float:
    """The next length that reads well: 1, 1.5, 2 s, ..., 10, 15, 20 s, then minutes alike."""
    unit = 60.0 if step_s > 40 else 1.0
    while step_s > unit * ROUND_STEPS[-1]:
        unit *= 10
    return next(unit * size for size in ROUND_STEPS if step_s <= unit * size)


def _columns(run: Run, found: Samples, edges: Floats) -> dict[str, list[object]]:
    length = np.diff(edges)
    answered = found.has("ok")
    prompt, output = (run.frame[name].to_numpy() for name in ("in_tok", "out_tok"))
    first = found.scheduled + found.ttft
    low, high = run.head.window_s
    middle = (edges[:-1] + edges[1:]) / 2
    failed = ~found.has("ok", "cancelled")
    outcomes = [_count(found.at[found.status == number], edges) for number in range(len(STATUSES))]
    of_answers = answered[found.gap_of]
    ttft = _quantiles(found.at[answered], found.ttft[answered], edges)
    tbt = _quantiles(found.gap_at[of_answers], found.gap_s[of_answers], edges)
    lag = _quantiles(found.at, found.lag, edges)
    columns: dict[str, np.ndarray] = {
        "start_s": edges[:-1],
        "end_s": edges[1:],
        "measured": (middle >= low) & (middle <= high),
        "planned": _count(found.at, edges),
        "load": _count(found.at, edges) / length,
        "load_prompt": _count(found.at, edges, prompt) / length,
        "load_output": _count(found.at, edges, output) / length,
        "throughput": _count(found.end[answered], edges) / length,
        "prompt": _count(first, edges, prompt) / length,
        "output": _count(found.piece_at, edges, found.piece_tokens) / length,
        "open": _mean_open(found, edges),
        "failed": _count(found.at[failed], edges),
    }
    plain: dict[str, list[object]] = {name: values.tolist() for name, values in columns.items()}
    plain |= {"ttft_p50": ttft[0], "ttft_p99": ttft[1], "tbt_p50": tbt[0], "tbt_p99": tbt[1]}
    plain |= {"lag_p50": lag[0], "lag_p99": lag[1], "lag_max": lag[2]}
    plain["outcomes"] = [
        {name: int(count[row]) for name, count in zip(STATUSES, outcomes, strict=True) if count[row]}
        for row in range(len(length))
    ]
    return plain


def _last(*times: Floats) -> float | None:
    ends = [float(np.nanmax(array)) for array in times if array.size and not np.isnan(array).all()]
    return max(ends, default=None)


def _bins(at: Floats, edges: Floats) -> np.ndarray:
    """The step of each time; the last one includes its end."""
    bins: np.ndarray = np.clip(np.searchsorted(edges, at, side="right") - 1, 0, len(edges) - 2)
    return bins


def _count(at: Floats, edges: Floats, weights: np.ndarray | None = None) -> np.ndarray:
    known = ~np.isnan(at)
    chosen = None if weights is None else weights[known]
    counts: np.ndarray = np.bincount(_bins(at[known], edges), weights=chosen, minlength=len(edges) - 1)
    return counts


def _quantiles(at: Floats, values: Floats, edges: Floats) -> list[list[object]]:
    """Median, p99 and maximum of each step, None for a step without values."""
    known = ~(np.isnan(at) | np.isnan(values))
    frame = pl.DataFrame({"step": _bins(at[known], edges), "value": values[known]})
    value = pl.col("value")
    aggregates = (value.median().alias("p50"), value.quantile(0.99, "linear").alias("p99"), value.max())
    every = pl.DataFrame({"step": np.arange(len(edges) - 1)})
    rows = every.join(frame.group_by("step").agg(*aggregates), on="step", how="left", maintain_order="left")
    return [rows[name].to_list() for name in ("p50", "p99", "value")]


def _mean_open(found: Samples, edges: Floats) -> Floats:
    """Mean number of requests between their scheduled time and their end."""
    both = ~(np.isnan(found.scheduled) | np.isnan(found.end))
    waited = _time_since(found.scheduled[both], edges) - _time_since(found.end[both], edges)
    mean: Floats = np.diff(waited) / np.diff(edges)
    return mean


def _time_since(times: Floats, edges: Floats) -> Floats:
    """At each edge, the sum of the time since each of ``times`` that has passed."""
    ordered = np.sort(times)
    passed = np.searchsorted(ordered, edges, side="right")
    before = np.concatenate([[0.0], np.cumsum(ordered)])
    since: Floats = passed * edges - before[passed]
    return since
