"""SWE-bench-like and BFCL-like programs, from the figures that were published of them.

Continuum (arXiv 2511.02230) names mean and deviation of turns, of the time of a tool call and of tokens per program,
and nothing else; its traces are not public. So everything here but these six numbers per kind is a choice:

    turns     a gamma law, rounded up; its deviation can be replaced by a wanted ``eta`` (``laws.memory_of``)
    gaps      log-normal, cut 20 deviations above the mean
    tokens    of a program: its last prompt and answer together, log-normal; independent of its turns
    answers   log-normal with mean and deviation of real calls of the like: LMCache's sessions of SWE-bench and GAIA
    growth    the first prompt is a fixed share of the program's tokens; the results of the tools share what the
              answers leave, with log-normal weights of deviation 1 around their mean
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import polars as pl

from braid.lab.readers.draft import Draft, finish
from braid.lab.synthetic.laws import Counts, Floats, Ints, counts, counts_of_memory, log_normal
from braid.lab.table import FINISHES, INPUT_KINDS, STATUSES, Trace, TraceError, TraceInfo

FORMAT = "synthetic"
SOURCE = "Continuum, arXiv 2511.02230: mean and deviation of turns, tool times and tokens of its programs"
MAX_ROWS = 20_000_000
_LEAST_TOKENS = 32
"""Tokens per turn at least: a program drawn shorter is made so long."""
_ANSWER_SHARE = 0.5
"""Answers together hold at most this share of what a program's context grows by; longer ones are shortened alike."""


class Spread(NamedTuple):
    mean: float
    sd: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """Programs of one kind.

    Args:
        turns: per program.
        gap_s: from the end of a turn to the next one: the tool's time.
        tokens: of a program, its last prompt and answer together.
        answer_tok: output tokens of a turn.
        first_share: of a program's tokens, what its first prompt holds.
        tool: the name of the one tool.
    """

    turns: Spread
    gap_s: Spread
    tokens: Spread
    answer_tok: Spread
    first_share: float
    tool: str


KINDS: Mapping[str, Kind] = {
    "swe-bench": Kind(
        turns=Spread(10.9, 2.1),
        gap_s=Spread(0.925, 3.550),
        tokens=Spread(70_126, 19_732),
        answer_tok=Spread(178, 338),
        first_share=0.1,
        tool="bash",
    ),
    "bfcl": Kind(
        turns=Spread(6.3, 2.3),
        gap_s=Spread(1.923, 2.133),
        tokens=Spread(93_256, 68_687),
        answer_tok=Spread(181, 260),
        first_share=0.05,
        tool="web_search",
    ),
}


class _Rows(NamedTuple):
    """Of all turns, program after program."""

    program: Ints
    turn: Ints
    is_last: np.ndarray
    in_tok: Ints
    out_tok: Ints
    gap_s: Floats


def kind_named(name: str, gap_mean_s: float | None = None, gap_sd_s: float | None = None) -> Kind:
    """A kind, with other gaps where they are given.

    Raises:
        TraceError: there is none of that name.
    """
    if name not in KINDS:
        raise TraceError(f"{name!r} is no kind of program; one of: {', '.join(KINDS)}")
    kind = KINDS[name]
    mean, sd = kind.gap_s
    gap = Spread(mean if gap_mean_s is None else gap_mean_s, sd if gap_sd_s is None else gap_sd_s)
    return replace(kind, gap_s=gap)


def turns_of(kind: Kind, eta: float | None = None) -> Counts:
    """The law of turns: of the published mean, and of the published deviation or ``eta``."""
    return counts(*kind.turns) if eta is None else counts_of_memory(kind.turns.mean, eta)


def synthesize(
    name: str,
    programs: int,
    seed: int = 0,
    *,
    eta: float | None = None,
    gap_mean_s: float | None = None,
    gap_sd_s: float | None = None,
) -> Trace:
    """Programs of a kind, without arrival times: whoever plays them lets them start.

    The same seed gives the same programs; fewer of them are the first ones of more.

    Args:
        name: of ``KINDS``.
        eta: what the turns done tell of the turns left, instead of the published deviation of turns; the mean stays.
        gap_mean_s, gap_sd_s: instead of the published ones.

    Raises:
        TraceError: no such kind, no programs or too many, or figures that no law here has.
    """
    if programs < 1:
        raise TraceError(f"at least one program is needed, got {programs}")
    kind = kind_named(name, gap_mean_s, gap_sd_s)
    law = turns_of(kind, eta)
    if programs * law.mean > MAX_ROWS:
        raise TraceError(f"{programs:,} programs are too many: at most {int(MAX_ROWS / law.mean):,}")
    return finish(Draft(_frame(_rows(kind, law, programs, seed), name, kind), _info(name, kind, law, seed)))


