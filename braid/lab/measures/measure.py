"""What a run says: latencies, validity, what was achieved of the plan, throughput, goodput, and all of it over time.

``measure`` gives a ``Measures``, plain data whose ``as_json`` has the fields' names as keys. Latency counts from the
scheduled time, over the answered (``ok``) requests that were scheduled in the run's window; goodput and SLO attainment
count every planned request of the window. None stands for what has no value, such as a percentile of nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, NamedTuple

import msgspec
import numpy as np
import polars as pl

from braid.core.metrics import SLO, Summary
from braid.lab.measures.achieved import Achieved, achieved
from braid.lab.measures.samples import Floats, Samples, kept, program_frame, samples
from braid.lab.measures.validity import Verdict, judge
from braid.lab.measures.windows import Window, windows
from braid.lab.replay.outcome import STATUSES
from braid.lab.replay.record import Run, RunHead

NUM_REASONS = 10
CURVE = np.concatenate([np.linspace(0, 0.99, 100), [0.995, 0.999, 1.0]])
"""Shares at which distribution functions are kept."""


_STATUS = r"^(\d{3}: )"
_NUMBERS = r"\b(?:0x)?[0-9a-fA-F-]*\d[0-9a-fA-F-]*\b|\d+"
"""Numbers and ids: what makes the same complaint of two requests two texts."""
_DIFFER = " (numbers differ)"


class Reason(NamedTuple):
    """Why requests were not answered: the words of the server or the socket, and how often. Texts that differ by
    numbers only are one reason, in the words of the first; they say so."""

    status: str
    reason: str
    num: int


class Refusals(NamedTuple):
    """Requests that stayed refused, and requests sent again after a refusal. ``retries`` counts the extra attempts."""

    with_retry_after: int
    without_retry_after: int
    retries: int


class Rates(NamedTuple):
    """Per second, over ``span_s`` seconds: answers that ended, prompt tokens whose answer began, output tokens that
    came (whatever became of their request later)."""

    span_s: float
    requests: float
    prompt_tokens: float
    output_tokens: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Planned requests: all, and how many belong to the window. ``unplaced`` have no time at all and belong nowhere.

    Programs of the window (a lone request is one of one turn): all, those answered in full, and the others.
    """

    planned: int
    before: int
    measured: int
    after: int
    unplaced: int
    programs: int
    programs_finished: int
    programs_unfinished: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Goodput:
    """Over the planned requests of the window; refused, failed and unsent ones count as missed.

    Args:
        kept: how many kept every limit.
        attainment: their share; None without requests.
        per_s: their number per second of the window; None where it has no length.
        shares: of the planned requests, by limit alone (``answered`` is the share that was answered at all).
        programs_kept, program_attainment: programs answered in full and within the limit of JCT, of all programs.
    """

    kept: int
    attainment: float | None
    per_s: float | None
    shares: Mapping[str, float]
    programs_kept: int
    program_attainment: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Measures:
    """All that was measured.

    Args:
        head: what is known of the run.
        slo: the limits that goodput counts by.
        verdict: whether the numbers may be believed, and why not.
        counts: requests and programs by where they lie.
        outcomes: status -> requests of the whole run; ``measured_outcomes``: of the window.
        conserved: planned = sum of the outcomes, each request once.
        latency: ``ttft``, ``tbt``, ``piece_gap`` (between pieces of a stream), ``tpot``, ``e2e``, ``jct``,
            ``ttft_from_send``, ``e2e_from_send`` -> ``num, mean, p50, p90, p99, max`` in seconds.
        send_lag, read_lag: of the window's sent requests, in seconds.
        achieved: planned against done: tokens, cached tokens, order and span of sends.
        throughput: in the window; ``run_throughput``: from the first scheduled request to the last end.
        goodput: SLO attainment and goodput.
        refusals, failures: of the whole run; the ten most frequent reasons.
        windows: rows over time, each ``window_step_s`` long.
        curves: ``ttft``, ``tbt``, ``e2e``, ``jct``, ``send_lag`` -> pairs (seconds, share at most that).
    """

    head: RunHead
    slo: SLO
    verdict: Verdict
    counts: Counts
    outcomes: Mapping[str, int]
    measured_outcomes: Mapping[str, int]
    conserved: bool
    latency: Mapping[str, Summary | None]
    send_lag: Summary | None
    read_lag: Summary | None
    achieved: Achieved
    throughput: Rates | None
    run_throughput: Rates | None
    goodput: Goodput
    refusals: Refusals
    failures: tuple[Reason, ...]
    window_step_s: float
    windows: tuple[Window, ...]
    curves: Mapping[str, tuple[tuple[float, float], ...]]

    @property
    def valid(self) -> bool:
        return self.verdict.valid

    @property
    def has_programs(self) -> bool:
        """Programs of more than one turn; without them JCT says no more than E2E."""
        return self.counts.programs < self.counts.measured

    def as_json(self) -> dict[str, Any]:
        """Mappings, lists, words and finite numbers only."""
        plain: dict[str, Any] = _plain(self)
        return plain


