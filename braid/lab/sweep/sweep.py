"""The highest load that a server bears: replays at loads that a search asks for, until it knows.

Every point is a replay of the same stretch of the trace at another load (``loads.py``): a warm-up, the measured
seconds, and the end of what was begun. The programs of a load are drawn by the seed and the number of the repeat, so
points of one repeat are nested; the content is drawn anew for every replay, or a server's prefix cache would know it
from the one before (and another sweep of the same server wants another seed). A replay whose limits can no longer be
kept is stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
import polars as pl

from braid.core.errors import InvalidParameterError
from braid.core.metrics import SLO
from braid.lab.measures.measure import Measures, measure
from braid.lab.replay.asking.target import TargetError
from braid.lab.replay.live import Live, NoLive
from braid.lab.replay.live import Reading as Counters
from braid.lab.replay.planning.plan import PlanOptions, ReplayPlan
from braid.lab.replay.record import Run
from braid.lab.replay.supervise import ReplayError, Stop
from braid.lab.sweep.loads import num_programs, plan_at_factor, plan_at_rate, requests_within
from braid.lab.sweep.search import Answer, Level, Probe, Reading, Search, SearchOptions
from braid.lab.table import Trace, TraceError
from braid.lab.versus.bootstrap import MIN_BLOCKS, Z, interval, noise, quotient, weights
from braid.lab.versus.sides import alone

By = Literal["factor", "rate"]

MIN_REQUESTS = 20
"""Fewer in the measured window tell nothing about a share of them."""
HOPELESS = 2.0
"""A replay is stopped when this many times the misses that the target allows are certain, ``SPARE`` more at least."""
SPARE = 10
FULL_RING = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepOptions:
    """What is looked for, and how a point is played.

    Args:
        search: the target and the loads.
        slo: the limits.
        by: loads are factors on the trace's load, or programs per second.
        warmup_s, measure_s: of every replay.
        seed: of everything drawn.

    Raises:
        InvalidParameterError: no limit, or times that make no window.
    """

    search: SearchOptions
    slo: SLO
    by: By = "factor"
    warmup_s: float = 10.0
    measure_s: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.slo == SLO():
            raise InvalidParameterError(
                "a sweep needs a limit: --slo-ttft, --slo-tpot, --slo-e2e or --slo-jct"
            )
        if not (self.measure_s > 0 and self.warmup_s >= 0):
            raise InvalidParameterError(
                f"a point needs a warm-up of 0 s or more and a measured time above 0 s, got {self.warmup_s:g} and "
                f"{self.measure_s:g}"
            )

    @property
    def span_s(self) -> float:
        return self.warmup_s + self.measure_s


class Point(NamedTuple):
    """One replay. Times in seconds, rates per second of the measured window; None for what has no value.

    ``planned_rate``: requests that the load has there. ``hopeless``: it was stopped since the target was out of reach,
    so that its numbers are those of its beginning.
    """

    number: int
    load: float
    repeat: int
    took_s: float
    requests: int
    planned_rate: float
    attainment: float | None
    low: float | None
    high: float | None
    goodput: float | None
    ttft_p50: float | None
    ttft_p99: float | None
    tpot_p50: float | None
    tpot_p99: float | None
    failed_share: float | None
    lag_p99: float | None
    hopeless: bool
    invalid: str


class Sweep(NamedTuple):
    """All points, what the search made of them, and its answer."""

    options: SweepOptions
    points: tuple[Point, ...]
    levels: tuple[Level, ...]
    answer: Answer
    notes: tuple[str, ...]


Player = Callable[[ReplayPlan, Probe, Live, Stop], Run]
"""Plays a plan: ``run.replay`` with everything else given."""


class Listener(Protocol):
    """Hears of a sweep while it goes."""

    def begins(self, probe: Probe, requests: int) -> Live:
        """A replay begins; who hears how it goes."""
        ...

    def ended(self, point: Point, run: Run | None, search: Search) -> None: ...


class Silent:
    """A listener that says nothing."""

    def begins(self, probe: Probe, requests: int) -> Live:
        return NoLive()

    def ended(self, point: Point, run: Run | None, search: Search) -> None:
        pass


def sweep(
    trace: Trace,
    plan_options: PlanOptions,
    options: SweepOptions,
    player: Player,
    listener: Listener | None = None,
    new_stop: Callable[[], Stop] = Stop,
) -> Sweep:
    """Search until it is known, or until someone presses a replay's stop or interrupts; then what is known by then.

    Raises:
        TraceError: the trace cannot be played so.
        ReplayError, TargetError: of the first replay, see ``run.replay``; later ones end the sweep.
    """
    listener = listener or Silent()
    options, notes = _bounded(trace, plan_options, options)
    search, points = Search(options.search), list[Point]()
    try:
        while (probe := search.probe()) is not None:
            begun = time.monotonic()
            plan = _plan_or_none(trace, plan_options, options, probe)
            played = _played(plan, probe, options, player, listener, new_stop)
            point = played.point._replace(took_s=time.monotonic() - begun)
            points.append(point)
            search.tell(probe.load, reading_of(point))
            listener.ended(point, played.run, search)
    except KeyboardInterrupt:
        pass
    except _EndedError as ended:
        notes = (*notes, str(ended)) if str(ended) else notes
    except (ReplayError, TargetError) as error:
        if not points:
            raise
        notes = (*notes, f"Replay {len(points) + 1} could not be made, and the sweep ended there: {error}")
    return Sweep(options, tuple(points), tuple(search.levels()), search.answer(), notes)


class _Played(NamedTuple):
    point: Point
    run: Run | None


class _EndedError(Exception):
    """The sweep cannot go on, for this reason; none where someone stopped it."""


def _played(
    plan: ReplayPlan | None,
    probe: Probe,
    options: SweepOptions,
    player: Player,
    listener: Listener,
    new_stop: Callable[[], Stop],
) -> _Played:
    planned = 0 if plan is None else requests_within(plan, (options.warmup_s, options.span_s))
    if plan is None or planned < MIN_REQUESTS:
        return _Played(_too_few(probe, planned), None)
    stop = new_stop()
    watch = Watch(options, planned, stop, listener.begins(probe, planned))
    run = player(plan, probe, watch, stop)
    if run.head.stopped and not watch.hopeless:
        raise _EndedError
    if _is_gone(run):
        raise _EndedError(
            f"The server could not be reached in replay {probe.number + 1}: the sweep ended there."
        )
    return _Played(point_of(run, probe, options, planned, watch.hopeless), run)


def _is_gone(run: Run) -> bool:
    """Nothing was answered, and connections failed: that says nothing of any load."""
    status = run.frame["status"].cast(pl.String)
    return not (status == "ok").any() and (status == "unreachable").any()


def _bounded(
    trace: Trace, plan_options: PlanOptions, options: SweepOptions
) -> tuple[SweepOptions, tuple[str, ...]]:
    """With loads that the trace has enough for, and that have enough for a share."""
    if options.by == "rate":
        few = MIN_REQUESTS / options.measure_s
        most = num_programs(trace) / options.span_s
        return _within(options, few, most), _rate_notes(options, most)
    if trace.frame["t_s"].null_count() == trace.num_requests:
        raise TraceError("this trace has no arrival times: loads can only be rates (--arrivals rate)")
    begin = plan_options.start_s + options.warmup_s
    inside = trace.frame.filter(pl.col("t_s").is_between(begin, begin + options.measure_s)).height
    if not inside:
        end = begin + options.measure_s
        raise TraceError(
            f"no request of the trace lies in {begin:g} s to {end:g} s, which would be measured: see --start"
        )
    shares = trace.info.hash_scope == "global" and trace.frame["block_ids"].null_count() < trace.num_requests
    copies = (
        "Above load 1, copies of programs ask for the same blocks: a prefix cache finds more than it should."
    )
    notes = (copies,) if shares and options.search.highest > 1 else ()
    # Twice as many as needed, on average: thinning keeps now more, now fewer.
    return _within(options, 2 * MIN_REQUESTS / inside, math.inf), notes


def _within(options: SweepOptions, few: float, most: float) -> SweepOptions:
    """Loads from ``few`` to ``most``.

    Raises:
        TraceError: the first load lies outside.
    """
    search = options.search
    if not few <= search.start <= most:
        unit = "times the load" if options.by == "factor" else "programs per second"
        upper = "" if math.isinf(most) else f" and programs for {most:.3g}"
        raise TraceError(
            f"points of {options.warmup_s:g} + {options.measure_s:g} s have enough requests from {few:.3g} {unit} on"
            f"{upper}; the first load is {search.start:g}: change --first or --measure"
        )
    bounded = replace(search, lowest=max(search.lowest, few), highest=min(search.highest, most))
    return replace(options, search=bounded)


def _rate_notes(options: SweepOptions, most: float) -> tuple[str, ...]:
    short = most < options.search.highest
    return (f"The trace has programs for no more than {most:.3g} per second.",) if short else ()


def _plan_or_none(
    trace: Trace, plan_options: PlanOptions, options: SweepOptions, probe: Probe
) -> ReplayPlan | None:
    """None where nothing of the load lies in the stretch, as may be at the lower ones."""
    try:
        return plan_of(trace, plan_options, options, probe)
    except TraceError:
        if probe.number == 0 or probe.load >= options.search.start:
            raise
        return None


def plan_of(trace: Trace, plan_options: PlanOptions, options: SweepOptions, probe: Probe) -> ReplayPlan:
    """The plan of a replay.

    Raises:
        TraceError: the trace cannot be planned so, or nothing of the load lies in the stretch.
    """
    own = replace(plan_options, seed=options.seed + 1_000_003 * (probe.number + 1))
    if options.by == "rate":
        return plan_at_rate(trace, probe.load, own, options.span_s)
    return plan_at_factor(trace, probe.load, own, options.span_s, options.seed + probe.repeat)


class Watch:
    """Listens to a replay, passes on what it hears, and stops it once the target is out of reach.

    Certain misses are failures after the warm-up, and open requests while the fastest of the recent answers was over
    the limit of TTFT.
    """

    def __init__(self, options: SweepOptions, planned: int, stop: Stop, inner: Live) -> None:
        allowed = (1 - options.search.target) * planned
        self._limit = max(HOPELESS * allowed, allowed + SPARE)
        self._ttft, self._warmup_s = options.slo.ttft, options.warmup_s
        self._stop, self._inner = stop, inner
        self._failed_before = 0
        self.hopeless = False

    def update(self, reading: Counters) -> None:
        self._inner.update(reading)
        failed = sum(reading.failed.values())
        if reading.elapsed_s < self._warmup_s:
            self._failed_before = failed
            return
        if self.hopeless or self._stop.presses:
            return
        recent = reading.recent_ttft_s
        late = self._ttft is not None and recent.size >= FULL_RING and float(recent.min()) > self._ttft
        doomed = failed - self._failed_before + (reading.counts["open"] if late else 0)
        if doomed > self._limit + 1e-6:  # a share of a whole number is rarely exact
            self.hopeless = True
            self._stop.press()

    def stopping(self, why: str) -> None:
        self._inner.stopping("the target is out of reach: stopping" if self.hopeless else why)


def point_of(run: Run, probe: Probe, options: SweepOptions, planned: int, hopeless: bool) -> Point:
    """What a replay says. Of one that was stopped as hopeless, attainment is at most that of what was still to come."""
    found = measure(run, options.slo)
    attainment, low, high = _attainment(run, found, options)
    if hopeless:
        low, high = 0.0, math.nextafter(options.search.target, 0.0)
        attainment = min(attainment, high)
    reasons = " ".join(found.verdict.reasons)
    failed = found.counts.measured - found.measured_outcomes["ok"] - found.measured_outcomes["cancelled"]
    ttft, tpot = found.latency["ttft"], found.latency["tpot"]
    return Point(
        number=probe.number,
        load=probe.load,
        repeat=probe.repeat,
        took_s=0.0,
        requests=planned,
        planned_rate=planned / options.measure_s,
        attainment=attainment,
        low=low,
        high=high,
        goodput=found.goodput.per_s,
        ttft_p50=ttft and ttft.p50,
        ttft_p99=ttft and ttft.p99,
        tpot_p50=tpot and tpot.p50,
        tpot_p99=tpot and tpot.p99,
        failed_share=failed / found.counts.measured if found.counts.measured else None,
        lag_p99=found.send_lag and found.send_lag.p99,
        hopeless=hopeless,
        invalid=reasons,
    )


def reading_of(point: Point) -> Reading:
    """For the search."""
    if point.invalid or point.attainment is None or point.low is None or point.high is None:
        return Reading(invalid=point.invalid or "nothing was measured")
    return Reading(point.attainment, point.low, point.high)


def _too_few(probe: Probe, planned: int) -> Point:
    why = f"Only {planned} requests lie in the measured window; a share needs {MIN_REQUESTS}: measure for longer."
    empty = dict.fromkeys(Point._fields)
    known = {
        "number": probe.number,
        "load": probe.load,
        "repeat": probe.repeat,
        "took_s": 0.0,
        "requests": planned,
    }
    return Point(**{**empty, **known, "planned_rate": 0.0, "hopeless": False, "invalid": why})  # type: ignore[arg-type]


def _attainment(run: Run, found: Measures, options: SweepOptions) -> tuple[float, float, float]:
    """Share of requests that kept their limits, or of programs, where they have one; the smaller of the two."""
    shares = []
    if any(limit is not None for limit in (options.slo.ttft, options.slo.tpot, options.slo.e2e)):
        shares.append(_of_requests(run, found, options))
    programs = found.counts.programs
    if options.slo.jct is not None and programs:
        kept = found.goodput.programs_kept
        shares.append((kept / programs, *wilson(kept, programs)))
    return min(shares) if shares else (0.0, 0.0, 1.0)


def _of_requests(run: Run, found: Measures, options: SweepOptions) -> tuple[float, float, float]:
    """With what the bootstrap over blocks says, or the binomial law, whichever is wider: where all or nothing was kept
    a bootstrap knows no doubt."""
    attainment = found.goodput.attainment or 0.0
    low, high = wilson(found.goodput.kept, found.counts.measured)
    side = alone(run, options.slo)
    if side.cut.num >= MIN_BLOCKS:
        drawn = quotient(
            *side.sums["attainment"], weights([side.cut.num], np.random.default_rng(options.seed))
        )
        bounds = None if drawn is None else interval(drawn, noise(drawn, side.cut.num, ()))
        if bounds is not None:
            low, high = min(low, bounds.low), max(high, bounds.high)
    return attainment, max(0.0, low), min(1.0, high)


def wilson(kept: int, total: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927); nothing known of nothing."""
    if not total:
        return 0.0, 1.0
    share, spare = kept / total, Z**2 / total
    middle = (share + spare / 2) / (1 + spare)
    half = Z * math.sqrt(share * (1 - share) / total + spare / (4 * total)) / (1 + spare)
    return middle - half, middle + half


def rate_at(points: Sequence[Point], load: float) -> float:
    """Requests per second that a load had on average, over its replays."""
    rates = [point.planned_rate for point in points if point.load == load and point.requests]
    return sum(rates) / len(rates) if rates else math.nan
