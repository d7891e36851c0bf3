"""Laws of programs: how many turns, how the prompt grows, how long the gaps and the calls last."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import polars as pl

from braid.lab.distance import Floats
from braid.lab.fit.lengths import Table, quantile_table, table

MAX_ROWS = 500_000
MAX_COURSES = 4096
MAX_TURNS = 200_000


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """How the prompts of one model's and kind's programs run: the courses that were seen, to be drawn from as they are.

    A program's first prompt, its number of turns, its pace and where it was compacted hang together; laws of each on
    its own, or of one step given the last, miss the prompts of real agents by 0.05 to 0.15 in KS. A course is that law.

    Args:
        turns: quantiles of turns per program, for reading.
        counts: turns of each course kept: all up to ``MAX_COURSES`` programs and ``MAX_TURNS`` turns, else some by lot.
        prompts: prompt lengths, course after course; empty where the source does not say.
        cached: what an ideal cache would hold of each of these prompts; empty where the source does not say.
        started: programs that each course started; empty for none at all.
    """

    turns: Table
    counts: tuple[int, ...]
    prompts: tuple[int, ...]
    cached: tuple[int, ...]
    started: tuple[int, ...] = ()


class ProgramLaws(msgspec.Struct, frozen=True, kw_only=True):
    """Turns of a program after its first.

    Args:
        courses: one per entry of the mix, in its order; programs with unknown prompts among known ones left out.
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
    previous = [pl.col(name).shift(1).over("program_id").alias(f"{name}_was") for name in ("t_s", "e2e_s")]
    return ordered.with_columns(*previous, pl.int_range(pl.len()).over("program_id").alias("step"))


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


def _course(steps: pl.DataFrame) -> Course:
    counts = steps.group_by("program_id", maintain_order=True).agg(
        pl.len().alias("turns"), pl.col("in_tok", "cached_tok").null_count()
    )
    told = counts.filter(pl.col("in_tok") == 0)
    if told.height < counts.height / 2:
        told = counts
    begun = steps.group_by("program_id").agg(pl.col("started").first())
    kept = told.sample(fraction=1.0, shuffle=True, seed=0).head(MAX_COURSES)
    kept = kept.filter(pl.col("turns").cum_sum().shift(1, fill_value=0) < MAX_TURNS)
    rows = kept.select("program_id").join(steps, on="program_id", how="left", maintain_order="left_right")
    return Course(
        turns=quantile_table(counts["turns"].cast(pl.Float64).to_numpy()),
        counts=tuple(kept["turns"].to_list()),
        prompts=_all_known(rows["in_tok"]),
        cached=_all_known(rows["cached_tok"]),
        started=tuple(kept.join(begun, on="program_id", maintain_order="left")["started"].to_list()),
    )


def _all_known(values: pl.Series) -> tuple[int, ...]:
    return () if values.null_count() else tuple(values.to_list())


def fit_programs(
    rows: pl.DataFrame, mix: Sequence[tuple[str | None, str | None]], children: pl.DataFrame
) -> ProgramLaws:
    """From rows that all have a ``program_id``; ``mix`` names the models and kinds that programs start with, and
    ``children`` holds the rows of the programs that they started."""
    begun = children.group_by(pl.col("parent_id").alias("program_id")).agg(
        pl.col("program_id").n_unique().alias("started")
    )
    steps = _steps(rows).join(begun, on="program_id", how="left", maintain_order="left")
    steps = steps.with_columns(pl.col("started").fill_null(0))
    counts = turn_counts(rows)
    out, e2e = _pairs(steps.filter((pl.col("status") != "failed").fill_null(True)), "out_tok", "e2e_s")
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


def fit_places(parents: pl.DataFrame, children: pl.DataFrame) -> Table:
    """After which share of their parents' turns sub-programs begin.

    By arrival times, or by ``starts_at_s`` on the parent's ``t_program_s`` where a source has these; else anywhere with
    the same chance.
    """
    clock, began = "t_s", pl.col("t_s").min()
    if {"t_program_s", "starts_at_s"} <= set(parents.columns):
        clock, began = "t_program_s", pl.col("starts_at_s").first()
    begins = children.group_by("program_id", maintain_order=True).agg(
        pl.col("parent_id").first(), began.alias("began")
    )
    turns = parents.select(pl.col("program_id").alias("parent_id"), pl.col(clock).alias("at")).drop_nulls()
    pairs = begins.drop_nulls("began").join(turns, on="parent_id")
    shares = pairs.group_by("program_id", maintain_order=True).agg((pl.col("at") <= pl.col("began")).mean())
    values = shares["at"].to_numpy()
    return quantile_table(values if values.size else np.array([0.0, 1.0]))