def measure(run: Run, slo: SLO = SLO(), window_step_s: float | None = None) -> Measures:  # noqa: B008 (frozen)
    """Measure a run; ``window_step_s`` for rows over time of another length (see ``windows``).

    Raises:
        TraceError: the rows contradict themselves.
    """
    found = samples(run)
    programs = program_frame(run, slo, found).filter("measured")
    answered = found.measured & found.has("ok")
    latency, curves = _latency(found, answered, programs)
    sent = found.measured & ~np.isnan(found.lag)
    lag, read = summary_of(found.lag[sent]), summary_of(found.read_lag[sent])
    counts = _counts(run, found, programs)
    outcomes = _by_status(found.status)
    conserved = sum(outcomes.values()) == run.frame.height and _numbered(run.frame)
    done = achieved(run, found)
    step, rows = windows(run, found, window_step_s)
    curves["send_lag"] = curve_of(found.lag[sent])
    return Measures(
        head=run.head,
        slo=slo,
        verdict=judge(run, found, latency, lag, read, done, conserved),
        counts=counts,
        outcomes=outcomes,
        measured_outcomes=_by_status(found.status[found.measured]),
        conserved=conserved,
        latency=latency,
        send_lag=lag,
        read_lag=read,
        achieved=done,
        throughput=_rates(run, found, *run.head.window_s),
        run_throughput=_rates(run, found, *_span(found)),
        goodput=_goodput(run, found, slo, programs),
        refusals=_refusals(run.frame),
        failures=_failures(run.frame),
        window_step_s=step,
        windows=rows,
        curves=curves,
    )


def summary_of(values: Floats) -> Summary | None:
    """``braid.core.metrics.summary`` over an array; NaN are left out; None for nothing."""
    values = values[~np.isnan(values)]
    if not values.size:
        return None
    p50, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
    return Summary(values.size, float(values.mean()), p50, p90, p99, float(values.max()))


def curve_of(values: Floats) -> tuple[tuple[float, float], ...]:
    """The distribution function at ``CURVE``, as pairs (value, share)."""
    values = values[~np.isnan(values)]
    if not values.size:
        return ()
    return tuple(zip(np.quantile(values, CURVE).tolist(), CURVE.tolist(), strict=True))


def _latency(
    found: Samples, answered: np.ndarray, programs: pl.DataFrame
) -> tuple[dict[str, Summary | None], dict[str, tuple[tuple[float, float], ...]]]:
    of_answers = answered[found.gap_of]
    values = {
        "ttft": found.ttft[answered],
        "tbt": found.gap_s[of_answers],
        "piece_gap": found.gap_s[of_answers & found.between],
        "tpot": found.tpot[answered],
        "e2e": found.e2e[answered],
        "jct": programs["jct_s"].drop_nulls().to_numpy(),
        "ttft_from_send": found.ttft_sent[answered],
        "e2e_from_send": found.e2e_sent[answered],
    }
    curves = {name: curve_of(values[name]) for name in ("ttft", "tbt", "e2e", "jct")}
    return {name: summary_of(array) for name, array in values.items()}, curves


