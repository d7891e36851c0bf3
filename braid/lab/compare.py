"""Is a synthetic trace like a real one? One row per statistic, with its bound and pass or fail.

Bounds are relative: two parts of the same real trace lie some distance apart (the floor), and no model can be asked
to come closer to one part than the other part does. Where a training part is given, the floor is its distance to the
held-out part, and KS may exceed it by a slack; a ratio must lie between the two parts or within the slack of one of
them. Without a training part the floor is 0, or 1 for ratios.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from braid.lab.distance import Floats, conditional_ks, ks_interval, usable_windows
from braid.lab.fit.observed import Observed, Spans
from braid.lab.fit.programs import turn_counts, turn_gaps
from braid.lab.fit.reuse import hit_rate
from braid.lab.split import inside
from braid.lab.table import Trace

KS_SLACK = 0.03
HIT_SLACK = 0.02
BAND_SLACK = 0.05
IDC_SLACK = 0.25
MIN_ROWS = 20


class Row(NamedTuple):
    """One statistic: ``value`` must not exceed ``bound`` (distances), or must lie within ``limits`` (ratios).

    ``bound`` of a ratio is its slack. ``floor`` is the same statistic between training and held-out part; ``low`` and
    ``high`` are 95 % of ``value``: of a bootstrap (KS), or over the stretches of a synthetic trace that is longer than
    the real one (ratios).
    """

    name: str
    value: float
    low: float
    high: float
    floor: float | None
    bound: float
    passed: bool
    judged: bool

    @property
    def is_ratio(self) -> bool:
        return self.name.startswith("IDC")

    @property
    def limits(self) -> tuple[float, float]:
        """What ``value`` must lie within."""
        return limits(self.floor, self.bound) if self.is_ratio else (0.0, self.bound)


def limits(floor: float | None, slack: float) -> tuple[float, float]:
    """Of a ratio to the held-out part: between both real parts (``floor`` and 1), and the slack to either side."""
    floor = 1.0 if floor is None or not np.isfinite(floor) else floor
    return min(1.0, floor) * (1 - slack), max(1.0, floor) * (1 + slack)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A trace and the stretches of its time that count; None for all that it covers."""

    trace: Trace
    spans: Spans | None = None

    @property
    def covered(self) -> Spans | None:
        return self.spans or self.trace.info.spans or None

    def frame(self) -> pl.DataFrame:
        """Requests that arrive then, and whole programs that begin then."""
        return self.trace.frame if self.spans is None else inside(self.trace.frame, self.spans)


def column(frame: pl.DataFrame, name: str) -> Floats:
    return frame[name].drop_nulls().cast(pl.Float64).to_numpy()


def _answered(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.filter(pl.col("out_tok") > 0)


_SAMPLES: tuple[tuple[str, Callable[[pl.DataFrame], Floats]], ...] = (
    ("KS input tokens", lambda frame: column(frame, "in_tok")),
    ("KS output tokens", lambda frame: column(_answered(frame), "out_tok")),
    ("KS turns per program", turn_counts),
    ("KS gaps between turns", turn_gaps),
)


def compare(
    real: Part, synthetic: Part, train: Part | None = None, *, idc_slack: float = IDC_SLACK, seed: int = 0
) -> list[Row]:
    """The table. ``real`` is the held-out part where ``train`` is given.

    A synthetic trace longer than the real one is cut into stretches of the real one's length, each counted in the same
    windows; the index ratio is the median over them, so its own luck does not decide.
    """
    rng = np.random.default_rng(seed)
    frames = real.frame(), synthetic.frame(), train.frame() if train else None
    rows = []
    for name, sample in _SAMPLES:
        row = _ks_row(name, sample, frames, rng)
        if row is not None:
            rows.append(row)
    return (
        rows + _band_rows(frames) + _hit_rows(frames) + _arrival_rows(real, synthetic, train, idc_slack, rng)
    )


def _ks_row(
    name: str,
    sample: Callable[[pl.DataFrame], Floats],
    frames: tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame | None],
    rng: np.random.Generator,
) -> Row | None:
    held, made = sample(frames[0]), sample(frames[1])
    if held.size < MIN_ROWS:
        return None
    if made.size < MIN_ROWS:  # the real trace has it and the copy does not
        return Row(name, 1.0, 1.0, 1.0, None, KS_SLACK, False, True)
    known = sample(frames[2]) if frames[2] is not None else None
    return _judged_ks(name, held, made, known, rng)


def _judged_ks(name: str, held: Floats, made: Floats, known: Floats | None, rng: np.random.Generator) -> Row:
    found = ks_interval(held, made, rng)
    floor = None if known is None else ks_interval(known, held, rng, 2).ks
    bound = (floor or 0.0) + KS_SLACK
    return Row(name, found.ks, found.low, found.high, floor, bound, found.ks <= bound, True)


