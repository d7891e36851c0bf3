"""Prompt lengths for a trace that has none, from the programs of another one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import polars as pl

from braid.lab.table import Trace, TraceError, conform

_CONTINUES = 0.9


class _Course(NamedTuple):
    """A program's prompts, turn by turn; ``cached`` are the tokens of each that earlier turns hold."""

    prompts: Sequence[int]
    cached: Sequence[int]

    def continues(self, turn: int) -> bool:
        """Whether a turn's prompt begins with the one before, but for its last words; else it was compacted or
        edited."""
        before = self.prompts[turn - 1]
        return self.prompts[turn] >= before and self.cached[turn] >= _CONTINUES * before


def with_lengths(trace: Trace, source: Trace, seed: int = 0) -> Trace:
    """Give the programs of ``trace`` without prompt lengths those of programs of ``source``.

    Every program gets the whole course of one program, drawn among those with at least as many turns (or the longest
    one, where none has), from its first turn on: a first prompt, how it grows and where it is compacted belong
    together. Where it continues the turn before, a prompt is at least that turn with its own answer and a token more.
    Programs with lengths, answers, gaps and all else stay as they are. The same seed gives the same lengths.

    Raises:
        TraceError: ``trace`` has no program without lengths, or ``source`` no program with all of its own.
    """
    bare = _bare(trace.frame)
    if not bare.height:
        raise TraceError(f"{trace.info.source}: no program is without prompt lengths")
    courses = _courses(source.frame)
    if not courses:
        raise TraceError(f"{source.info.source}: no program has prompt lengths for all its turns")
    rows = [row for drawn in _drawn(bare, courses, seed) for row in drawn]
    made = pl.DataFrame(rows, schema={"row": pl.UInt32, "in": pl.Int64, "cached": pl.Int64}, orient="row")
    frame = trace.frame.with_row_index("row").join(made, on="row", how="left", maintain_order="left")
    frame = frame.with_columns(
        pl.coalesce("in", "in_tok").alias("in_tok"), pl.coalesce("cached", "cached_tok").alias("cached_tok")
    ).drop("row", "in", "cached")
    programs = bare["program_id"].n_unique()
    note = (
        f"Prompt lengths of {programs:,} programs are not their own: whole courses of {len(courses):,} programs of "
        f"{source.info.source}, drawn with seed {seed}; answers and gaps are the trace's."
    )
    kept = tuple(text for text in trace.info.notes if text != "Prompt lengths are missing.")
    info = replace(
        trace.info,
        notes=(*kept, note),
        licence=_both(trace.info.licence, source.info.licence),
        citation=_both(trace.info.citation, source.info.citation),
    )
    return Trace(conform(frame), info, trace.findings)


def _both(own: str, lent: str) -> str:
    return "; ".join(dict.fromkeys(text for text in (own, lent) if text))


def _bare(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows, in order of programs and turns, of programs that know no prompt length."""
    rows = frame.select("program_id", "turn", "in_tok", "out_tok").with_row_index("row")
    rows = rows.filter(pl.col("program_id").is_not_null())
    rows = rows.filter(pl.col("in_tok").is_null().all().over("program_id"))
    return rows.sort("program_id", "turn", "row", maintain_order=True)


def _courses(frame: pl.DataFrame) -> list[_Course]:
    """Of programs that no other one started, by number of turns."""
    rows = frame.filter(pl.col("program_id").is_not_null() & pl.col("parent_id").is_null())
    rows = rows.sort("program_id", "turn", maintain_order=True)
    known = rows.filter((pl.col("in_tok").fill_null(0) > 0).all().over("program_id"))
    held = (pl.col("in_tok") + pl.col("out_tok").fill_null(0)).shift(1).over("program_id").fill_null(0)
    known = known.with_columns(
        pl.coalesce("cached_tok", pl.min_horizontal("in_tok", held)).alias("cached_tok")
    )
    grouped = known.group_by("program_id", maintain_order=True).agg("in_tok", "cached_tok")
    courses = [_Course(*pair) for pair in grouped.select("in_tok", "cached_tok").iter_rows()]
    return sorted(courses, key=lambda course: len(course.prompts))


def _drawn(bare: pl.DataFrame, courses: list[_Course], seed: int) -> Iterator[list[tuple[int, int, int]]]:
    rng = np.random.default_rng(seed)
    lengths = np.array([len(course.prompts) for course in courses])
    for part in bare.partition_by("program_id", maintain_order=True):
        first = min(int(np.searchsorted(lengths, part.height)), len(courses) - 1)
        course = courses[int(rng.integers(first, len(courses)))]
        yield list(_fitted(course, part["row"].to_list(), part["out_tok"].fill_null(0).to_list()))


def _fitted(course: _Course, rows: list[int], answers: list[int]) -> Iterator[tuple[int, int, int]]:
    """Row, prompt and cached tokens of each turn. A program longer than its course goes on growing as this did."""
    last = len(course.prompts) - 1
    pace = max((course.prompts[-1] - course.prompts[0]) // max(last, 1), 1)
    prompt = answer = 0
    for turn, (row, own) in enumerate(zip(rows, answers, strict=True)):
        at = min(turn, last)
        length, cached = course.prompts[at] + pace * (turn - at), course.cached[at]
        if turn > last or (turn and course.continues(turn)):
            length, cached = max(length, prompt + answer + 1), max(cached, prompt)
        yield row, length, min(cached, length)
        prompt, answer = length, own
