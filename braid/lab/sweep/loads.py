"""A trace at a load: more or fewer whole programs of it, every load a superset of the lower ones.

``braid.lab.scale`` thins copies of a trace alike, which changes the bursts of all of them whenever a copy is added.
A search compares loads, so here whole copies stay and only the last one is thinned: the first is the trace itself, up
to load 1 a part of it, and what a lower load plays, a higher one plays at the same times, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl

from braid.lab.replay.planning.numbered import plan_hash
from braid.lab.replay.planning.plan import PlanOptions, ReplayPlan, build_plan
from braid.lab.scale import JITTER_S, superpose, thin
from braid.lab.table import Trace, TraceError, conform

_ORIGIN = "_origin"


def at_factor(trace: Trace, factor: float, seed: int, jitter_s: float = JITTER_S) -> Trace:
    """``factor`` times the load of ``trace``; nested for one seed. Copies are those of ``superpose``.

    Raises:
        TraceError: a factor that is not above 0, or a trace without arrival times.
    """
    if not (factor > 0 and math.isfinite(factor)):
        raise TraceError(f"a load must be above 0, got {factor}")
    whole = math.floor(factor + 1e-9)
    rest = factor - whole if factor - whole > 1e-9 else 0.0
    copies = _copies(trace, whole + (rest > 0), seed, jitter_s)
    if rest:
        copies[-1] = thin(replace(trace, frame=copies[-1]), rest, seed).frame
    note = f"Load {factor:g}: {whole} whole copies of the trace's programs and {rest:.3g} of another, seed {seed}."
    return Trace(
        conform(pl.concat(copies)), replace(trace.info, notes=(*trace.info.notes, note)), trace.findings
    )


def _copies(trace: Trace, num: int, seed: int, jitter_s: float) -> list[pl.DataFrame]:
    """``superpose`` taken apart. Rows without a program get one of their own, by which copies are told apart."""
    lone = pl.format("row {}", pl.int_range(pl.len()))
    frame = trace.frame.with_columns(program_id=pl.coalesce("program_id", lone))
    if num == 1:
        return [frame]
    marked = replace(trace, frame=frame.with_columns(pl.col("program_id").alias(_ORIGIN)))
    laid = superpose(marked, num, seed, jitter_s).frame
    suffix = pl.col("program_id").str.slice(pl.col(_ORIGIN).str.len_chars())
    parts = [laid.filter(suffix == ("" if number == 0 else f"+{number}")) for number in range(num)]
    return [part.drop(_ORIGIN) for part in parts]


def plan_at_factor(trace: Trace, factor: float, options: PlanOptions, span_s: float, seed: int) -> ReplayPlan:
    """The stretch of ``span_s`` seconds from ``options.start_s`` on, at a load by ``seed``; ``options.seed`` is that of
    the content.

    Raises:
        TraceError: see ``build_plan``; or nothing of the load lies in the stretch.
    """
    grown = at_factor(trace, factor, seed)
    return until(build_plan(grown, replace(options, span_s=span_s)), span_s)


def plan_at_rate(trace: Trace, rate: float, options: PlanOptions, span_s: float) -> ReplayPlan:
    """The first programs of the trace, ``rate`` per second for ``span_s`` seconds.

    Raises:
        TraceError: see ``build_plan``.
    """
    # Gaps vary, so a few more programs than the mean asks for; ``until`` cuts what starts later.
    most = math.ceil(rate * span_s + 4 * max(options.cv, 1.0) * math.sqrt(rate * span_s)) + 1
    return until(build_plan(trace, replace(options, arrivals="rate", rate=rate, max_programs=most)), span_s)


def until(plan: ReplayPlan, span_s: float) -> ReplayPlan:
    """Without the requests that the trace has later than ``span_s`` (a program's later turns), so that a run ends."""
    kept = plan.frame.filter(pl.col("start_s") <= span_s)
    left = plan.frame.height - kept.height
    if not left:
        return plan
    if not np.array_equal(kept["request"].to_numpy(), np.arange(kept.height)):
        raise TraceError("a plan whose rows do not follow its clock cannot be cut")
    note = f"{left:,} requests that the trace has more than {span_s:g} s after the start are left out."
    cut = replace(plan, frame=kept, notes=(*plan.notes, note), sha256="")
    return replace(cut, sha256=plan_hash(cut))


def num_programs(trace: Trace) -> int:
    """Named ones and lone requests."""
    lone = trace.frame["program_id"].null_count()
    return trace.num_programs + lone


def requests_within(plan: ReplayPlan, window_s: Sequence[float]) -> int:
    """How many are planned in a stretch of the run."""
    return plan.frame.filter(pl.col("start_s").is_between(window_s[0], window_s[1])).height