def _rows(kind: Kind, law: Counts, programs: int, seed: int) -> _Rows:
    """Each quantity has a stream of random numbers of its own, so that one more program changes none before it."""
    of_turns, of_gaps, of_tokens, of_answers, of_results = np.random.default_rng(seed).spawn(5)
    turns = law.draw(programs, of_turns)
    owner = np.repeat(np.arange(programs), turns)
    turn = np.arange(owner.size) - (np.cumsum(turns) - turns)[owner]
    is_last = turn == turns[owner] - 1
    drawn = log_normal(*kind.tokens).draw(programs, of_tokens)
    tokens = np.maximum(np.rint(drawn).astype(np.int64), _LEAST_TOKENS * turns)
    first = np.maximum(np.rint(kind.first_share * tokens).astype(np.int64), 1)
    answers = _answers(log_normal(*kind.answer_tok).draw(owner.size, of_answers), owner, tokens - first)
    weights = log_normal(1.0, 1.0).draw(owner.size, of_results)
    left = tokens - first - np.bincount(owner, answers, programs).astype(np.int64)
    results = _shared(np.where(is_last, 0.0, weights), owner, is_last, left)
    # A program of one turn has no result to put the rest into: it is in the prompt.
    first = np.where(turns == 1, first + left, first)
    grown = np.cumsum(answers + results) - (answers + results)
    before = grown - grown[turn == 0][owner]
    gaps = log_normal(*kind.gap_s).draw(owner.size, of_gaps)
    return _Rows(owner, turn, is_last, first[owner] + before, answers, np.where(turn == 0, np.nan, gaps))


def _answers(drawn: Floats, owner: Ints, room: Ints) -> Ints:
    """Whole tokens, at least 1 each, and not more than their share of the room."""
    total = np.bincount(owner, drawn, room.size)
    factor = np.minimum(1.0, _ANSWER_SHARE * room / total)
    return np.asarray(np.maximum(np.floor(drawn * factor[owner]), 1.0), np.int64)


def _shared(weights: Floats, owner: Ints, is_last: np.ndarray, left: Ints) -> Ints:
    """``left`` of each program, shared out by weight: whole tokens, at least 1 each, none for a last turn."""
    num = np.bincount(owner, ~is_last, left.size)
    rest = np.maximum(left - num, 0.0)
    total = np.bincount(owner, weights, left.size)
    reached = np.cumsum(weights) - (np.cumsum(total) - total)[owner]
    share = np.where(is_last, 1.0, np.clip(reached / np.maximum(total, 1e-300)[owner], 0.0, 1.0))
    ends = np.rint(share * rest[owner]).astype(np.int64)
    starts = np.where(np.diff(owner, prepend=-1) != 0, 0, np.roll(ends, 1))
    return np.where(is_last, 0, ends - starts + 1)


def _frame(rows: _Rows, name: str, kind: Kind) -> pl.DataFrame:
    first, last = rows.turn == 0, rows.is_last
    prompt_before = np.where(first, 0, np.roll(rows.in_tok + rows.out_tok, 1))
    tool, text = FINISHES.index("tool"), FINISHES.index("text")
    brought = np.where(first, INPUT_KINDS.index("user"), INPUT_KINDS.index("tool"))
    tools = pl.Series("tool", [kind.tool, None])
    return pl.DataFrame(
        {
            "program_id": f"{name}-" + pl.Series(rows.program).cast(pl.String),
            "turn": pl.Series(rows.turn, dtype=pl.Int32),
            "in_tok": rows.in_tok,
            "out_tok": rows.out_tok,
            "cached_tok": prompt_before,
            "gap_before_s": pl.Series(rows.gap_s).fill_nan(None),
            "finish": _named(FINISHES, np.where(last, text, tool)),
            "input_kind": _named(INPUT_KINDS, brought),
            "tool": tools.gather(last.astype(np.int64)),
        }
    ).with_columns(
        pl.lit("agent").alias("kind"),
        pl.lit("ok", pl.Enum(STATUSES)).alias("status"),
        pl.lit(None, pl.Float64).alias("t_s"),
    )


def _named(names: tuple[str, ...], codes: Ints) -> pl.Series:
    return pl.Series(names, dtype=pl.Enum(names)).gather(codes)


def _info(name: str, kind: Kind, law: Counts, seed: int) -> TraceInfo:
    return TraceInfo(
        source=f"{name}-like programs, seed {seed}",
        format=FORMAT,
        citation=SOURCE,
        notes=(
            f"Synthetic, no recording: {name}-like programs, seed {seed}.",
            f"Turns {law.mean:.4g} +- {law.sd:.4g}, eta {round(law.eta, 2) + 0.0:.2f}; gaps {kind.gap_s.mean:g} +- "
            f"{kind.gap_s.sd:g} s; last prompt and answer {kind.tokens.mean:,.0f} +- {kind.tokens.sd:,.0f} tokens.",
            "Published are mean and deviation of turns, tool times and tokens; laws, answers and growth are choices.",
            "No arrival times. Programs share no prefix; cached_tok is the turn before with its answer.",
        ),
    )
