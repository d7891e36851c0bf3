"""What a comparison of runs A and B holds: rows, what they rest on, and the sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from braid.core.metrics import SLO
from braid.lab.distance import Floats
from braid.lab.versus.bootstrap import Cut, Interval
from braid.lab.versus.sides import Failures, Points

Reading = Literal["better", "worse", "more", "less", "same", "unclear", ""]
Scale = Literal["ratio", "difference"]

EQUAL = 0.02
"""Ratios within 1 +- this are the same for any purpose."""
EQUAL_SHARE = 0.005
"""Shares that differ by less than this, too."""


class Metric(NamedTuple):
    """``sign``: 1 where more is better, -1 where less is, 0 where neither. ``scale``: what the reading goes by."""

    name: str
    title: str
    unit: str
    sign: int
    scale: Scale


LATENCIES = tuple(
    Metric(name, name.upper(), "s", -1, "ratio") for name in ("ttft", "tpot", "tbt", "e2e", "jct")
)
TOKENS = Metric("tokens", "output tokens", "tokens", 0, "ratio")
TOTALS = (
    Metric("attainment", "SLO attainment", "share", 1, "difference"),
    Metric("goodput", "goodput", "requests/s", 1, "ratio"),
    Metric("output_rate", "throughput", "tokens/s", 1, "ratio"),
    Metric("request_rate", "answers", "requests/s", 1, "ratio"),
    Metric("refused", "refused", "share", -1, "difference"),
    Metric("failed", "failed", "share", -1, "difference"),
    Metric("cached", "cached prompt tokens", "share", 0, "difference"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One statistic of both runs.

    Args:
        statistic: ``p50 p90 p99 mean``; empty for shares and rates.
        num: values behind it in A and in B (of the same requests, where runs are paired); of shares and rates the
            blocks.
        ratio: B / A, with its interval; ``difference``: B - A; None where there is none.
        late: by how much the client may be to blame, in seconds (the same statistic of its lag, in the worse run); a
            smaller difference is never clear. None where that does not apply.
        reading: what B is against A, by ``metric.scale``: ``better``, ``worse`` (``more``, ``less`` where neither is
            good), ``same``, ``unclear``; empty where nothing can be said.
    """

    metric: Metric
    statistic: str
    num: tuple[int, int]
    a: float
    b: float
    ratio: Interval | None
    difference: Interval | None
    late: float | None
    reading: Reading

    @property
    def title(self) -> str:
        return f"{self.metric.title} {self.statistic}".strip()

    @property
    def compared(self) -> Interval | None:
        return self.ratio if self.metric.scale == "ratio" else self.difference


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """All that is said of runs A and B.

    Args:
        verdict: the sentence.
        labels: of the runs, pair by pair.
        paired: whether the runs of a pair are of one plan.
        rows: the table. ``widened``: by what the intervals are widened before a difference is called clear.
        cuts: the blocks of each pair; of runs that are not paired, of each A and then of each B.
        programs: measured in both runs, over all pairs; in A and in B together, where runs are not paired.
        failures: of paired runs.
        invalid: why runs are invalid; ``differs``: in what the runs of a pair differ; ``notes``: what else to know.
        curves: metric -> quantiles of A and of B at ``measure.CURVE``; ``points``: requests of the first pair.
    """

    verdict: str
    labels: tuple[tuple[str, str], ...]
    paired: bool
    slo: SLO
    rows: tuple[Row, ...]
    widened: float
    cuts: tuple[Cut, ...]
    programs: int
    failures: Failures | None
    invalid: tuple[str, ...]
    differs: tuple[str, ...]
    notes: tuple[str, ...]
    curves: Mapping[str, tuple[Floats, Floats]]
    points: Points | None
    seed: int

    def as_json(self) -> dict[str, Any]:
        """Plain data without curves and points."""
        names = ("verdict", "labels", "paired", "widened", "programs", "invalid", "differs", "notes", "seed")
        failures = None if self.failures is None else self.failures._asdict()
        return {
            **{name: getattr(self, name) for name in names},
            "slo": asdict(self.slo),
            "failures": failures,
            "blocks": [found._asdict() for found in self.cuts],
            "rows": [_plain(row) for row in self.rows],
        }


def _plain(row: Row) -> dict[str, Any]:
    bounds = {
        name: None if found is None else found._asdict()
        for name, found in (("ratio", row.ratio), ("difference", row.difference))
    }
    return {
        "metric": row.metric.name,
        "statistic": row.statistic,
        "unit": row.metric.unit,
        "num": row.num,
        "a": row.a,
        "b": row.b,
        **bounds,
        "late": row.late,
        "read_by": row.metric.scale,
        "reading": row.reading,
    }
