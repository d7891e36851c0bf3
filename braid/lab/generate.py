"""Requests from a profile: any length, any rate, seeded, in chunks.

A rate is reached by superposing independent copies of the traffic and thinning whole programs; gaps inside programs are
never touched. The same seed gives the same requests whatever becomes of them; chunk lengths are part of the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from braid.lab.distance import Floats
from braid.lab.fit.arrivals import ArrivalModel
from braid.lab.fit.lengths import Sampler
from braid.lab.fit.outcomes import failure_shares, loads
from braid.lab.fit.processes import Constant, arrivals
from braid.lab.fit.profile import Lengths, Profile, ProfileError, Stream
from braid.lab.fit.programs import Course
from braid.lab.progress import NoProgress, Progress
from braid.lab.table import SCHEMA, Trace, TraceInfo, conform, save_stream

CHUNK_REQUESTS = 250_000
ArrivalsFrom = Literal["chosen", "poisson", "gamma"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to generate.

    Args:
        seed: of everything random.
        span_s: programs and requests start within this many seconds; programs run to their end.
        num_requests: stop after so many requests, in order of time. One of both limits is needed.
        rate: requests per second in the long run; None for the profile's own.
        arrivals: the profile's chosen model, or one of its baselines.
        keep_failures: False generates every request as answered.
    """

    seed: int = 0
    span_s: float | None = None
    num_requests: int | None = None
    rate: float | None = None
    arrivals: ArrivalsFrom = "chosen"
    keep_failures: bool = True


class Scaling(NamedTuple):
    """So many independent copies, of which each program is kept with this chance."""

    copies: int
    keep: float


def scaling(target: float, own: float) -> Scaling:
    """How a rate is reached from another."""
    copies = max(1, int(np.ceil(target / own - 1e-9)))
    return Scaling(copies, min(1.0, target / own / copies))


class _Starts:
    """Starts of one stream from copies and thinning, asked for horizon by horizon."""

    def __init__(
        self, model: ArrivalModel, scale: Scaling, chunk_s: float, seed: np.random.SeedSequence
    ) -> None:
        *copies, thin = (np.random.default_rng(child) for child in seed.spawn(scale.copies + 1))
        self._sources = [arrivals(model.process, model.law, rng, chunk_s) for rng in copies]
        self._held: list[Floats] = [np.empty(0)] * scale.copies
        self._keep, self._rng = scale.keep, thin

    def until(self, horizon: float) -> Floats:
        """The starts before ``horizon`` that were not given out yet, rising."""
        ready = []
        for i, source in enumerate(self._sources):
            parts = [self._held[i]]
            while not parts[-1].size or parts[-1][-1] < horizon:
                parts.append(next(source))
            times = np.concatenate(parts)
            stop = int(np.searchsorted(times, horizon))
            ready.append(times[:stop])
            self._held[i] = times[stop:]
        times = ready[0] if len(ready) == 1 else np.sort(np.concatenate(ready), kind="stable")
        return times if self._keep >= 1 else times[self._rng.random(times.size) < self._keep]


class _Rows(NamedTuple):
    """Columns of generated requests, equally long; ``program`` counts starts, ``group`` indexes the mix."""

    t_s: Floats
    program: NDArray[np.int64]
    turn: NDArray[np.int64]
    group: NDArray[np.int64]
    in_tok: Floats
    out_tok: Floats
    gap_s: Floats
    e2e_s: Floats


class _Group:
    """Lengths of one model and kind; nan where the profile does not know them."""

    def __init__(self, lengths: Lengths) -> None:
        self._input = Sampler(lengths.input) if lengths.input else None
        self._output = Sampler(lengths.output) if lengths.output else None
        self._conditional = lengths.output is not None and bool(lengths.output.edges)
        self.least = lengths.input.quantiles[0][0] if lengths.input else 0.0

    def first(self, num: int, rng: np.random.Generator) -> Floats:
        return np.rint(self._input.draw(None, num, rng)) if self._input else np.full(num, np.nan)

    def outputs(self, inputs: Floats, rng: np.random.Generator) -> Floats:
        if self._output is None:
            return np.full(inputs.size, np.nan)
        x = inputs if self._conditional else None
        return np.maximum(np.rint(self._output.draw(x, inputs.size, rng)), 1)


