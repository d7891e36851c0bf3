"""A whole trace described: every statistic of BurstGPT's characterisation (arXiv 2401.17644), for any trace."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl

from braid.lab.describe.arrays import column
from braid.lab.describe.burst import Burstiness, burstiness
from braid.lab.describe.failures import Failures, failures
from braid.lab.describe.lengths import LengthLaw, length_law
from braid.lab.describe.panels import Panel, panels
from braid.lab.describe.programs import Gaps, Growth, Sharing, Turns, gaps, growth, sharing, turns
from braid.lab.describe.rates import Calendar, LoadSeries, calendar, load_series
from braid.lab.describe.relation import Relation, relation
from braid.lab.progress import NoProgress, Progress
from braid.lab.table import Finding, Trace, TraceInfo

DESCRIPTION_VERSION = 1
CALENDAR_S = 2 * 86400.0
STEPS = ("load through time", "burstiness", "failures", "lengths", "input and output", "programs", "prefixes")


@dataclass(frozen=True, kw_only=True, slots=True)
class PanelDescription:
    """One panel: its load by the clock (from two days on), its laws, its relation. None where there is too little."""

    panel: Panel
    calendar: Calendar | None
    input: LengthLaw | None
    output: LengthLaw | None
    relation: Relation | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """Everything the lab says of a trace. All figures are drawn from this alone, and it is all numbers and words.

    ``whole`` is the trace as one panel, ``panels`` its largest ones (empty where there is only one). ``skipped`` says
    what could not be described, and why.
    """

    version: int
    info: TraceInfo
    findings: tuple[Finding, ...]
    rows: int
    programs: int
    span_s: float
    load: LoadSeries | None
    burstiness: Burstiness | None
    failures: Failures
    whole: PanelDescription
    panels: tuple[PanelDescription, ...]
    turns: Turns | None
    gaps: Gaps | None
    growth: Growth | None
    sharing: Sharing | None
    skipped: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """For ``json.dump(..., allow_nan=False)``: NaN and infinity become null."""
        plain: dict[str, Any] = _plain(asdict(self))
        return plain


def describe(trace: Trace, progress: Progress | None = None, seed: int = 0) -> Description:
    """Describe a trace. ``seed`` is of the bootstraps."""
    told = progress or NoProgress()
    table = _Table.of(trace)
    rng = np.random.default_rng(seed)

    def step(number: int) -> None:
        told.update(STEPS[number] if number < len(STEPS) else "described", number, len(STEPS))

    step(0)
    series = load_series(*table.timed()) if table.has_times else None
    step(1)
    arrivals = burstiness(table.t_s, trace.info.t_quantum_s) if table.has_times else None
    step(2)
    failed = failures(
        table.t_s if table.has_times and table.t_s.size == table.failed.size else None,
        table.failed,
        table.known,
        table.statuses,
        [table.codes == code for code in range(len(table.panels))],
    )
    step(3)
    whole = _panel(_whole(trace), table, np.ones(trace.num_requests, bool), rng)
    parts = tuple(_panel(part, table, table.codes == code, rng) for code, part in enumerate(table.panels))
    step(5)
    frame = trace.frame
    program_parts = turns(frame), gaps(frame), growth(frame)
    step(6)
    shared = sharing(frame, trace.info.block_size, trace.info.hash_scope)
    step(7)
    return Description(
        version=DESCRIPTION_VERSION,
        info=trace.info,
        findings=trace.findings,
        rows=trace.num_requests,
        programs=trace.num_programs,
        span_s=trace.span_s,
        load=series,
        burstiness=arrivals,
        failures=failed,
        whole=whole,
        panels=parts if len(parts) > 1 else (),
        turns=program_parts[0],
        gaps=program_parts[1],
        growth=program_parts[2],
        sharing=shared,
        skipped=_skipped(table, program_parts, shared, trace.span_s),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    """The columns that are used more than once. Rows with a time come first and ascend."""

    t_s: np.ndarray
    in_tok: np.ndarray
    out_tok: np.ndarray
    failed: np.ndarray
    known: np.ndarray
    statuses: dict[str, int]
    panels: tuple[Panel, ...]
    codes: np.ndarray

    @classmethod
    def of(cls, trace: Trace) -> _Table:
        frame = trace.frame
        found, codes = panels(frame)
        status = frame["status"].cast(pl.String).fill_null("unknown")
        return cls(
            t_s=frame["t_s"].drop_nulls().to_numpy(),
            in_tok=column(frame, "in_tok"),
            out_tok=column(frame, "out_tok"),
            failed=(status == "failed").to_numpy(),
            known=(status != "unknown").to_numpy(),
            statuses=dict(status.value_counts(sort=True).iter_rows()),
            panels=found,
            codes=codes,
        )

    @property
    def has_times(self) -> bool:
        return self.t_s.size > 2 and bool(self.t_s[-1] > self.t_s[0])

    def timed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.t_s, self.in_tok[: self.t_s.size], self.out_tok[: self.t_s.size]


def _panel(panel: Panel, table: _Table, mask: np.ndarray, rng: np.random.Generator) -> PanelDescription:
    answered = mask & ~table.failed
    inputs, outputs = table.in_tok[answered], table.out_tok[answered]
    by_clock = None
    if table.has_times and table.t_s[-1] - table.t_s[0] >= CALENDAR_S:
        inside = mask[: table.t_s.size]
        begin = np.floor(table.t_s[0] / 86400) * 86400
        times, ins, outs = (values[inside] for values in table.timed())
        by_clock = calendar(times - begin, ins, outs, float(table.t_s[-1] - begin))
    return PanelDescription(
        panel=panel,
        calendar=by_clock,
        input=length_law(inputs, rng),
        output=length_law(outputs, rng),
        relation=relation(inputs, outputs),
    )


def _whole(trace: Trace) -> Panel:
    return Panel(name="all requests", model=None, kind=None, num_requests=trace.num_requests, share=1.0)


def _skipped(
    table: _Table,
    parts: tuple[Turns | None, Gaps | None, Growth | None],
    shared: Sharing | None,
    span_s: float,
) -> dict[str, str]:
    reasons = {
        "arrivals": None if table.has_times else "the trace has no arrival times",
        "calendar": None if span_s >= CALENDAR_S else "the trace is shorter than two days",
        "failures": None if table.failed.any() else "the trace holds no failed request",
        "input lengths": None if (table.in_tok >= 1).any() else "the trace has no prompt lengths",
        "turns": None if parts[0] else "the trace names no programs",
        "gaps": None if parts[1] else "the trace has no gaps between turns",
        "growth": None if parts[2] else "no program has two turns with known prompt lengths",
        "prefixes": None if shared else "the trace has neither block ids nor cached tokens",
    }
    return {name: reason for name, reason in reasons.items() if reason}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value
