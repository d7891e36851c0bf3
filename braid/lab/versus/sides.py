"""Two runs side by side: the values of the requests that both measured, by block of programs.

Latencies are those of requests answered in both runs, request by request the same ones; shares and rates count all
requests that were planned in the windows of both. Runs of different plans are not paired: each gives its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from braid.core.metrics import SLO
from braid.lab.distance import Floats
from braid.lab.measures.samples import Samples, kept, program_frame, samples
from braid.lab.replay.record import Run
from braid.lab.versus.bootstrap import Blocks, Cut, cut

Bools = np.ndarray
Window = tuple[float, float]


class Values(NamedTuple):
    """Values and the block of each."""

    values: Floats
    blocks: Blocks


class Sums(NamedTuple):
    """What a share or a rate divides, summed by block."""

    top: Floats
    bottom: Floats


@dataclass(frozen=True, slots=True)
class Side:
    """One run of a pair: latencies in seconds by name (``ttft tpot tbt e2e jct``, and ``tokens``: output tokens), and
    the sums of shares and rates. ``late``: by how much the client may be to blame for the latencies of that name,
    request by request. ``lone``: every program is one request."""

    values: Mapping[str, Values]
    late: Mapping[str, Floats]
    sums: Mapping[str, Sums]
    cut: Cut
    lone: bool


class Failures(NamedTuple):
    """Requests that were not answered (and not cancelled as planned), of ``total`` that both runs measured."""

    total: int
    a_only: int
    b_only: int
    both: int


class Points(NamedTuple):
    """Requests answered in both: when planned, and their TTFT and E2E in A and in B, all in seconds."""

    at: Floats
    ttft: tuple[Floats, Floats]
    e2e: tuple[Floats, Floats]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two runs of one plan. ``one_sided``: requests that lie in the window of only one of them, left out."""

    a: Side
    b: Side
    failures: Failures
    points: Points
    one_sided: int


class _Chosen(NamedTuple):
    """Which requests count: for shares, for latencies, for the cached share; ``finished``: which programs for JCT."""

    counted: Bools
    answered: Bools
    cached: Bools
    finished: Bools


class _Read(NamedTuple):
    """A run and its arrays. ``counted``: in the window, and not lost to an early stop of the run."""

    run: Run
    found: Samples
    programs: pl.DataFrame
    counted: Bools
    kept: Bools


def pair(a: Run, b: Run, slo: SLO) -> Pair:
    """Both runs over what both measured. They must be of one plan."""
    left, right = _read(a, slo), _read(b, slo)
    counted = left.counted & right.counted
    answered = counted & left.found.has("ok") & right.found.has("ok")
    cached = answered & _says_cached(left) & _says_cached(right)
    chosen = _Chosen(counted, answered, cached, _finished(left) & _finished(right))
    windows = _windows(left, right)
    blocks, found = _blocks(_groups(a), chosen, (left, right))
    return Pair(
        _side(left, slo, chosen, blocks, found, windows[0]),
        _side(right, slo, chosen, blocks, found, windows[1]),
        _failures(left, right, counted),
        _points(left, right, answered),
        int((left.found.measured ^ right.found.measured).sum()),
    )


def alone(run: Run, slo: SLO) -> Side:
    """A run by itself."""
    read = _read(run, slo)
    answered = read.counted & read.found.has("ok")
    chosen = _Chosen(read.counted, answered, answered & _says_cached(read), _finished(read))
    blocks, found = _blocks(_groups(run), chosen, (read,))
    return _side(read, slo, chosen, blocks, found, _window(read))


def _read(run: Run, slo: SLO) -> _Read:
    found = samples(run)
    lost = found.has("unsent") if run.head.stopped else np.zeros(run.frame.height, dtype=bool)
    return _Read(run, found, program_frame(run, slo), found.measured & ~lost, kept(found, slo))


