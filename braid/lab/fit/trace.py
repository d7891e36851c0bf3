"""A whole trace to a profile."""

from __future__ import annotations

import msgspec
import numpy as np
import polars as pl

from braid.lab.distance import Floats
from braid.lab.fit.arrivals import CANDIDATES, FittedArrivals, fit_arrivals
from braid.lab.fit.lengths import length_laws, quantile_table, table
from braid.lab.fit.observed import Observed, Spans, observed
from braid.lab.fit.outcomes import fit_outcomes
from braid.lab.fit.profile import VERSION, Lengths, Profile, Stream, SubPrograms
from braid.lab.fit.programs import ProgramLaws, fit_places, fit_programs
from braid.lab.fit.reuse import fit_reuse, with_cached
from braid.lab.progress import NoProgress, Progress
from braid.lab.split import inside
from braid.lab.table import Trace, TraceError

CLOCK = "The source's clock ticks every {:g} s: laws were fitted to ticks, or to arrivals spread evenly between them."
NO_TIMES = "The source has no arrival times of its own: give a rate to generate (starts are then Poisson)."


def fit_trace(
    trace: Trace,
    *,
    spans: Spans | None = None,
    candidates: tuple[str, ...] = tuple(CANDIDATES),
    laws: bool = True,
    progress: Progress | None = None,
) -> Profile:
    """Fit arrivals, lengths, turns, failures and cancels.

    Args:
        spans: the stretches of time that may be looked at (s); what begins outside is not seen. Without, all that the
            trace covers.
        candidates: arrival models to try, names of ``CANDIDATES``.
        laws: fit parametric laws of lengths, too (they inform; generation uses the quantile tables).

    Raises:
        TraceError: no rows, or none with a prompt length.
        ValueError: an unknown candidate.
    """
    progress = progress or NoProgress()
    unknown = [name for name in candidates if name not in CANDIDATES]
    if unknown or not candidates:
        raise ValueError(
            f"arrival models must be of {', '.join(CANDIDATES)}, got {', '.join(unknown) or 'none'}"
        )
    spans = spans or trace.info.spans or None
    frame = trace.frame if spans is None else inside(trace.frame, spans)
    if not frame.height:
        raise TraceError(f"{trace.info.source}: no rows to fit")
    single, programs = (
        frame.filter(known) for known in (pl.col("program_id").is_null(), pl.col("program_id").is_not_null())
    )
    programs = with_cached(programs, trace.info.block_size)
    quantum = trace.info.t_quantum_s
    notes = [*trace.info.notes]
    if quantum and frame["t_s"].count():
        notes.append(CLOCK.format(quantum))
    streams: list[Stream | None] = []
    for rows, is_program in ((single, False), (programs, True)):
        if not rows.height:
            streams.append(None)
            continue
        stream = _stream(rows, is_program, quantum, spans, candidates, laws, progress)
        if stream.arrivals is None:
            notes.append(NO_TIMES)
        streams.append(stream)
    if streams[0] is not None:
        reuse = fit_reuse(single, trace.info.block_size)
        streams[0] = msgspec.structs.replace(streams[0], reuse=reuse)
    return Profile(
        version=VERSION,
        source=trace.info.source,
        data_sha256=trace.info.sha256,
        span_s=trace.span_s,
        t_quantum_s=quantum,
        licence=trace.info.licence,
        citation=trace.info.citation,
        notes=tuple(dict.fromkeys(notes)),
        requests=streams[0],
        programs=streams[1],
    )


def _stream(
    rows: pl.DataFrame,
    is_program: bool,
    quantum_s: float,
    spans: Spans | None,
    candidates: tuple[str, ...],
    laws: bool,
    progress: Progress,
) -> Stream:
    top = _top(rows) if is_program else rows
    first = top.unique("program_id", keep="first", maintain_order=True) if is_program else rows
    times = first["t_s"].drop_nulls().to_numpy()
    arrivals = _arrivals(times, quantum_s, spans, candidates, progress)
    progress.update("fitting lengths", 0, None)
    mix = _mix(top, first, laws)
    statuses = rows["status"].cast(pl.String)
    seen = rows["t_s"].drop_nulls()
    return Stream(
        num=first.height,
        arrivals=arrivals,
        mix=mix,
        outcomes=fit_outcomes(
            seen.to_numpy() if seen.len() == rows.height else np.empty(0),
            (statuses == "failed").fill_null(False).to_numpy(),
            (statuses == "cancelled").fill_null(False).to_numpy(),
        ),
        programs=_programs(top, mix, rows) if is_program else None,
        below=_below(rows, top, laws) if is_program else None,
    )