class _Going:
    """A course to draw from."""

    def __init__(self, course: Course) -> None:
        self.turns = Sampler(course.turns)
        self._growth = [Sampler(each) for each in course.growth]
        self._edges = np.array(course.growth_edges)
        self.longest = Sampler(course.longest) if course.longest else None

    def grown(self, inputs: Floats, turns: Floats, peaks: Floats, rng: np.random.Generator) -> Floats:
        if not self._growth:
            return inputs
        which = np.searchsorted(self._edges, turns, "right")
        grown = np.empty(inputs.size)
        for i, sampler in enumerate(self._growth):
            index = np.flatnonzero(which == i)
            grown[index] = inputs[index] + sampler.draw(inputs[index], index.size, rng)
        # Past its own longest prompt a program does not grow: it stays where it was.
        return np.maximum(np.rint(np.where(grown > peaks, np.minimum(inputs, peaks), grown)), 1)


class _Writer:
    """Turns starts of one stream into rows."""

    def __init__(self, stream: Stream, rng: np.random.Generator) -> None:
        self._rng = rng
        self._groups = [_Group(lengths) for lengths in stream.mix]
        shares = np.array([lengths.share for lengths in stream.mix])
        self._edges = np.cumsum(shares / shares.sum())[:-1]
        laws = stream.programs
        self._courses = [_Going(course) for course in laws.courses] if laws else []
        self._gap = Sampler(laws.gap_s) if laws and laws.gap_s else None
        self._e2e = Sampler(laws.e2e_s) if laws and laws.e2e_s else None
        self._num = 0

    def rows(self, starts: Floats) -> _Rows:
        """All requests of the programs that start then, turn by turn."""
        num, rng = starts.size, self._rng
        group = np.searchsorted(self._edges, rng.random(num), "right")
        inputs = self._by_group(group, lambda g, index: g.first(index.size, rng), num)
        program = self._num + np.arange(num)
        self._num += num
        turns, peaks = np.ones(num), np.full(num, np.inf)
        for i, course in enumerate(self._courses):
            index = np.flatnonzero(group == i)
            turns[index] = np.maximum(np.rint(course.turns.draw(None, index.size, rng)), 1)
            if course.longest:
                peaks[index] = np.maximum(course.longest.draw(turns[index], index.size, rng), inputs[index])
        return self._run(starts, program, group, inputs, turns, peaks)

    def _run(
        self,
        t: Floats,
        program: NDArray[np.int64],
        group: NDArray[np.int64],
        inputs: Floats,
        turns: Floats,
        peaks: Floats,
    ) -> _Rows:
        rng, parts, turn, gap = self._rng, [], 0, np.full(t.size, np.nan)
        while t.size:
            outputs = self._outputs(group, inputs)
            e2e = self._e2e.draw(outputs, t.size, rng) if self._e2e else np.full(t.size, np.nan)
            parts.append(_Rows(t, program, np.full(t.size, turn), group, inputs, outputs, gap, e2e))
            turn += 1
            more = turns > turn
            t, program, group, turns, inputs = t[more], program[more], group[more], turns[more], inputs[more]
            peaks = peaks[more]
            gap = self._gap.draw(None, t.size, rng) if self._gap and t.size else np.zeros(t.size)
            t = t + np.nan_to_num(e2e[more]) + gap
            if t.size:
                inputs = self._grown(group, inputs, turns, peaks)
        return _joined(parts)

    def _outputs(self, group: NDArray[np.int64], inputs: Floats) -> Floats:
        return self._by_group(group, lambda g, index: g.outputs(inputs[index], self._rng), inputs.size)

    def _grown(self, group: NDArray[np.int64], inputs: Floats, turns: Floats, peaks: Floats) -> Floats:
        """The next prompts of programs that have ``turns`` in all."""
        grown = np.empty(inputs.size)
        for i, course in enumerate(self._courses):
            index = np.flatnonzero(group == i)
            grown[index] = course.grown(inputs[index], turns[index], peaks[index], self._rng)
        return grown

    def _by_group(
        self, group: NDArray[np.int64], draw: Callable[[_Group, NDArray[np.int64]], Floats], num: int
    ) -> Floats:
        if len(self._groups) == 1:
            return np.asarray(draw(self._groups[0], np.arange(num)))
        values = np.empty(num)
        for i, each in enumerate(self._groups):
            index = np.flatnonzero(group == i)
            values[index] = draw(each, index)
        return values


