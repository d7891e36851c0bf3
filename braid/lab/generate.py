"""Requests from a profile: any length, any rate, seeded, in chunks.

A rate is reached by superposing independent copies of the traffic and thinning whole programs; gaps inside programs are
never touched. The same seed gives the same requests whatever becomes of them; chunk lengths are part of the plan.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from braid.lab.blocks import BlockWriter
from braid.lab.crowd import Crowd
from braid.lab.distance import Floats
from braid.lab.fit.arrivals import ArrivalModel
from braid.lab.fit.outcomes import failure_shares, loads
from braid.lab.fit.processes import Constant, arrivals
from braid.lab.fit.profile import Profile, ProfileError, Stream, mixes
from braid.lab.progress import NoProgress, Progress
from braid.lab.rollout import NOTHING, Rows, Writer, joined, taken
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
        blocks: give requests block ids where the profile has a law of reuse; some 50,000 requests per second then.
    """

    seed: int = 0
    span_s: float | None = None
    num_requests: int | None = None
    rate: float | None = None
    arrivals: ArrivalsFrom = "chosen"
    keep_failures: bool = True
    blocks: bool = True


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


def _model(stream: Stream, which: ArrivalsFrom, rate: float | None) -> ArrivalModel:
    """The arrivals of a stream; Poisson starts at the wanted rate where the source had no times."""
    if stream.arrivals is None:
        if rate is None:
            raise ProfileError("the profile has no law of arrivals (its source has no times): give a rate")
        return ArrivalModel(name="poisson", process=Constant(rate=rate / stream.requests_per_start))
    if which == "chosen":
        return stream.arrivals.chosen
    return next(model for model in stream.arrivals.baselines if model.name == which)


class _Frames(Protocol):
    def until(self, horizon: float, last: bool) -> pl.DataFrame:
        """Rows before ``horizon`` that were not given out yet, in order; all that are left where it is the ``last``."""
        ...


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
        self._writer = Writer(stream, self._rng)
        self._mix = mixes(stream)
        self._stream, self._keep_failures = stream, plan.keep_failures
        self._held = NOTHING
        self._blocks = BlockWriter(stream.reuse, self._rng) if plan.blocks and stream.reuse else None
        self._tells_cached = any(lengths.cached for lengths in self._mix) or any(
            course.cached for course in (stream.programs.courses if stream.programs else ())
        )

    def until(self, horizon: float, last: bool) -> pl.DataFrame:
        """Rows before ``horizon``, in order; all that are left where it is the ``last`` one."""
        starts = self._starts.until(horizon)
        rows = self._writer.rows(starts)
        if self._stream.programs is None:
            return self._frame(rows)
        rows = joined([self._held, rows])
        rows = taken(rows, np.argsort(rows.t_s, kind="stable"))
        stop = rows.t_s.size if last else int(np.searchsorted(rows.t_s, horizon))
        self._held = taken(rows, slice(stop, None))
        return self._frame(taken(rows, slice(0, stop)))

    def _frame(self, rows: Rows) -> pl.DataFrame:
        failed, cancelled = self._outcomes(rows)
        out = np.where(failed, 0.0, rows.out_tok)
        models = pl.Series([lengths.model for lengths in self._mix], dtype=pl.String)
        kinds = pl.Series([lengths.kind for lengths in self._mix], dtype=SCHEMA["kind"])
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
        if self._blocks is not None:
            columns["block_ids"] = self._blocks.write(rows.t_s, rows.in_tok)
        if self._tells_cached:
            columns["cached_tok"] = _whole(rows.cached_tok)
        frame = pl.DataFrame(columns)
        if self._stream.programs is None:
            return frame
        return frame.with_columns(
            _names(rows.level, rows.program).alias("program_id"),
            _names(rows.level - 1, rows.parent).alias("parent_id"),
            pl.Series("turn", rows.turn, dtype=pl.Int32),
            pl.Series("gap_before_s", rows.gap_s).fill_nan(None),
            pl.Series("e2e_s", rows.e2e_s).fill_nan(None),
        )

    def _outcomes(self, rows: Rows) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
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


def _names(level: NDArray[np.int64], program: NDArray[np.int64]) -> pl.Series:
    """``p7`` for programs, ``s7`` for their sub-programs, ``ss7`` for those below; null above the top."""
    number = pl.Series(program.astype(np.int64)).cast(pl.String)
    if not level.any():
        return "p" + number
    heads = pl.Series(
        [None, "p", *("s" * depth for depth in range(1, int(level.max(initial=0)) + 1))], dtype=pl.String
    )
    return heads.gather(level.astype(np.int64) + 1) + number


def _whole(values: Floats) -> pl.Series:
    if np.isnan(values).any():
        return pl.Series(values).fill_nan(None).cast(pl.Int64)
    return pl.Series(values.astype(np.int64))


def generate(profile: Profile, plan: Plan, progress: Progress | None = None) -> Iterator[pl.DataFrame]:
    """Frames of a trace, in order of time over all frames, each with the columns of ``SCHEMA``.

    Raises:
        ProfileError: no limit given, a rate or limit that is not positive, or a profile without a law of arrivals and
            no rate; baselines of a profile of clients.
    """
    progress = progress or NoProgress()
    _check(plan)
    own = profile.rate
    target = plan.rate or own
    if target is None or (plan.rate is None and any(stream.arrivals is None for stream in profile.streams)):
        raise ProfileError("the profile has no law of arrivals (its source has no times): give a rate")
    expected = plan.span_s * target if plan.span_s else float(plan.num_requests or 0)
    step = CHUNK_REQUESTS / target if expected > CHUNK_REQUESTS else (plan.span_s or 1.2 * expected / target)
    seed = np.random.SeedSequence(plan.seed)
    if profile.clients is None:
        sources: Sequence[_Frames] = _streams(profile, plan, step, seed)
    elif plan.arrivals == "chosen":
        sources = [Crowd(profile.clients, *scaling(target, profile.clients.rate), seed)]
    else:
        raise ProfileError("a profile of clients has no baselines, only its own arrivals")
    yield from _merged(sources, plan, step, expected, progress)


def _streams(profile: Profile, plan: Plan, step: float, seed: np.random.SeedSequence) -> list[_Source]:
    """One source per stream, each with its share of the rate."""
    rates = [s.arrivals.rate * s.requests_per_start if s.arrivals else None for s in profile.streams]
    total = sum(rate for rate in rates if rate is not None)
    counted = [s.num * s.requests_per_start for s in profile.streams]
    sources = []
    for i, (stream, rate) in enumerate(zip(profile.streams, rates, strict=True)):
        share = rate / total if rate and None not in rates else counted[i] / sum(counted)
        sources.append(_Source(stream, plan, share, step, seed.spawn(1)[0]))
    return sources


def _merged(
    sources: Sequence[_Frames], plan: Plan, step: float, expected: float, progress: Progress
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
    if profile.clients:
        notes.append(
            f"{len(profile.clients.clients)} clients superposed; after {profile.clients.span_s:g} s all begins anew."
        )
    if profile.t_quantum_s and any(stream.arrivals for stream in profile.streams):
        notes.append(
            f"The source's clock ticks every {profile.t_quantum_s:g} s; these arrivals lie anywhere between its ticks."
        )
    reuse = profile.requests.reuse if plan.blocks and profile.requests else None
    return TraceInfo(
        block_size=reuse.block_size if reuse else None,
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