def _finished(read: _Read) -> Bools:
    return read.programs.select(pl.col("measured") & pl.col("finished")).to_series().to_numpy()


def _says_cached(read: _Read) -> Bools:
    said = pl.col("cached_tokens").is_not_null() & (pl.col("prompt_tokens") > 0)
    return read.run.frame.select(said.fill_null(False)).to_series().to_numpy()


def _groups(run: Run) -> Blocks:
    """The group of each request, numbered by first appearance."""
    _, first, index = np.unique(run.frame["group"].to_numpy(), return_index=True, return_inverse=True)
    rank = np.empty(first.size, dtype=np.int64)
    rank[np.argsort(first)] = np.arange(first.size)
    return rank[index]


def _by_group(values: Floats, groups: Blocks, chosen: Bools) -> Floats:
    """Mean logarithm of a group's latencies, in order of groups; NaN where none was chosen."""
    with np.errstate(invalid="ignore", divide="ignore"):
        logs = np.log(values)
        chosen = chosen & np.isfinite(logs)
        num = int(groups.max()) + 1 if groups.size else 0
        sums = np.bincount(groups[chosen], weights=logs[chosen], minlength=num)
        means: Floats = sums / np.bincount(groups[chosen], minlength=num)
    return means


def _failures(left: _Read, right: _Read, counted: Bools) -> Failures:
    a, b = (counted & ~read.found.has("ok", "cancelled") for read in (left, right))
    return Failures(int(counted.sum()), *(int(some.sum()) for some in (a & ~b, b & ~a, a & b)))


def _points(left: _Read, right: _Read, answered: Bools) -> Points:
    ttft, e2e = ([getattr(read.found, name)[answered] for read in (left, right)] for name in ("ttft", "e2e"))
    return Points(left.found.at[answered], (ttft[0], ttft[1]), (e2e[0], e2e[1]))


def _blocks(groups: Blocks, chosen: _Chosen, reads: Sequence[_Read]) -> tuple[Blocks, Cut]:
    """The block of each request. Groups that were not measured (warm-up) lie with their neighbours in time."""
    times = [values for read in reads for values in (read.found.ttft, read.found.e2e)]
    measured = np.unique(groups[chosen.counted])
    found = cut(measured.size, [_by_group(values, groups, chosen.answered) for values in times])
    place = np.minimum(np.searchsorted(measured, groups), max(0, measured.size - 1))
    return place // found.size, found


def _side(read: _Read, slo: SLO, chosen: _Chosen, blocks: Blocks, found: Cut, window: Window) -> Side:
    of_answers = chosen.answered[read.found.gap_of]
    values = {
        name: _values(getattr(read.found, name), chosen.answered, blocks) for name in ("ttft", "tpot", "e2e")
    }
    values["tbt"] = Values(read.found.gap_s[of_answers], blocks[read.found.gap_of[of_answers]])
    values["jct"] = _jct(read, chosen.finished, blocks)
    values["tokens"] = _values(read.found.tokens.astype(np.float64), chosen.answered, blocks)
    lone = read.programs.height == read.run.frame.height
    sums = _sums(read, slo, chosen, blocks, found.num, window)
    return Side(values, _late(read.found, chosen.answered), sums, found, lone)


def _late(found: Samples, answered: Bools) -> dict[str, Floats]:
    """What is counted from the schedule is late by the send and by the read, gaps by the read, which TPOT shares out.

    JCT is not here: it spans many turns, and its client's part is small.
    """
    send, read = np.nan_to_num(found.lag[answered]), np.nan_to_num(found.read_lag[answered])
    gaps = np.maximum(found.tokens[answered] - 1, 1)
    return {"ttft": send + read, "e2e": send + read, "tbt": read, "tpot": read / gaps}