def _band_rows(frames: tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame | None]) -> list[Row]:
    pairs = [_pair(frame) if frame is not None else None for frame in frames]
    held, made, known = pairs
    assert held is not None
    assert made is not None
    if held[0].size < MIN_ROWS:
        return []
    if made[0].size < MIN_ROWS:
        return [Row("KS output given input", 1.0, 1.0, 1.0, None, BAND_SLACK, False, True)]
    found = conditional_ks(held, made).mean
    floor = None if known is None else conditional_ks(held, known).mean
    bound = (floor or 0.0) + BAND_SLACK
    return [Row("KS output given input", found, found, found, floor, bound, found <= bound, True)]


def _hit_rows(frames: tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame | None]) -> list[Row]:
    """How far apart the shares of prompts lie that a cache without limit would hold."""
    held, made, known = (hit_rate(frame) if frame is not None else None for frame in frames)
    if held is None:
        return []
    found = abs((made or 0.0) - held)
    floor = abs(known - held) if known is not None else None
    bound = (floor or 0.0) + HIT_SLACK
    return [Row("prefix hit rate apart", found, found, found, floor, bound, found <= bound, True)]


def _pair(frame: pl.DataFrame) -> tuple[Floats, Floats]:
    both = _answered(frame).select("in_tok", "out_tok").drop_nulls()
    return column(both, "in_tok"), column(both, "out_tok")


def _observed(part: Part, starts: bool) -> Observed | None:
    times = _times(part, starts)
    if times.size < MIN_ROWS or times[-1] <= times[0]:
        return None
    quantum = part.trace.info.t_quantum_s
    if quantum:
        times = np.round(times / quantum) * quantum
    spans = part.covered or ((float(times[0]), float(times[-1]) + quantum),)
    return Observed(times, spans, quantum).within(spans)


def _times(part: Part, starts: bool) -> Floats:
    """Arrivals of all requests, or (``starts``) of programs and of requests without one, rising."""
    frame = part.trace.frame
    if starts:
        later = pl.col("program_id").is_not_null() & (pl.col("t_s") > pl.col("t_s").min().over("program_id"))
        frame = frame.filter(~later.fill_null(False))
    return np.sort(column(frame, "t_s"))


def _arrival_rows(
    real: Part, synthetic: Part, train: Part | None, slack: float, rng: np.random.Generator
) -> list[Row]:
    # Programs go on past the end of a block that they began in: of a part with holes only the starts are all there.
    starts = len(real.covered or ()) > 1 and real.trace.num_programs > 0
    held, known = _observed(real, starts), _observed(train, starts) if train else None
    stretches = _stretches(_times(synthetic, starts), held) if held else []
    if held is None or not stretches:
        return []
    rows = [_judged_ks("KS gaps between arrivals", held.gaps(), np.concatenate([s.gaps() for s in stretches]),
                       known.gaps() if known else None, rng)]  # fmt: skip
    longest = max(stop - start for start, stop in held.spans)
    for window in usable_windows(held.quantum_s, held.covered_s):
        if window > longest:
            continue
        ratios = np.array([s.idc(window) for s in stretches]) / held.idc(window)
        value, low, high = np.nanquantile(ratios, [0.5, 0.025, 0.975])
        floor = known.idc(window) / held.idc(window) if known else None
        least, most = limits(floor, slack)
        passed = bool(least <= value <= most)
        judged = window in (1.0, 60.0)
        rows.append(
            Row(
                f"IDC ratio {window:g} s", float(value), float(low), float(high), floor, slack, passed, judged
            )
        )
    return rows


def _stretches(times: Floats, held: Observed) -> list[Observed]:
    """The synthetic arrivals in stretches as long as the held-out trace, on its clock, in its spans."""
    if times.size < MIN_ROWS:
        return []
    origin, length = held.spans[0][0], held.spans[-1][1] - held.spans[0][0]
    first = float(times[0])
    num = max(1, int((float(times[-1]) - first) / length + 0.02))
    result = []
    for k in range(num):
        low, high = np.searchsorted(times, [first + k * length, first + (k + 1) * length])
        moved = times[low:high] - (first + k * length) + origin
        if held.quantum_s:
            moved = np.floor(moved / held.quantum_s) * held.quantum_s
        result.append(Observed(moved, held.spans, held.quantum_s).within(held.spans))
    return result


def passed(rows: list[Row]) -> bool:
    """All judged statistics within their bounds."""
    return all(row.passed for row in rows if row.judged)
