"""Is run B better than run A? Statistics of both with 95 % intervals of what differs, and one sentence.

A difference is called clear where its interval, widened for the number of comparisons made, leaves out "none", and
where it is larger than what the client itself was late by. Two runs are called the same where that interval stays
within ``comparison.EQUAL``. There are no p-values. One pair of runs knows the chance of its requests, not what another
run of the same servers would give: that takes several pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from braid.core.metrics import SLO
from braid.lab.distance import Floats
from braid.lab.measures.measure import CURVE
from braid.lab.replay.record import Run
from braid.lab.versus.bootstrap import (
    MIN_BLOCKS,
    PERCENTILES,
    Drawn,
    Interval,
    interval,
    noise,
    point,
    quotient,
    share,
    statistics,
    together,
    weights,
)
from braid.lab.versus.comparison import (
    EQUAL,
    EQUAL_SHARE,
    LATENCIES,
    TOKENS,
    TOTALS,
    Comparison,
    Metric,
    Reading,
    Row,
)
from braid.lab.versus.likeness import check, differences, invalid, notes_of
from braid.lab.versus.sides import Failures, Side, Sums, Values, alone, pair
from braid.lab.versus.verdict import sentence


class _Drawing(NamedTuple):
    """All sides of A and of B, and how often each draw holds each of their blocks."""

    a: list[Side]
    b: list[Side]
    drawn_a: Floats
    drawn_b: Floats

    @property
    def num_blocks(self) -> int:
        """Of A or of B, whichever has fewer."""
        return int(min(self.drawn_a.shape[1], self.drawn_b.shape[1]))


class _Found(NamedTuple):
    metric: Metric
    statistic: str
    num: tuple[int, int]
    a: Drawn
    b: Drawn
    by_pair: tuple[tuple[float, float], ...]
    late: float | None = None


def versus(
    pairs: Sequence[tuple[Run, Run]],
    slo: SLO = SLO(),  # noqa: B008  (frozen)
    *,
    unpaired: bool = False,
    seed: int = 0,
) -> Comparison:
    """Compare runs A with runs B; several pairs are repeats of one comparison.

    Args:
        slo: limits that attainment and goodput count by; without any of TTFT, TPOT and E2E they are left out.
        unpaired: compare runs of different plans, by their distributions only.

    Raises:
        TraceError: no pairs, or runs of different plans and not ``unpaired``.
    """
    check(pairs, unpaired)
    rng = np.random.default_rng(seed)
    matched = [] if unpaired else [pair(a, b, slo) for a, b in pairs]
    if unpaired:
        sides = [alone(a, slo) for a, _ in pairs], [alone(b, slo) for _, b in pairs]
    else:
        sides = [found.a for found in matched], [found.b for found in matched]
    drawing = _drawing(*sides, rng, apart=unpaired)
    found = list(_statistics(drawing))
    widened = together([_scaled(row) for row in found])
    cuts = [side.cut for side in (*sides[0], *(sides[1] if unpaired else ()))]
    comparison = Comparison(
        verdict="",
        labels=tuple((a.head.label, b.head.label) for a, b in pairs),
        paired=not unpaired,
        slo=slo,
        rows=tuple(_row(row, drawing.num_blocks, widened) for row in found),
        widened=widened,
        cuts=tuple(cuts),
        programs=sum(cut.programs for cut in cuts),
        failures=_failures([found.failures for found in matched]),
        invalid=invalid(pairs),
        differs=differences(pairs),
        notes=notes_of(pairs, cuts, [found.one_sided for found in matched], unpaired),
        curves=_curves(drawing),
        points=matched[0].points if matched else None,
        seed=seed,
    )
    return replace(comparison, verdict=sentence(comparison))


def _drawing(a: list[Side], b: list[Side], rng: np.random.Generator, *, apart: bool) -> _Drawing:
    drawn_a = weights([side.cut.num for side in a], rng)
    drawn_b = weights([side.cut.num for side in b], rng) if apart else drawn_a
    return _Drawing(a, b, drawn_a, drawn_b)


def _statistics(drawing: _Drawing) -> Iterator[_Found]:
    for metric in (*LATENCIES, TOKENS):
        if metric.name != "jct" or not _only_lone_requests(drawing):
            yield from _of_values(drawing, metric)
    for metric in TOTALS:
        if all(metric.name in side.sums for side in (*drawing.a, *drawing.b)):
            yield from _of_sums(drawing, metric)


def _of_values(drawing: _Drawing, metric: Metric) -> Iterator[_Found]:
    a, b = (_pooled_values(sides, metric.name) for sides in (drawing.a, drawing.b))
    found_a = statistics(a.values, a.blocks, drawing.drawn_a)
    found_b = statistics(b.values, b.blocks, drawing.drawn_b)
    for name in ("mean",) if metric is TOKENS else (*PERCENTILES, "mean"):
        if name in found_a and name in found_b:
            by_pair = [
                tuple(point(side.values[metric.name].values, name) for side in sides)
                for sides in (drawing.a, drawing.b)
            ]
            pairs = tuple(zip(*by_pair, strict=True))
            num, late = (a.values.size, b.values.size), _late(drawing, metric, name)
            yield _Found(metric, name, num, found_a[name], found_b[name], pairs, late)


def _late(drawing: _Drawing, metric: Metric, statistic: str) -> float | None:
    """The statistic of what the client may be to blame for, in the run where it is largest."""
    lates = [side.late[metric.name] for side in (*drawing.a, *drawing.b) if metric.name in side.late]
    known = [point(late, statistic) for late in lates if late.size]
    return max(known) if known else None


def _of_sums(drawing: _Drawing, metric: Metric) -> Iterator[_Found]:
    sums = [_pooled_sums(sides, metric.name) for sides in (drawing.a, drawing.b)]
    a, b = quotient(*sums[0], drawing.drawn_a), quotient(*sums[1], drawing.drawn_b)
    if a is not None and b is not None:
        by_pair = [
            tuple(share(*side.sums[metric.name]) for side in sides) for sides in (drawing.a, drawing.b)
        ]
        num = drawing.drawn_a.shape[1], drawing.drawn_b.shape[1]
        yield _Found(metric, "", num, a, b, tuple(zip(*by_pair, strict=True)))


def _only_lone_requests(drawing: _Drawing) -> bool:
    """Then a program's JCT is its request's E2E."""
    return all(side.lone for side in (*drawing.a, *drawing.b))


def _pooled_values(sides: Sequence[Side], name: str) -> Values:
    """The values of all sides, their blocks one side's after another's."""
    starts = np.cumsum([0, *(side.cut.num for side in sides)])
    parts = [side.values[name] for side in sides]
    blocks = [part.blocks + start for part, start in zip(parts, starts[:-1], strict=True)]
    return Values(np.concatenate([part.values for part in parts]), np.concatenate(blocks))


def _pooled_sums(sides: Sequence[Side], name: str) -> Sums:
    parts = [side.sums[name] for side in sides]
    return Sums(np.concatenate([p.top for p in parts]), np.concatenate([p.bottom for p in parts]))


class _Change(NamedTuple):
    """B against A on one scale: over all pairs with draws, and pair by pair."""

    drawn: Drawn
    by_pair: list[float]


def _log_ratio(found: _Found) -> _Change | None:
    """None where a ratio has no logarithm."""
    if not (found.a.value > 0 and found.b.value > 0):
        return None
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = np.log(found.b.draws / found.a.draws)
    value = float(np.log(found.b.value / found.a.value))
    drawn = Drawn(value, np.where(np.isfinite(draws), draws, np.nan))
    return _Change(drawn, [float(np.log(b / a)) for a, b in found.by_pair if a > 0 and b > 0])


def _difference(found: _Found) -> _Change:
    drawn = Drawn(found.b.value - found.a.value, found.b.draws - found.a.draws)
    return _Change(drawn, [b - a for a, b in found.by_pair])


def _scaled(found: _Found) -> Drawn:
    ratio = _log_ratio(found) if found.metric.scale == "ratio" else None
    return (_difference(found) if ratio is None else ratio).drawn


def _row(found: _Found, num_blocks: int, widened: float) -> Row:
    ratio = wide_ratio = difference = wide_difference = None
    if num_blocks >= MIN_BLOCKS:
        difference, wide_difference = _intervals(_difference(found), num_blocks, widened)
        logs = _log_ratio(found)
        if logs is not None:
            ratio, wide_ratio = (_exp(bounds) for bounds in _intervals(logs, num_blocks, widened))
    if found.metric.scale == "ratio":
        reading = _read(wide_ratio, 1.0, EQUAL, found.metric.sign)
    else:
        reading = _read(wide_difference, 0.0, EQUAL_SHARE, found.metric.sign)
    if found.late is not None and reading in ("better", "worse"):
        reading = reading if abs(found.b.value - found.a.value) > found.late else "unclear"
    return Row(
        metric=found.metric,
        statistic=found.statistic,
        num=found.num,
        a=found.a.value,
        b=found.b.value,
        ratio=ratio,
        difference=difference,
        late=found.late,
        reading=reading,
    )


def _intervals(change: _Change, num_blocks: int, widened: float) -> tuple[Interval | None, Interval | None]:
    """The interval, and the one for many comparisons."""
    lacking = noise(change.drawn, num_blocks, change.by_pair)
    return interval(change.drawn, lacking), interval(change.drawn, lacking, widened)


def _exp(logs: Interval | None) -> Interval | None:
    return None if logs is None else Interval(*(float(np.exp(bound)) for bound in logs))


def _read(wide: Interval | None, none: float, equal: float, sign: int) -> Reading:
    if wide is None:
        return ""
    if none - equal <= wide.low and wide.high <= none + equal:
        return "same"
    if wide.low <= none <= wide.high:
        return "unclear"
    more = wide.low > none
    if sign == 0:
        return "more" if more else "less"
    return "better" if more == (sign > 0) else "worse"


def _failures(parts: Sequence[Failures]) -> Failures | None:
    return Failures(*(sum(numbers) for numbers in zip(*parts, strict=True))) if parts else None


def _curves(drawing: _Drawing) -> dict[str, tuple[Floats, Floats]]:
    curves = {}
    for metric in LATENCIES:
        a, b = (_pooled_values(sides, metric.name).values for sides in (drawing.a, drawing.b))
        if a.size and b.size and not (metric.name == "jct" and _only_lone_requests(drawing)):
            curves[metric.name] = (np.quantile(a, CURVE), np.quantile(b, CURVE))
    return curves
