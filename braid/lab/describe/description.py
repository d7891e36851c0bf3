"""A whole trace described: every statistic of BurstGPT's characterisation (arXiv 2401.17644), for any trace."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import msgspec
import numpy as np

from braid.lab.arrays import counted, tokens
from braid.lab.describe.burst import Burstiness, burstiness
from braid.lab.describe.failures import Failures, failures
from braid.lab.describe.lengths import LengthLaw, length_law
from braid.lab.describe.panels import Panel, panels
from braid.lab.describe.programs import Gaps, Growth, Sharing, Turns, gaps, growth, sharing, turns
from braid.lab.describe.published import Published, published
from braid.lab.describe.rates import Calendar, LoadSeries, calendar, load_series
from braid.lab.describe.relation import Relation, relation
from braid.lab.progress import NoProgress, Progress
from braid.lab.table import STATUSES, Finding, Trace, TraceInfo

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
    what could not be described, and why. ``published`` is there where the trace is one of BurstGPT's files.
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
    published: Published | None = None

    def as_json(self) -> dict[str, Any]:
        """For ``json.dump(..., allow_nan=False)``: NaN and infinity become null."""
        plain: dict[str, Any] = _plain(msgspec.to_builtins(self))
        return plain


def describe(trace: Trace, progress: Progress | None = None, seed: int = 0) -> Description:
    """Describe a trace. ``seed`` is of the bootstraps."""
    told = progress or NoProgress()
    table = _Table.of(trace)
    rng = np.random.default_rng(seed)

    def step(number: int) -> None:
        told.update(STEPS[number] if number < len(STEPS) else "described", number, len(STEPS))

    step(0)
    series = load_series(*table.rows.timed) if table.has_times else None
    step(1)
    arrivals = burstiness(table.t_s, trace.info.t_quantum_s) if table.has_times else None
    step(2)
    split = [table.rows.take(np.flatnonzero(table.codes == code)) for code in range(len(table.panels))]
    failed = failures(
        table.t_s if table.has_times and table.t_s.size == trace.num_requests else None,
        table.rows.failed,
        table.rows.known,
        table.statuses,
        [(part.failed, part.known) for part in split or [table.rows]],
    )
    step(3)
    whole = _panel(_whole(trace), table, table.rows, rng)
    parts = tuple(_panel(panel, table, rows, rng) for panel, rows in zip(table.panels, split, strict=True))
    step(5)
    frame = trace.frame
    program_parts = turns(frame), gaps(frame), growth(frame)
    step(6)
    shared = sharing(frame, trace.info.block_size, trace.info.hash_scope)
    step(7)
    found = Description(
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
        panels=parts,
        turns=program_parts[0],
        gaps=program_parts[1],
        growth=program_parts[2],
        sharing=shared,
        skipped=_skipped(table, program_parts, shared, trace.span_s),
    )
    return replace(found, published=published(found))


class _Rows(NamedTuple):
    """Columns that are used more than once. Those with a time come first and ascend; 0 tokens stand for unknown."""

    t_s: np.ndarray
    in_tok: np.ndarray
    out_tok: np.ndarray
    failed: np.ndarray
    known: np.ndarray

    def take(self, rows: np.ndarray) -> _Rows:
        timed = rows[: np.searchsorted(rows, self.t_s.size)]
        return _Rows(self.t_s[timed], *(values[rows] for values in self[1:]))

    @property
    def timed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.t_s, self.in_tok[: self.t_s.size], self.out_tok[: self.t_s.size]

    def answered(self) -> tuple[np.ndarray, np.ndarray]:
        """Prompt and output tokens, 0 where the request failed."""
        return np.where(self.failed, 0, self.in_tok), np.where(self.failed, 0, self.out_tok)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Table:
    """All rows, and the panel of each; no panels where there is only one."""

    rows: _Rows
    statuses: dict[str, int]
    panels: tuple[Panel, ...]
    codes: np.ndarray

    @classmethod
    def of(cls, trace: Trace) -> _Table:
        frame = trace.frame
        found, codes = panels(frame)
        status = frame["status"].fill_null("unknown").to_physical().to_numpy()
        counts = np.bincount(status, minlength=len(STATUSES)).tolist()
        rows = _Rows(
            t_s=frame["t_s"].drop_nulls().to_numpy(),
            in_tok=tokens(frame, "in_tok"),
            out_tok=tokens(frame, "out_tok"),
            failed=status == STATUSES.index("failed"),
            known=status != STATUSES.index("unknown"),
        )
        return cls(
            rows=rows,
            statuses={
                name: num for num, name in sorted(zip(counts, STATUSES, strict=True), reverse=True) if num
            },
            panels=found if len(found) > 1 else (),
            codes=codes,
        )

    @property
    def t_s(self) -> np.ndarray:
        return self.rows.t_s

    @property
    def has_times(self) -> bool:
        return self.t_s.size > 2 and bool(self.t_s[-1] > self.t_s[0])


def _panel(panel: Panel, table: _Table, rows: _Rows, rng: np.random.Generator) -> PanelDescription:
    by_clock = None
    if table.has_times and table.t_s[-1] - table.t_s[0] >= CALENDAR_S:
        begin = np.floor(table.t_s[0] / 86400) * 86400
        by_clock = calendar(*rows.timed, float(begin), float(table.t_s[-1]))
    inputs, outputs = rows.answered()
    return PanelDescription(
        panel=panel,
        calendar=by_clock,
        input=length_law(counted(inputs), rng),
        output=length_law(counted(outputs), rng),
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
        "failures": None if table.rows.failed.any() else "the trace holds no failed request",
        "input lengths": None if (table.rows.in_tok >= 1).any() else "the trace has no prompt lengths",
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
