"""More or less load from a real trace, by whole programs.

Thinning keeps a program by a hash of its id and the seed, so a smaller share is always part of a larger one.
Superposing adds copies whose programs start a random shift later or earlier, so bursts of copies do not coincide.
Gaps inside programs are never touched. Compressing time squeezes them, which no user does: it is there to show the
difference.
"""

from __future__ import annotations

import math
from dataclasses import replace
from hashlib import blake2b

import numpy as np
import polars as pl
from numpy.typing import NDArray

from braid.lab.distance import Floats
from braid.lab.table import Trace, TraceError, conform

JITTER_S = 1200.0
COMPRESS_WARNING = "Time was compressed: gaps inside programs shrank too, as no user's do. This is no load."


def uniform_of(programs: list[str], seed: int) -> Floats:
    """A number in [0, 1) for each id, the same everywhere and for ever."""
    key = seed.to_bytes(8, "little", signed=True)
    hashes = [
        int.from_bytes(blake2b(name.encode(), digest_size=8, key=key).digest(), "little") for name in programs
    ]
    return np.array(hashes, dtype=np.uint64).astype(np.float64) / 2.0**64


def _mix(index: NDArray[np.uint64], seed: int) -> Floats:
    """The same for row numbers, vectorised (splitmix64, Steele et al. 2014)."""
    start = np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
    z = index * np.uint64(0x9E3779B97F4A7C15) + start
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.asarray((z >> np.uint64(11)).astype(np.float64) / 2.0**53)


def chances(frame: pl.DataFrame, seed: int) -> Floats:
    """One number in [0, 1) per row, equal within a program and its parents; rows without a program stand alone."""
    alone = _mix(np.arange(frame.height, dtype=np.uint64), seed)
    if frame["program_id"].null_count() == frame.height:
        return alone
    owners = families(frame)
    names = owners.drop_nulls().unique(maintain_order=True)
    table = pl.DataFrame({"owner": names, "chance": uniform_of(names.to_list(), seed)})
    chance = pl.DataFrame({"owner": owners}).join(table, on="owner", how="left", maintain_order="left")[
        "chance"
    ]
    return np.where(owners.is_null().to_numpy(), alone, chance.fill_null(0.0).to_numpy())


def families(frame: pl.DataFrame) -> pl.Series:
    """The topmost parent of every row's program; null where there is no program."""
    pairs = frame.select("program_id", "parent_id").drop_nulls().unique("program_id", maintain_order=True)
    parent = dict(pairs.iter_rows())

    def top(name: str) -> str:
        for _ in range(len(parent)):
            if name not in parent or parent[name] == name:
                return name
            name = parent[name]
        return name

    programs = frame["program_id"]
    if not parent:
        return programs
    names = programs.drop_nulls().unique()
    return programs.replace(names, pl.Series([top(name) for name in names]))


def thin(trace: Trace, share: float, seed: int = 0) -> Trace:
    """Keep whole programs (with their sub-programs), each with chance ``share``; nested across shares for one seed.

    Raises:
        TraceError: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise TraceError(f"a share to keep must be above 0 and at most 1, got {share}")
    kept = trace.frame.filter(pl.Series(chances(trace.frame, seed) < share))
    return _noted(trace, kept, f"Thinned by whole programs: each kept with chance {share:g}, seed {seed}.")


def superpose(trace: Trace, copies: int, seed: int = 0, jitter_s: float = JITTER_S) -> Trace:
    """Lay ``copies`` of a trace over each other; the first as it is, the others with starts shifted by a uniform
    amount within +-``jitter_s``, one per program, circular within the trace's span so that no edge thins out.

    Requests without a program move one by one, so bursts shorter than the jitter blur in the copies. With ``jitter_s``
    0 a copy moves as a whole by one random shift instead: independent copies, each with its own bursts.

    Raises:
        TraceError: fewer than one copy, a negative jitter, no arrival times, or a trace with holes cut into it.
    """
    if copies < 1 or jitter_s < 0:
        raise TraceError(
            f"superposing needs at least one copy and no negative jitter, got {copies} and {jitter_s}"
        )
    if trace.frame["t_s"].null_count():
        raise TraceError("superposing needs arrival times, and this trace has rows without")
    if len(trace.info.spans) > 1:
        raise TraceError("a part of a trace with other parts cut out of its middle cannot be superposed")
    rng = np.random.default_rng(seed)
    parts = [trace.frame, *(_copy(trace, k, rng, jitter_s) for k in range(1, copies))]
    note = f"Superposed: {copies} copies, starts shifted within +-{jitter_s:g} s (seed {seed}), inner gaps untouched."
    return _noted(trace, pl.concat(parts), note)


def _copy(trace: Trace, number: int, rng: np.random.Generator, jitter_s: float) -> pl.DataFrame:
    frame = trace.frame
    times = frame["t_s"].to_numpy()
    low, span = float(times.min()), trace.span_s or 1.0
    if jitter_s == 0:
        starts, shift = times, np.full(times.size, rng.random() * span)
    else:
        family = families(frame)
        lone = pl.Series(np.arange(frame.height)).cast(pl.String)
        key = pl.select(pl.coalesce(family, "row " + lone)).to_series()
        _, index = np.unique(key.to_numpy(), return_inverse=True)
        shift = rng.uniform(-jitter_s, jitter_s, int(index.max()) + 1)[index]
        starts = _first_per(index, times)[index]
    # The program's start wraps around the span; its later turns keep their distance from it.
    moved = times + (low + np.mod(starts + shift - low, span)) - starts
    renamed = [(pl.col(name) + f"+{number}").alias(name) for name in ("program_id", "parent_id")]
    return frame.with_columns(pl.Series("t_s", moved), *renamed)


def _first_per(index: NDArray[np.int64], times: Floats) -> Floats:
    first = np.full(int(index.max()) + 1, np.inf)
    np.minimum.at(first, index, times)
    return first


def compress(trace: Trace, factor: float) -> Trace:
    """Divide all times by ``factor``, gaps inside programs too: not a load, see ``COMPRESS_WARNING``.

    Raises:
        TraceError: a factor that is not above 0.
    """
    if not (factor > 0 and math.isfinite(factor)):
        raise TraceError(f"a factor must be above 0, got {factor}")
    scaled = trace.frame.with_columns(pl.col("t_s") / factor, pl.col("gap_before_s") / factor)
    spans = tuple((start / factor, stop / factor) for start, stop in trace.info.spans)
    return _noted(replace(trace, info=replace(trace.info, spans=spans)), scaled, COMPRESS_WARNING)


def scale(trace: Trace, factor: float, seed: int = 0, jitter_s: float = JITTER_S) -> Trace:
    """``factor`` times the load: enough copies, then thinned.

    Raises:
        TraceError: see ``thin`` and ``superpose``.
    """
    if not (factor > 0 and math.isfinite(factor)):
        raise TraceError(f"a factor must be above 0, got {factor}")
    copies = max(1, math.ceil(factor - 1e-9))
    grown = superpose(trace, copies, seed, jitter_s) if copies > 1 else trace
    share = factor / copies
    return thin(grown, share, seed) if share < 1 - 1e-9 else grown


def _noted(trace: Trace, frame: pl.DataFrame, note: str) -> Trace:
    info = replace(trace.info, notes=(*trace.info.notes, note))
    return Trace(conform(frame), info, trace.findings)