_NOTHING = _Rows._make(np.empty(0) for _ in _Rows._fields)


def _model(stream: Stream, which: ArrivalsFrom, rate: float | None) -> ArrivalModel:
    """The arrivals of a stream; Poisson starts at the wanted rate where the source had no times."""
    if stream.arrivals is None:
        if rate is None:
            raise ProfileError("the profile has no law of arrivals (its source has no times): give a rate")
        return ArrivalModel(name="poisson", process=Constant(rate=rate / stream.requests_per_start))
    if which == "chosen":
        return stream.arrivals.chosen
    return next(model for model in stream.arrivals.baselines if model.name == which)


class _Source:
    """One stream of the profile, from starts to frames."""

    def __init__(
        self, stream: Stream, plan: Plan, share: float, chunk_s: float, seed: np.random.SeedSequence
    ):
        starts, draws = seed.spawn(2)
        rate = None if plan.rate is None else plan.rate * share
        model = _model(stream, plan.arrivals, rate)
        own = stream.arrivals.rate * stream.requests_per_start if stream.arrivals else rate
        assert own is not None  # _model has raised where both are unknown
        self.rate = own if rate is None else rate
        self._starts = _Starts(model, scaling(self.rate, own), chunk_s, starts)
        self._rng = np.random.default_rng(draws)
        self._writer = _Writer(stream, self._rng)
        self._stream, self._keep_failures = stream, plan.keep_failures
        self._held = _NOTHING

    def until(self, horizon: float, last: bool) -> pl.DataFrame:
        """Rows before ``horizon``, in order; all that are left where it is the ``last`` one."""
        starts = self._starts.until(horizon)
        rows = self._writer.rows(starts)
        if self._stream.programs is None:
            return self._frame(rows)
        rows = _joined([self._held, rows])
        rows = _taken(rows, np.argsort(rows.t_s, kind="stable"))
        stop = rows.t_s.size if last else int(np.searchsorted(rows.t_s, horizon))
        self._held = _taken(rows, slice(stop, None))
        return self._frame(_taken(rows, slice(0, stop)))

    def _frame(self, rows: _Rows) -> pl.DataFrame:
        failed, cancelled = self._outcomes(rows)
        out = np.where(failed, 0.0, rows.out_tok)
        models = pl.Series([lengths.model for lengths in self._stream.mix], dtype=pl.String)
        kinds = pl.Series([lengths.kind for lengths in self._stream.mix], dtype=SCHEMA["kind"])
        status = np.where(failed, 1, np.where(cancelled, 2, 0))
        names = pl.Series(["ok", "failed", "cancelled"], dtype=SCHEMA["status"])
        columns: dict[str, pl.Series] = {
            "t_s": pl.Series(rows.t_s),
            "model": models.gather(rows.group.astype(np.int64)),
            "kind": kinds.gather(rows.group.astype(np.int64)),
            "in_tok": _whole(rows.in_tok),
            "out_tok": _whole(out),
            "status": names.gather(status),
        }
        frame = pl.DataFrame(columns)
        if self._stream.programs is None:
            return frame
        program = pl.Series("program_id", rows.program.astype(np.int64)).cast(pl.String)
        return frame.with_columns(
            (pl.lit("p") + program).alias("program_id"),
            pl.Series("turn", rows.turn, dtype=pl.Int32),
            pl.Series("gap_before_s", rows.gap_s).fill_nan(None),
            pl.Series("e2e_s", rows.e2e_s).fill_nan(None),
        )

    def _outcomes(self, rows: _Rows) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        outcomes, num = self._stream.outcomes, rows.t_s.size
        none = np.zeros(num, bool)
        if not self._keep_failures or not num:
            return none, none
        failed = none
        if any(row.share for row in outcomes.failures):
            load = loads(rows.t_s).astype(float)
            failed = self._rng.random(num) < failure_shares(outcomes, load, float(load.mean()))
        cancelled = self._rng.random(num) < outcomes.cancelled if outcomes.cancelled else none
        return failed, cancelled & ~failed


def _taken(rows: _Rows, index: NDArray[np.int64] | slice) -> _Rows:
    return _Rows._make(column[index] for column in rows)


