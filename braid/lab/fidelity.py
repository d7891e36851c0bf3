"""Proof on data that the fit did not see: the chosen arrivals and the baselines, generated and compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import numpy as np

from braid.lab.compare import IDC_SLACK, Part, Row, compare
from braid.lab.fit.profile import Profile
from braid.lab.generate import ArrivalsFrom, Plan, generate_trace
from braid.lab.progress import NoProgress, Progress
from braid.lab.split import spans_of

RUNS = 24
MAX_REQUESTS = 3_000_000
TIMELESS_RUNS = 8
TIMELESS_S = 3600.0

Proof = Mapping[str, tuple[Row, ...]]
"""Rows of ``compare`` per kind of arrivals (``chosen`` and the baselines); one kind where there is no clock."""


def prove(
    profile: Profile,
    held_out: Part,
    train: Part,
    *,
    idc_slack: float = IDC_SLACK,
    seed: int = 7,
    runs: int = RUNS,
    progress: Progress | None = None,
) -> Proof:
    """Generate ``runs`` times the held-out part's length (fewer past ``MAX_REQUESTS``) and compare.

    Args:
        profile: fitted to ``train`` alone.

    Raises:
        TraceError: a part is empty.
    """
    progress = progress or NoProgress()
    timeless = any(stream.arrivals is None for stream in profile.streams)
    kinds: tuple[ArrivalsFrom, ...] = ("chosen",) if timeless else get_args(ArrivalsFrom)
    plan = _timeless(train, seed) if timeless else _timed(profile, held_out, seed, runs)
    proof: dict[str, tuple[Row, ...]] = {}
    for place, kind in enumerate(kinds):
        progress.update("comparing with the held-out part", place, len(kinds))
        made = generate_trace(profile, Plan(seed=seed, span_s=plan.span_s, rate=plan.rate, arrivals=kind))
        proof[kind] = tuple(compare(held_out, Part(trace=made), train, idc_slack=idc_slack))
    return proof


def _timed(profile: Profile, held_out: Part, seed: int, runs: int) -> Plan:
    spans = held_out.covered or spans_of(held_out.trace)
    length = spans[-1][1] - spans[0][0]
    most = runs if profile.rate is None else max(1, int(MAX_REQUESTS // (profile.rate * length)))
    return Plan(seed=seed, span_s=length * min(runs, most))


def _timeless(train: Part, seed: int) -> Plan:
    """Starts of an hour, dense enough for several times the data; only lengths, turns and gaps are compared."""
    requests = min(TIMELESS_RUNS * train.frame().height, MAX_REQUESTS)
    return Plan(seed=seed, span_s=TIMELESS_S, rate=requests / TIMELESS_S)


def both_ways(one: Proof, other: Proof, idc_slack: float = IDC_SLACK) -> Proof:
    """Two proofs of one trace with the parts' roles swapped, as one.

    Distances are the larger of both. Ratios are the geometric mean: where the parts differ by their own luck, one way
    comes out as much too high as the other too low, so the slack needs no widening.
    """
    merged: dict[str, tuple[Row, ...]] = {}
    for kind, rows in one.items():
        others = {row.name: row for row in other[kind]}
        merged[kind] = tuple(_merged(row, others[row.name], idc_slack) for row in rows if row.name in others)
    return merged


def _merged(a: Row, b: Row, slack: float) -> Row:
    if not a.is_ratio:
        return max(a, b, key=lambda row: row.value - row.bound)
    value, low, high = (
        float(np.sqrt(x * y)) for x, y in ((a.value, b.value), (a.low, b.low), (a.high, b.high))
    )
    return Row(a.name, value, low, high, None, slack, abs(value - 1) <= slack, a.judged)
