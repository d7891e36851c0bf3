"""A run as arrays: the times of each request and of each gap between tokens, from which everything is measured.

The formulas are those of ``braid.core.metrics`` (``RequestTimes``, ``SLO.is_met``, ``jct``), over arrays, since a run
may hold a million requests; tests hold the two together. Tokens of one piece of a stream share its time, so the TBT
inside a piece is 0; the gaps between pieces are kept, too. Latency counts from the scheduled time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from braid.core.metrics import SLO
from braid.lab.replay.outcome import STATUSES
from braid.lab.replay.record import Run
from braid.lab.table import TraceError

Floats = np.ndarray
"""float64, NaN for none."""


@dataclass(frozen=True, slots=True)
class Samples:
    """One value per request in order of the plan (``gap`` arrays: per gap between tokens; ``piece``: per piece).

    Args:
        status: index into ``STATUSES``; -1 for none, which no good run has.
        at: when it was scheduled; for one that never was, when the plan had it (see ``planned_at``); NaN for neither.
        measured: ``at`` lies in the run's window.
        scheduled, sent, end: as recorded.
        tokens: output tokens that came.
        ttft, e2e, tpot: from the scheduled time; ``tpot`` is NaN for fewer than two tokens.
        ttft_sent, e2e_sent: from the time it was sent.
        lag, read_lag: how late it was sent, and read (its latest piece).
        reads, late_reads: how often something of it was read, and how often later than the run's limit of lag.
        gap_s, gap_at, gap_of: TBT, when the later token came, and of which request.
        between: True where the gap lies between two pieces, False inside one.
        piece_at, piece_tokens: when output came, and how much.
    """

    status: np.ndarray
    at: Floats
    measured: np.ndarray
    scheduled: Floats
    sent: Floats
    end: Floats
    tokens: np.ndarray
    ttft: Floats
    e2e: Floats
    tpot: Floats
    ttft_sent: Floats
    e2e_sent: Floats
    lag: Floats
    read_lag: Floats
    reads: np.ndarray
    late_reads: np.ndarray
    gap_s: Floats
    gap_at: Floats
    gap_of: np.ndarray
    between: np.ndarray
    piece_at: Floats
    piece_tokens: np.ndarray

    def has(self, *names: str) -> np.ndarray:
        """True for each request whose status is one of ``names``."""
        return np.isin(self.status, [STATUSES.index(name) for name in names])


def samples(run: Run) -> Samples:
    """The arrays of a run.

    Raises:
        TraceError: a request has another number of token counts than of pieces.
    """
    frame = run.frame
    scheduled, sent, end = (_floats(frame, name) for name in ("scheduled_s", "sent_s", "end_s"))
    at = planned_at(run)
    low, high = run.head.window_s
    piece_at, piece_tokens, piece_of = _pieces(frame)
    tokens = np.bincount(piece_of, weights=piece_tokens, minlength=frame.height).astype(np.int64)
    first, last = _ends(piece_at, piece_of, frame.height)
    with np.errstate(invalid="ignore", divide="ignore"):
        tpot = np.where(tokens > 1, (last - first) / (tokens - 1), np.nan)
        measured = (at >= low) & (at <= high)
    gap_s, gap_at, gap_of, between = _gaps(piece_at, piece_tokens, piece_of)
    return Samples(
        status=frame["status"].to_physical().cast(pl.Int16).fill_null(-1).to_numpy(),
        at=at,
        measured=measured,
        scheduled=scheduled,
        sent=sent,
        end=end,
        tokens=tokens,
        ttft=first - scheduled,
        e2e=end - scheduled,
        tpot=tpot,
        ttft_sent=first - sent,
        e2e_sent=end - sent,
        lag=sent - scheduled,
        read_lag=np.where(np.isnan(sent), np.nan, _floats(frame, "read_lag_s")),
        reads=frame["num_reads"].to_numpy(),
        late_reads=frame["num_late_reads"].to_numpy(),
        gap_s=gap_s,
        gap_at=gap_at,
        gap_of=gap_of,
        between=between,
        piece_at=piece_at,
        piece_tokens=piece_tokens,
    )


def planned_at(run: Run) -> Floats:
    """When each request was scheduled, or would have been; NaN for one that belongs nowhere.

    One that never was lies where the plan has it. In concurrency mode the plan has no clock: it lies where a request
    of its group was scheduled last, unless the run was stopped, since then its turn had not come.
    """
    planned = pl.col("start_s")
    if run.head.plan.get("arrivals") == "concurrency":
        planned = pl.lit(None) if run.head.stopped else pl.col("scheduled_s").max().over("group")
    known = pl.coalesce(pl.col("scheduled_s").fill_nan(None), planned).cast(pl.Float64)
    return run.frame.select(known).to_series().fill_null(float("nan")).to_numpy()


def kept(found: Samples, slo: SLO) -> np.ndarray:
    """True for each request that kept the limits: answered, or cancelled as planned with nothing late until then.

    An answer without a token is judged by its end where there is a limit of TTFT.
    """
    ttft = np.where(np.isnan(found.ttft), found.e2e, found.ttft)
    good: np.ndarray = found.has("ok", "cancelled") & ~np.isnan(found.e2e)
    for limit, values in ((slo.ttft, ttft), (slo.tpot, found.tpot), (slo.e2e, found.e2e)):
        if limit is not None:
            good &= ~(values > limit)  # None keeps every limit
    return good


def request_frame(run: Run, slo: SLO = SLO()) -> pl.DataFrame:  # noqa: B008 (frozen)
    """One row per planned request, to pair runs by: ``request``, ``program``, ``status``, ``at_s``, ``measured``,
    ``ttft_s``, ``tpot_s``, ``e2e_s`` (null unless it was answered), ``kept`` (the limits)."""
    found = samples(run)
    answered = found.has("ok")
    times = {
        f"{name}_s": np.where(answered, getattr(found, name), np.nan) for name in ("ttft", "tpot", "e2e")
    }
    columns = {"at_s": found.at, "measured": found.measured, **times, "kept": kept(found, slo)}
    rest = pl.DataFrame(columns).with_columns(pl.col("at_s", *times).fill_nan(None))
    return pl.concat([run.frame.select("request", "program", "status"), rest], how="horizontal")


def program_frame(run: Run, slo: SLO = SLO(), found: Samples | None = None) -> pl.DataFrame:  # noqa: B008 (frozen)
    """One row per program in order of the plan: ``program``, ``requests``, ``measured`` (its first request lies in the
    window), ``finished`` (all its requests were answered), ``jct_s`` (null unless it finished), ``kept``. ``found`` for
    one who has the samples already."""
    found = found or samples(run)
    low, high = run.head.window_s
    begun = pl.col("at_s").fill_nan(None).min()
    jct = pl.col("end_s").max() - pl.col("scheduled_s").min()
    frame = run.frame.select("program", "scheduled_s", "end_s").with_columns(
        pl.Series("at_s", found.at), pl.Series("ok", found.has("ok"))
    )
    rows = frame.group_by("program", maintain_order=True).agg(
        requests=pl.len(),
        measured=begun.is_between(low, high).fill_null(False),
        finished=pl.col("ok").all(),
        jct_s=pl.when(pl.col("ok").all()).then(jct),
    )
    within = pl.lit(True) if slo.jct is None else pl.col("jct_s") <= slo.jct
    return rows.with_columns(kept=(pl.col("finished") & within).fill_null(False))


def _floats(frame: pl.DataFrame, name: str) -> Floats:
    return frame[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()


def _pieces(frame: pl.DataFrame) -> tuple[Floats, np.ndarray, np.ndarray]:
    """Time, tokens and request of each piece that carries tokens, in order of requests."""
    lengths = [
        frame[name].list.len().fill_null(0).to_numpy().astype(np.int64)
        for name in ("chunk_times_s", "chunk_tokens")
    ]
    wrong = np.flatnonzero(lengths[0] != lengths[1])
    if wrong.size:
        pieces, counts = (int(length[wrong[0]]) for length in lengths)
        raise TraceError(f"request {wrong[0]}: {pieces} pieces of output, but tokens of {counts}")
    some = frame.filter(pl.Series(lengths[0] > 0)).select("chunk_times_s", "chunk_tokens")
    times, tokens = (some[name].explode().to_numpy() for name in some.columns)
    owner = np.repeat(np.arange(frame.height), lengths[0])
    full = tokens > 0
    return (times, tokens, owner) if full.all() else (times[full], tokens[full], owner[full])


def _ends(times: Floats, owner: np.ndarray, num: int) -> tuple[Floats, Floats]:
    """The first and the last time of each request."""
    first, last = np.full(num, np.nan), np.full(num, np.nan)
    if owner.size:
        edge = np.flatnonzero(np.diff(owner)) + 1
        begin, stop = np.concatenate([[0], edge]), np.concatenate([edge, [owner.size]])
        first[owner[begin]], last[owner[begin]] = times[begin], times[stop - 1]
    return first, last


def _gaps(
    times: Floats, tokens: np.ndarray, owner: np.ndarray
) -> tuple[Floats, Floats, np.ndarray, np.ndarray]:
    inner = owner[1:] == owner[:-1]
    gap, at, of = np.diff(times)[inner], times[1:][inner], owner[1:][inner]
    between = np.ones(gap.size, dtype=bool)
    more = tokens - 1
    if more.any():
        gap = np.concatenate([gap, np.zeros(int(more.sum()))])
        at, of = np.concatenate([at, np.repeat(times, more)]), np.concatenate([of, np.repeat(owner, more)])
        between = np.concatenate([between, np.zeros(gap.size - between.size, dtype=bool)])
    return gap, at, of, between
