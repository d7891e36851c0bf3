"""Laws of programs: how many turns, how the prompt grows, how long the gaps and the calls last."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import polars as pl

from braid.lab.distance import Floats, input_bins
from braid.lab.fit.lengths import Table, quantile_table, table

MAX_ROWS = 500_000


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """How programs of one model and kind go on.

    Args:
        turns: quantiles of turns per program.
        growth: the next prompt minus this prompt, by the length of this prompt (negative where it was compacted); one
            table per range of turns, as long programs grow in smaller steps, the ranges parted by ``growth_edges``.
        longest: the longest prompt of a program by its turns: a program's own, which its growth does not pass.
    """

    turns: Table
    growth: tuple[Table, ...]
    growth_edges: tuple[float, ...]
    longest: Table | None


class ProgramLaws(msgspec.Struct, frozen=True, kw_only=True):
    """Turns of a program after its first.

    Args:
        courses: one per entry of the stream's mix, in its order.
        mean_turns: turns per program; ``single`` the share of programs with one turn, ``geometric`` the stopping chance
            of a geometric law of turns.
        gap_s: end of a turn to the start of the next; None where the source has neither gaps nor times.
        e2e_s: duration of a call by its output tokens; None where the source does not say.
    """

    courses: tuple[Course, ...]
    mean_turns: float
    single: float
    geometric: float
    gap_s: Table | None
    e2e_s: Table | None


def _steps(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows in order of turns with what came before them in their program."""
    ordered = rows.sort("program_id", "turn", "t_s", nulls_last=True, maintain_order=True)
    previous = [
        pl.col(name).shift(1).over("program_id").alias(f"{name}_was") for name in ("in_tok", "t_s", "e2e_s")
    ]
    counted = (
        pl.int_range(pl.len()).over("program_id").alias("step"),
        pl.len().over("program_id").alias("turns"),
    )
    return ordered.with_columns(*previous, *counted)


def gaps(steps: pl.DataFrame) -> Floats:
    """Gaps between turns (s): as recorded, else from arrival times and durations; overlap counts as 0."""
    derived = pl.col("t_s") - pl.col("t_s_was") - pl.col("e2e_s_was").fill_null(0.0)
    values = steps.filter(pl.col("step") > 0).select(pl.coalesce("gap_before_s", derived).clip(0.0))
    return values.to_series().drop_nulls().to_numpy()


def _pairs(frame: pl.DataFrame, x: str, y: str) -> tuple[Floats, Floats]:
    both = frame.select(x, y).drop_nulls()
    if both.height > MAX_ROWS:
        both = both.sample(MAX_ROWS, seed=0)
    return both[x].cast(pl.Float64).to_numpy(), both[y].cast(pl.Float64).to_numpy()


def turn_gaps(frame: pl.DataFrame) -> Floats:
    """All gaps between turns of a trace (s)."""
    rows = frame.filter(pl.col("program_id").is_not_null())
    return gaps(_steps(rows)) if rows.height else np.empty(0)


def turn_counts(frame: pl.DataFrame) -> Floats:
    """Turns per program."""
    rows = frame.filter(pl.col("program_id").is_not_null())
    return rows.group_by("program_id").len()["len"].sort().cast(pl.Float64).to_numpy()


def _growth(later: pl.DataFrame, edges: Floats) -> tuple[Table, ...]:
    """Tables of growth for programs of up to ``edges[0]`` turns, up to ``edges[1]``, ..."""
    if not later["growth"].count():
        return ()
    index = np.searchsorted(edges, later["turns"].cast(pl.Float64).to_numpy(), "right")
    parts = [
        _pairs(later.filter(pl.Series(index == b)), "in_tok_was", "growth") for b in range(edges.size + 1)
    ]
    whole = _pairs(later, "in_tok_was", "growth")
    return tuple(table(*(part if part[0].size else whole), 32) for part in parts)


def _course(steps: pl.DataFrame) -> Course:
    later = steps.filter(pl.col("step") > 0).with_columns(
        (pl.col("in_tok") - pl.col("in_tok_was")).alias("growth")
    )
    counts = steps.filter(pl.col("step") == 0)["turns"].cast(pl.Float64).to_numpy()
    grows = later["growth"].count() > 0
    edges = input_bins(later["turns"].cast(pl.Float64).to_numpy(), 12) if grows else np.empty(0)
    peaks = _pairs(
        steps.group_by("program_id").agg(pl.col("turns").first(), pl.col("in_tok").max()), "turns", "in_tok"
    )
    return Course(
        turns=quantile_table(counts),
        growth=_growth(later, edges),
        growth_edges=tuple(float(edge) for edge in edges),
        longest=table(*peaks, 12) if peaks[0].size else None,
    )


def fit_programs(rows: pl.DataFrame, mix: Sequence[tuple[str | None, str | None]]) -> ProgramLaws:
    """From rows that all have a ``program_id``; ``mix`` names the models and kinds that programs start with."""
    steps = _steps(rows)
    counts = turn_counts(rows)
    out, e2e = _pairs(steps.filter(pl.col("status") != "failed"), "out_tok", "e2e_s")
    pauses = gaps(steps)
    began = steps.with_columns(
        pl.col("model").first().over("program_id").alias("model_0"),
        pl.col("kind").cast(pl.String).first().over("program_id").alias("kind_0"),
    )
    return ProgramLaws(
        courses=tuple(
            _course(
                began.filter(
                    pl.col("model_0").eq_missing(pl.lit(model, pl.String)),
                    pl.col("kind_0").eq_missing(pl.lit(kind, pl.String)),
                )
            )
            for model, kind in mix
        ),
        mean_turns=float(counts.mean()),
        single=float((counts == 1).mean()),
        geometric=float(1 / counts.mean()),
        gap_s=quantile_table(pauses) if pauses.size else None,
        e2e_s=table(out, e2e, 12) if e2e.size else None,
    )