def _joined(parts: list[_Rows]) -> _Rows:
    return _Rows._make(np.concatenate(column) for column in zip(*parts, strict=True)) if parts else _NOTHING


def _whole(values: Floats) -> pl.Series:
    if np.isnan(values).any():
        return pl.Series(values).fill_nan(None).cast(pl.Int64)
    return pl.Series(values.astype(np.int64))


def generate(profile: Profile, plan: Plan, progress: Progress | None = None) -> Iterator[pl.DataFrame]:
    """Frames of a trace, in order of time over all frames, each with the columns of ``SCHEMA``.

    Raises:
        ProfileError: no limit given, a rate or limit that is not positive, or a profile without a law of arrivals and
            no rate.
    """
    progress = progress or NoProgress()
    _check(plan)
    rates = [s.arrivals.rate * s.requests_per_start if s.arrivals else None for s in profile.streams]
    total = sum(rate for rate in rates if rate is not None)
    target = plan.rate or total
    if any(rate is None for rate in rates) and plan.rate is None:
        raise ProfileError("the profile has no law of arrivals (its source has no times): give a rate")
    expected = plan.span_s * target if plan.span_s else float(plan.num_requests or 0)
    step = CHUNK_REQUESTS / target if expected > CHUNK_REQUESTS else (plan.span_s or 1.2 * expected / target)
    seeds = np.random.SeedSequence(plan.seed).spawn(len(profile.streams))
    counted = [s.num * s.requests_per_start for s in profile.streams]
    sources = []
    for i, (stream, rate) in enumerate(zip(profile.streams, rates, strict=True)):
        share = rate / total if rate and None not in rates else counted[i] / sum(counted)
        sources.append(_Source(stream, plan, share, step, seeds[i]))
    yield from _merged(sources, plan, step, expected, progress)


def _merged(
    sources: list[_Source], plan: Plan, step: float, expected: float, progress: Progress
) -> Iterator[pl.DataFrame]:
    done, horizon, last = 0, 0.0, False
    left = plan.num_requests
    while not last and (left is None or left > 0):
        horizon = horizon + step if plan.span_s is None else min(horizon + step, plan.span_s)
        last = plan.span_s is not None and horizon >= plan.span_s
        frames = [conform(source.until(horizon, last)) for source in sources]
        frame = frames[0] if len(frames) == 1 else conform(pl.concat(frames))
        if left is not None:
            frame = frame.head(left)
            left -= frame.height
        done += frame.height
        progress.update("generating", done, expected)
        if frame.height:
            yield frame


def _check(plan: Plan) -> None:
    if plan.span_s is None and plan.num_requests is None:
        raise ProfileError("give a length: seconds, or a number of requests")
    for name, value in (
        ("span", plan.span_s),
        ("number of requests", plan.num_requests),
        ("rate", plan.rate),
    ):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise ProfileError(f"the {name} must be above 0, got {value}")


def info(profile: Profile, plan: Plan) -> TraceInfo:
    """What is known of the generated trace."""
    notes = [f"Synthetic, seed {plan.seed}, from a profile of {profile.source} ({plan.arrivals} arrivals)."]
    if plan.rate is not None and profile.rate:
        copies, keep = scaling(plan.rate, profile.rate)
        notes.append(
            f"Rate {plan.rate:g}/s from {profile.rate:.4g}/s: {copies} independent copies superposed, each program "
            f"kept with chance {keep:.4g}; gaps within programs untouched."
        )
    return TraceInfo(
        source=f"generated from {profile.source}",
        format="generated",
        licence=profile.licence,
        citation=profile.citation,
        notes=tuple(notes),
    )


def generate_trace(profile: Profile, plan: Plan, progress: Progress | None = None) -> Trace:
    """The whole of it in memory."""
    frames = list(generate(profile, plan, progress))
    empty = pl.DataFrame(schema=dict(SCHEMA))
    return Trace(pl.concat(frames) if frames else empty, info(profile, plan))


def write(profile: Profile, plan: Plan, path: Path, progress: Progress | None = None) -> int:
    """Stream to a parquet file that ``table.load`` reads, one chunk in memory at a time; the number of requests."""
    return save_stream(generate(profile, plan, progress), info(profile, plan), path)
