"""Programs for ``agents.py``: how long their turns are, when they start, and every word of them.

A program is drawn from a recorded trace, scaled to what the machine carries, or from laws stated here. All of it is
fixed by a seed before the first request is sent, so that every policy gets the same programs at the same times.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl

from braid.lab.readers import read_trace
from braid.lab.replay.asking.words import WORDS
from braid.lab.table import Trace

FENCE_TOKENS = 22
"""A reply that calls a tool has about so many tokens beside its filling words."""
TEMPLATE_TOKENS = 8
"""What a chat template adds to a message, about."""
MIN_NEW, MIN_OUT = 8, FENCE_TOKENS + 2
LMCACHE_GAP_P50, LMCACHE_GAP_P90 = 0.72, 3.7
Z90 = 1.2816


class Step(NamedTuple):
    """One turn: tokens that its message adds, tokens of its answer, and the seconds of the tool call before it."""

    new: int
    out: int
    gap_s: float


class Program(NamedTuple):
    name: str
    start_s: float
    steps: tuple[Step, ...]

    @property
    def num_tokens(self) -> int:
        """Of its whole history, about."""
        return sum(step.new + step.out + 2 * TEMPLATE_TOKENS for step in self.steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """How recorded programs become ones that the machine carries.

    Args:
        context, output, gap: factors on new prompt tokens, on answers and on gaps.
        min_turns, max_turns: shorter programs are left out, longer ones end early.
        max_out, max_gap_s: caps, after scaling.
        max_tokens: of a whole program; it ends before it would be longer.
    """

    context: float = 1.0
    output: float = 1.0
    gap: float = 1.0
    min_turns: int = 3
    max_turns: int = 8
    max_out: int = 32
    max_gap_s: float = 10.0
    max_tokens: int = 1500


Course = tuple[Step, ...]
"""The turns of a program, whenever it starts."""


def poisson_starts(num: int, rate: float, rng: random.Random) -> list[float]:
    """The first at 0."""
    starts = [0.0]
    while len(starts) < num:
        starts.append(starts[-1] + rng.expovariate(rate))
    return starts[:num]


def draw(courses: Sequence[Course], num: int, rate: float, seed: int) -> list[Program]:
    """``num`` programs at Poisson times; no course twice while there are others."""
    rng = random.Random(seed)
    chosen: list[Course] = []
    while len(chosen) < num:
        chosen += rng.sample(courses, min(num - len(chosen), len(courses)))
    starts = poisson_starts(num, rate, rng)
    return [
        Program(f"{seed}-{number}", start, course)
        for number, (start, course) in enumerate(zip(starts, chosen, strict=True))
    ]


def lognormal(median: float, p90: float) -> Callable[[random.Random], float]:
    sigma = math.log(p90 / median) / Z90
    return lambda rng: rng.lognormvariate(math.log(median), sigma)


def synthetic(num: int, seed: int, scale: Scale) -> list[Course]:
    """Without a trace: 5 to 7 turns, 120 tokens first, 32 a turn, gaps of LMCache's median and 90th percentile."""
    rng, gap = random.Random(f"synthetic {seed}"), lognormal(LMCACHE_GAP_P50, LMCACHE_GAP_P90)
    courses = []
    for _ in range(num):
        turns = rng.randint(5, 7)
        lengths = [round(rng.gauss(120, 20)), *(round(rng.gauss(32, 6)) for _ in range(turns - 1))]
        steps = [Step(new, MIN_OUT, gap(rng)) for new in lengths]
        courses.append(scaled(steps, scale))
    return courses