def _sums(
    read: _Read, slo: SLO, chosen: _Chosen, blocks: Blocks, num: int, window: Window
) -> dict[str, Sums]:
    def by_block(some: Bools, weight: Floats | None = None) -> Floats:
        weight = None if weight is None else weight[some]
        return np.bincount(blocks[some], weights=weight, minlength=num).astype(np.float64)

    found, counted = read.found, chosen.counted
    low, high = window
    planned, seconds = by_block(counted), _seconds(read, blocks, num, window)
    ended = found.has("ok") & (found.end >= low) & (found.end <= high)
    inside = (found.piece_at >= low) & (found.piece_at <= high)
    owners = np.repeat(np.arange(found.tokens.size), _num_pieces(found))
    output = np.bincount(blocks[owners[inside]], weights=found.piece_tokens[inside], minlength=num)
    sums = {
        "refused": Sums(by_block(counted & found.has("refused")), planned),
        "failed": Sums(by_block(counted & ~found.has("ok", "cancelled", "refused")), planned),
        "output_rate": Sums(output.astype(np.float64), seconds),
        "request_rate": Sums(by_block(ended), seconds),
    }
    if any(limit is not None for limit in (slo.ttft, slo.tpot, slo.e2e)):
        good = by_block(counted & read.kept)
        sums |= {"attainment": Sums(good, planned), "goodput": Sums(good, seconds)}
    if chosen.cached.any():
        names = ("cached_tokens", "prompt_tokens")
        columns = (read.run.frame[name].fill_null(0).cast(pl.Float64).to_numpy() for name in names)
        sums["cached"] = Sums(*(by_block(chosen.cached, column) for column in columns))
    return sums


def _values(values: Floats, chosen: Bools, blocks: Blocks) -> Values:
    chosen = chosen & ~np.isnan(values)
    return Values(values[chosen], blocks[chosen])


def _jct(read: _Read, finished: Bools, blocks: Blocks) -> Values:
    rows = (
        read.run.frame.with_row_index("row")
        .group_by("program", maintain_order=True)
        .agg(pl.col("row").first())
    )
    times = read.programs["jct_s"].fill_null(float("nan")).to_numpy()
    return _values(times, finished, blocks[rows["row"].to_numpy()])


def _num_pieces(found: Samples) -> Blocks:
    """How many pieces with tokens each request has: one more than there are gaps between them, if there are tokens."""
    gaps = np.bincount(found.gap_of[found.between], minlength=found.tokens.size)
    return np.where(found.tokens > 0, gaps + 1, 0)


def _windows(left: _Read, right: _Read) -> tuple[Window, Window]:
    """What rates are counted over: where the plan has a clock, the stretch that lies in both windows."""
    a, b = _window(left), _window(right)
    if _has_slots(left):
        return a, b
    common = (max(a[0], b[0]), max(min(a[1], b[1]), a[0], b[0]))
    return common, common


def _has_slots(read: _Read) -> bool:
    return read.run.head.plan.get("arrivals") == "concurrency"


def _window(read: _Read) -> Window:
    """The run's; from the first scheduled time to the last end where it has no bounds."""
    low, high = read.run.head.window_s
    if np.isfinite(high - low):
        return low, high
    starts, ends = (times[np.isfinite(times)] for times in (read.found.scheduled, read.found.end))
    return (float(starts.min()), float(ends.max())) if starts.size and ends.size else (0.0, 0.0)


def _seconds(read: _Read, blocks: Blocks, num: int, window: Window) -> Floats:
    """The window's length, shared out to the blocks: equally where the plan has a clock, and by how long requests took
    where programs wait for a slot, since then slow programs make a run longer."""
    low, high = window
    share = np.full(num, 1 / max(num, 1))
    if _has_slots(read):
        took = np.nan_to_num(np.minimum(read.found.end, high) - np.maximum(read.found.scheduled, low))
        busy = np.bincount(blocks, weights=np.maximum(took, 0), minlength=num)
        share = busy / busy.sum() if busy.sum() > 0 else share
    return share * (high - low)
