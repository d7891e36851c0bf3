"""One sentence on what a comparison found. It claims what intervals support and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from braid.lab.versus.bootstrap import Interval
from braid.lab.versus.comparison import EQUAL, LATENCIES, TOKENS, Comparison, Row
from braid.lab.versus.sides import Failures

ORDER = ("p99", "p50", "mean", "p90", "")
"""Which statistic of a metric is told, if several are clear."""
BY_LENGTH = ("e2e", "jct", "output_rate", "request_rate")
"""What says nothing where one server wrote more than the other."""
SPOKEN = (*(metric.name for metric in LATENCIES), "attainment", "goodput", "output_rate", "refused", "failed")
QUIET = ("goodput", "output_rate", "refused", "failed")
"""Told only where clear."""


class _Sorted(NamedTuple):
    good: list[Row]
    bad: list[Row]
    same: list[str]
    open: list[str]


def sentence(found: Comparison) -> str:
    """The verdict; what makes it worthless comes first."""
    head, tail = _judged(found), list(_tail(found))
    text = "; ".join([head, *tail]) + "."
    if found.invalid:
        return f"INVALID, so nothing below is a result: {' '.join(found.invalid)} Otherwise: {text}"
    return text


def _judged(found: Comparison) -> str:
    a, b = _names(found.labels)
    if not any(row.reading for row in found.rows):
        return f"No verdict on {b} against {a}: too few programs were measured for an interval"
    sorted_ = _sort(found.rows, _skipped(found.rows))
    good, bad = sorted_.good, sorted_.bad
    if good and bad:
        return f"{b} is better than {a} in {_claims(good)}, but worse in {_claims(bad)}"
    if good:
        word = "faster" if _only_latency(good) else "better"
        return f"{b} is {word} than {a}: {_claims(good)}"
    if bad:
        word = "slower" if _only_latency(bad) else "worse"
        return f"{b} is {word} than {a}: {_claims(bad)}"
    if sorted_.same and not sorted_.open:
        return f"{b} and {a} are the same within {EQUAL:.0%}"
    return f"No clear difference between {b} and {a}"


def _tail(found: Comparison) -> Iterator[str]:
    skipped = _skipped(found.rows)
    sorted_ = _sort(found.rows, skipped)
    claimed = bool(sorted_.good or sorted_.bad)
    if sorted_.same and (claimed or sorted_.open):
        yield f"the same {_list(sorted_.same)} within {EQUAL:.0%}"
    if sorted_.open and claimed:
        yield f"no clear difference in {_list(sorted_.open)}"
    if skipped:
        row = next(row for row in found.rows if row.metric is TOKENS)
        yield f"E2E, JCT and throughput are not judged, since B wrote {row.b / row.a:.2f}x the tokens of A"
    if found.failures is not None:
        yield from _failed(found.failures)
    if len(found.labels) > 1:
        yield f"{len(found.labels)} pairs of runs"
    elif claimed:
        yield "one pair of runs"


def _names(labels: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """A and B, with their labels where these tell them apart."""
    firsts, seconds = ({pair[side] for pair in labels} for side in (0, 1))
    if len(firsts) == 1 and len(seconds) == 1 and firsts != seconds and all(firsts | seconds):
        return f"A ({firsts.pop()})", f"B ({seconds.pop()})"
    return "A", "B"


def _skipped(rows: Iterable[Row]) -> tuple[str, ...]:
    row = next((row for row in rows if row.metric is TOKENS), None)
    differs = row is not None and row.a > 0 and abs(row.b / row.a - 1) > EQUAL
    return BY_LENGTH if differs else ()


def _sort(rows: Sequence[Row], skipped: Iterable[str]) -> _Sorted:
    sorted_ = _Sorted([], [], [], [])
    for name in SPOKEN:
        of_metric = [row for row in rows if row.metric.name == name and row.reading]
        if name in skipped or not of_metric:
            continue
        of_metric.sort(key=lambda row: ORDER.index(row.statistic))
        good, bad = ([row for row in of_metric if row.reading == word] for word in ("better", "worse"))
        sorted_.good.extend(good[:1])
        sorted_.bad.extend(bad[:1])
        if not good and not bad and name not in QUIET:
            alike = all(row.reading == "same" for row in of_metric)
            (sorted_.same if alike else sorted_.open).append(of_metric[0].metric.title)
    return sorted_


def _only_latency(rows: Iterable[Row]) -> bool:
    return all(row.metric in LATENCIES for row in rows)


def _claims(rows: Iterable[Row]) -> str:
    return ", ".join(f"{row.title} {_change(row)}" for row in rows)


def _change(row: Row) -> str:
    found = row.compared
    assert found is not None  # only rows with a reading are told
    if row.metric.scale == "ratio":
        return f"{ratio(found)}"
    return f"{row.a:.1%} -> {row.b:.1%} ({points(found)})"


def ratio(found: Interval) -> str:
    """``0.62x (0.55 .. 0.71)``, with the digits that tell it from 1."""
    digits = 2 if abs(found.value - 1) >= 0.05 else 3
    return f"{found.value:.{digits}f}x ({found.low:.{digits}f} .. {found.high:.{digits}f})"


def points(found: Interval) -> str:
    """``+1.2 .. +3.4 points``."""
    return f"{100 * found.low:+.1f} .. {100 * found.high:+.1f} points"


def _failed(found: Failures) -> Iterator[str]:
    parts = [
        f"{num:,}{where}"
        for num, where in (
            (found.a_only, " in A only"),
            (found.b_only, " in B only"),
            (found.both, " in both"),
        )
        if num
    ]
    if parts:
        first, *rest = parts
        number, _, where = first.partition(" ")
        yield ", ".join([f"{number} of {found.total:,} requests failed {where}", *rest])


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