def peers(num: int, seed: int, words: tuple[int, int] = (1500, 400), turns: int = 6) -> list[Program]:
    """The workload that other engines were given: Poisson arrivals 4 s apart, gaps of a log-normal with median 0.7 s.

    How wide that law was is not handed down; here it is as wide as LMCache's gaps.
    """
    rng = random.Random(seed)
    gap = lognormal(0.7, 0.7 * LMCACHE_GAP_P90 / LMCACHE_GAP_P50)
    starts = poisson_starts(num, 1 / 4, rng)
    first, later = words
    return [
        Program(
            f"peers-{seed}-{number}",
            start,
            tuple(Step(later if turn else first, 48, gap(rng) if turn else 0.0) for turn in range(turns)),
        )
        for number, start in enumerate(starts)
    ]


def recorded(path: Path, lengths: Path | None, scale: Scale, seed: int) -> tuple[list[Course], list[str]]:
    """All usable programs of a trace, scaled, and what must be said of them.

    Where prompt lengths are missing, each program takes the new tokens per turn of one of ``lengths``, drawn by seed.
    """
    trace = read_trace(path)
    notes = list(trace.info.notes)
    plain = courses_of(trace)
    if trace.frame["in_tok"].null_count() == trace.frame.height:
        if lengths is None:
            raise SystemExit(f"{path} has no prompt lengths: name a trace that has them with --lengths")
        donors = [course for course in courses_of(read_trace(lengths)) if len(course) >= scale.min_turns]
        plain = paired(plain, donors, random.Random(seed))
        notes.append(f"New tokens per turn are those of programs of {lengths.name}, drawn by seed.")
    kept = [course for steps in plain if len(course := scaled(steps, scale)) >= scale.min_turns]
    if not kept:
        raise SystemExit(f"{path}: no program has {scale.min_turns} turns within {scale.max_tokens} tokens")
    notes.append(f"{len(kept)} of {len(plain)} programs have at least {scale.min_turns} turns when scaled.")
    return kept, notes


def courses_of(trace: Trace) -> list[Course]:
    """Every program as a history that only grows: it ends where its prompt gets shorter (a compaction)."""
    frame = trace.frame.filter(pl.col("program_id").is_not_null()).sort("program_id", "turn")
    columns = ("in_tok", "out_tok", "gap_before_s")
    return [
        growing(part.select(columns).rows()) for part in frame.partition_by("program_id", maintain_order=True)
    ]


def growing(rows: Sequence[tuple[int | None, int | None, float | None]]) -> Course:
    steps: list[Step] = []
    known = 0
    for prompt, out, gap in rows:
        if prompt is not None and prompt < known:
            break
        new = 0 if prompt is None else prompt - known
        steps.append(Step(new, out or 0, (gap or 0.0) if steps else 0.0))
        known = 0 if prompt is None else prompt + (out or 0)
    return tuple(steps)


def paired(courses: Sequence[Course], donors: Sequence[Course], rng: random.Random) -> list[Course]:
    """New tokens of a donor's turns; one that is longer than its donor takes the donor's later turns again."""
    found = []
    for course in courses:
        donor = rng.choice(donors)
        later = donor[1:]
        news = [donor[0].new, *(later[turn % len(later)].new for turn in range(len(course) - 1))]
        found.append(tuple(step._replace(new=new) for step, new in zip(course, news, strict=True)))
    return found


def scaled(steps: Sequence[Step], scale: Scale) -> Course:
    kept: list[Step] = []
    total = 0
    for step in steps[: scale.max_turns]:
        new = max(MIN_NEW, round(step.new * scale.context))
        out = min(max(MIN_OUT, round(step.out * scale.output)), scale.max_out)
        total += new + out + 2 * TEMPLATE_TOKENS
        if total > scale.max_tokens:
            break
        gap = min(step.gap_s * scale.gap, scale.max_gap_s) if kept else 0.0
        kept.append(Step(new, out, gap))
    return tuple(kept)


class Words:
    """The words of one program: always the same, and unlike any other's. Each is one token of most tokenizers."""

    def __init__(self, *key: object) -> None:
        self._rng = random.Random(" ".join(map(str, key)))

    def take(self, count: int) -> str:
        return "".join(self._rng.choices(WORDS, k=count)).strip()