def _counts(run: Run, found: Samples, programs: pl.DataFrame) -> Counts:
    low, high = run.head.window_s
    finished = int(programs["finished"].sum())
    return Counts(
        planned=run.frame.height,
        before=int((found.at < low).sum()),
        measured=int(found.measured.sum()),
        after=int((found.at > high).sum()),
        unplaced=int(np.isnan(found.at).sum()),
        programs=programs.height,
        programs_finished=finished,
        programs_unfinished=programs.height - finished,
    )


def _by_status(status: np.ndarray) -> dict[str, int]:
    numbers = np.bincount(status[status >= 0], minlength=len(STATUSES))
    return dict(zip(STATUSES, numbers.tolist(), strict=True))


def _numbered(frame: pl.DataFrame) -> bool:
    return bool((frame["request"].to_numpy() == np.arange(frame.height)).all())


def _span(found: Samples) -> tuple[float, float]:
    begun, ended = (values[~np.isnan(values)] for values in (found.scheduled, found.end))
    return (float(begun.min()), float(ended.max())) if begun.size and ended.size else (0.0, 0.0)


def _rates(run: Run, found: Samples, low: float, high: float) -> Rates | None:
    span = high - low
    if not span > 0:
        return None
    ended = found.has("ok") & (found.end >= low) & (found.end <= high)
    first = found.scheduled + found.ttft
    prompts = run.frame["in_tok"].to_numpy()[(first >= low) & (first <= high)].sum()
    output = found.piece_tokens[(found.piece_at >= low) & (found.piece_at <= high)].sum()
    return Rates(span, float(ended.sum()) / span, float(prompts) / span, float(output) / span)


def _goodput(run: Run, found: Samples, slo: SLO, programs: pl.DataFrame) -> Goodput:
    total = int(found.measured.sum())

    def num_kept(limits: SLO) -> int:
        return int((kept(found, limits) & found.measured).sum())

    limits = {name: limit for name, limit in _limits(slo) if name != "jct"}
    single = {"answered": num_kept(SLO())} | {
        name: num_kept(SLO(**{name: limit})) for name, limit in limits.items()
    }
    low, high = run.head.window_s
    programs_kept = int(programs["kept"].sum())
    return Goodput(
        kept=num_kept(slo),
        attainment=num_kept(slo) / total if total else None,
        per_s=num_kept(slo) / (high - low) if high > low else None,
        shares={name: number / total for name, number in single.items()} if total else {},
        programs_kept=programs_kept,
        program_attainment=programs_kept / programs.height if programs.height else None,
    )


def _limits(slo: SLO) -> list[tuple[str, float]]:
    pairs = ((name, getattr(slo, name)) for name in ("ttft", "tpot", "e2e", "jct"))
    return [(name, limit) for name, limit in pairs if limit is not None]


def _refusals(frame: pl.DataFrame) -> Refusals:
    refused = frame.filter(pl.col("status") == "refused")
    told = int(refused["retry_after_s"].is_not_null().sum())
    retries = frame.select((pl.col("attempts") - 1).clip(0).sum()).item()
    return Refusals(told, refused.height - told, int(retries or 0))


def _failures(frame: pl.DataFrame) -> tuple[Reason, ...]:
    bad = frame.filter(~pl.col("status").is_in(["ok", "cancelled"]))
    words = pl.col("reason").str.replace(_STATUS, "").str.replace_all(_NUMBERS, "#")
    code = pl.col("reason").str.extract(_STATUS).fill_null("")
    groups = bad.group_by("status", (code + words).alias("alike"), maintain_order=True).agg(
        pl.col("reason").first(), pl.len().alias("num"), (pl.col("reason").n_unique() > 1).alias("differ")
    )
    top = groups.sort("num", descending=True, maintain_order=True).head(NUM_REASONS)
    rows = top.select("status", "reason", "num", "differ").iter_rows()
    return tuple(
        Reason(status, (reason or "") + _DIFFER * differ, num) for status, reason, num, differ in rows
    )


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Struct):
        return _plain(msgspec.structs.asdict(value))
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