def _top(rows: pl.DataFrame) -> pl.DataFrame:
    """Programs that none of the others started."""
    return rows.filter(~pl.col("parent_id").is_in(rows["program_id"].unique().implode()).fill_null(False))


def _children(rows: pl.DataFrame, parents: pl.DataFrame) -> pl.DataFrame:
    names = parents["program_id"].unique()
    own = pl.col("parent_id").is_in(names.implode()) & (pl.col("parent_id") != pl.col("program_id"))
    return rows.filter(own.fill_null(False))


def _programs(own: pl.DataFrame, mix: tuple[Lengths, ...], rows: pl.DataFrame) -> ProgramLaws:
    return fit_programs(own, [(each.model, each.kind) for each in mix], _children(rows, own))


def _below(rows: pl.DataFrame, parents: pl.DataFrame, laws: bool) -> SubPrograms | None:
    """What the programs of one level started, level by level."""
    children = _children(rows, parents)
    if not children["in_tok"].count() and not (children["out_tok"] > 0).any():
        return None
    first = children.unique("program_id", keep="first", maintain_order=True)
    mix = _mix(children, first, laws)
    return SubPrograms(
        mean=first.height / parents["program_id"].n_unique(),
        place=fit_places(parents, children),
        mix=mix,
        programs=_programs(children, mix, rows),
        below=_below(rows, children, laws),
    )


def _arrivals(
    times: Floats, quantum_s: float, spans: Spans | None, candidates: tuple[str, ...], progress: Progress
) -> FittedArrivals | None:
    """None where times do not tell: absent, or most starts at one time (every program counts from its own zero)."""
    times = np.sort(times)
    if quantum_s:
        times = np.round(times / quantum_s) * quantum_s
    if times.size < 10 or np.count_nonzero(times == times[0]) > times.size / 2:
        return None
    data = observed(times, quantum_s) if spans is None else Observed(times, spans, quantum_s)
    return fit_arrivals(data, candidates, progress)


def _mix(rows: pl.DataFrame, first: pl.DataFrame, laws: bool) -> tuple[Lengths, ...]:
    """One entry per model and kind with known prompt lengths, by share of the starts."""
    keys = ["model", "kind"]
    groups = first.group_by(keys).len().sort("len", "model", "kind", descending=[True, False, False])
    entries = []
    for model, kind, num in groups.iter_rows():
        own = pl.col("model").eq_missing(pl.lit(model, pl.String)) & pl.col("kind").cast(
            pl.String
        ).eq_missing(pl.lit(kind, pl.String))
        entry = _lengths(rows.filter(own), first.filter(own), model, kind, num / first.height, laws)
        if entry is not None:
            entries.append(entry)
    if not entries:
        raise TraceError(
            "no request has a known length; a profile needs prompt lengths, output lengths, or both"
        )
    return tuple(entries)


def _lengths(
    rows: pl.DataFrame, first: pl.DataFrame, model: str | None, kind: str | None, share: float, laws: bool
) -> Lengths | None:
    known = rows.filter(pl.col("out_tok") > 0)
    starts = first["in_tok"].drop_nulls().cast(pl.Float64).to_numpy()
    both = known.select("in_tok", "out_tok").drop_nulls()
    outputs = known["out_tok"].drop_nulls().cast(pl.Float64).to_numpy()
    if not starts.size and not outputs.size:
        return None
    told = rows.filter(pl.col("program_id").is_null(), pl.col("in_tok") > 0).drop_nulls("cached_tok")
    cached = told.select("in_tok", pl.col("cached_tok") / pl.col("in_tok"))
    output = None
    if outputs.size:
        with_input = starts.size > 0 and both.height >= outputs.size / 2
        output = table(*_columns(both)) if with_input else quantile_table(outputs)
    return Lengths(
        model=model,
        kind=kind,
        share=share,
        num=rows.height,
        input=quantile_table(starts) if starts.size else None,
        output=output,
        cached=table(*_columns(cached)) if cached.height else None,
        input_laws=length_laws(starts) if laws else (),
        output_laws=length_laws(outputs) if laws else (),
    )


def _columns(frame: pl.DataFrame) -> tuple[Floats, Floats]:
    return tuple(frame[name].cast(pl.Float64).to_numpy() for name in frame.columns)  # type: ignore[return-value]
