"""Programs: how many turns, how long between them, how the prompt grows, and how much of it was seen before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from braid.lab.arrays import QUANTILES, Floats, column, first_of_runs, floats, ints, rounded

MOST_TURNS = 60
CURVE_POINTS = 160
LONG_GAP_S = 600.0
GRAINS = (1, 2, 4, 8, 16)
GROWS, RESTARTS, MIXED = "grows", "does not grow", "mixed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Turns:
    """Turns per program.

    Args:
        counts: programs with 1, 2, ... turns; the last number holds all with more. Shape ``(MOST_TURNS + 1,)`` or less.
        geometric_p: maximum likelihood of ``P(n) = p (1 - p) ** (n - 1)``, with its standard error.
        geometric_ks: largest distance of the two distribution functions.
        survival: pairs (turns, share of programs with at least that many).
    """

    num_programs: int
    mean: float
    quantiles: Floats
    max: int
    single_share: float
    counts: tuple[int, ...]
    geometric_p: float
    geometric_p_stderr: float
    geometric_ks: float
    survival: tuple[Floats, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Gaps:
    """From a turn's end to the next turn of its program, in seconds. Negative ones are calls that overlap.

    ``curve`` holds pairs (gap, share of the gaps at most that long) over the positive ones; ``long_time_share`` is the
    share of the time in gaps that gaps over ``LONG_GAP_S`` hold.
    """

    num: int
    mean_s: float
    quantiles_s: Floats
    max_s: float
    overlap_share: float
    zero_share: float
    long_share: float
    long_time_share: float
    curve: tuple[Floats, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Growth:
    """The prompt through a program.

    Args:
        pairs: turns that follow another of the same program, both with known lengths.
        keeps_share: of those, prompts at least as long as the previous prompt and its answer together.
        longer_share: prompts longer than the previous prompt.
        verdict: ``grows`` (keeps_share over 0.8), ``does not grow`` (under 0.2) or ``mixed``.
        added_quantiles: this prompt less the previous one, in tokens, at ``arrays.QUANTILES``.
        by_turn: rows (turn from 1, programs, p25, p50, p75 of the prompt).
    """

    pairs: int
    keeps_share: float | None
    longer_share: float | None
    verdict: str
    added_quantiles: Floats
    by_turn: tuple[Floats, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reuse:
    """One block size: what a cache without limit would hold when each prompt arrives.

    ``block_hit_rate`` counts the trace's blocks, partial last ones too; ``token_hit_rate`` counts tokens. At a coarser
    grain only whole coarse blocks can be hit, so there ``block_hit_rate`` is of whole coarse blocks.
    """

    block_size: int
    num_blocks: int
    block_hit_rate: float
    token_hit_rate: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Sharing:
    """Prefixes seen before.

    Args:
        source: ``block ids`` or ``cached tokens``, what the trace tells it by.
        reuse: by block size, the trace's own first; empty where the trace has no block ids.
        cached_share: prompt tokens that the source says an ideal cache would hold.
        new_quantiles: tokens of a prompt not seen before, at ``arrays.QUANTILES``, turns after the first where the
            trace has programs.
        hit_quantiles: share of each prompt seen before, at ``arrays.QUANTILES``.
    """

    source: str
    reuse: tuple[Reuse, ...]
    cached_share: float | None
    new_quantiles: Floats
    hit_quantiles: Floats


def turns(frame: pl.DataFrame) -> Turns | None:
    """Turns per program; None where the trace names no programs."""
    sizes = frame.select(pl.col("program_id").drop_nulls().value_counts()).unnest("program_id")
    if not sizes.height:
        return None
    lengths = np.sort(sizes["count"].to_numpy().astype(np.int64))
    mean, top = float(lengths.mean()), int(lengths[-1])
    p = 1 / mean
    counts = np.bincount(lengths.clip(max=MOST_TURNS + 1), minlength=2)[1:]
    at = np.unique(np.geomspace(1, top, CURVE_POINTS).round())
    at_least = 1 - np.searchsorted(lengths, at, side="left") / lengths.size
    every = np.unique(lengths)
    data = np.searchsorted(lengths, every, side="right") / lengths.size
    before = np.searchsorted(lengths, every, side="left") / lengths.size
    ks = max(np.abs(data - 1 + (1 - p) ** every).max(), np.abs(before - 1 + (1 - p) ** (every - 1)).max())
    return Turns(
        num_programs=lengths.size,
        mean=mean,
        quantiles=floats(np.quantile(lengths, QUANTILES)),
        max=top,
        single_share=float((lengths == 1).mean()),
        counts=ints(counts),
        geometric_p=p,
        geometric_p_stderr=float(p * np.sqrt((1 - p) / lengths.size)),
        geometric_ks=float(ks),
        survival=tuple(floats(pair) for pair in zip(at, at_least, strict=True)),
    )


def gaps(frame: pl.DataFrame) -> Gaps | None:
    """Gaps between turns, where the trace has them."""
    values = frame["gap_before_s"].drop_nulls().to_numpy()
    if not values.size:
        return None
    ordered = np.sort(values)
    positive = ordered[ordered > 0]
    at = np.unique(np.geomspace(positive[0], positive[-1], CURVE_POINTS)) if positive.size else positive
    share = np.searchsorted(ordered, at, side="right") / ordered.size
    held = float(positive.sum()) or 1.0
    return Gaps(
        num=values.size,
        mean_s=float(values.mean()),
        quantiles_s=floats(np.quantile(ordered, QUANTILES)),
        max_s=float(ordered[-1]),
        overlap_share=float((values < 0).mean()),
        zero_share=float((values == 0).mean()),
        long_share=float((values > LONG_GAP_S).mean()),
        long_time_share=float(values[values > LONG_GAP_S].sum() / held),
        curve=tuple(floats(pair) for pair in zip(at, share, strict=True)),
    )


def growth(frame: pl.DataFrame) -> Growth | None:
    """How prompts grow within programs; None where no program has two turns with known prompts."""
    known = pl.col("program_id").is_not_null() & (pl.col("in_tok") > 0)
    rows = (
        frame.select("program_id", "turn", "in_tok", "out_tok")
        .filter(known)
        .with_columns(pl.col("program_id").cast(pl.Categorical).to_physical(), pl.col("out_tok").fill_null(0))
        .sort("program_id", "turn", maintain_order=True)
    )
    program, prompt, answer = (rows[name].to_numpy() for name in ("program_id", "in_tok", "out_tok"))
    follows = program[1:] == program[:-1]
    if not follows.any():
        return None
    added = (prompt[1:] - prompt[:-1])[follows]
    keeps = (added >= answer[:-1][follows]).mean()
    return Growth(
        pairs=added.size,
        keeps_share=rounded(keeps),
        longer_share=rounded((added > 0).mean()),
        verdict=GROWS if keeps > 0.8 else RESTARTS if keeps < 0.2 else MIXED,
        added_quantiles=floats(np.quantile(added, QUANTILES)),
        by_turn=tuple(_by_turn(program, prompt)),
    )


def _by_turn(program: np.ndarray, prompt: np.ndarray) -> Iterator[Floats]:
    """Rows of ``Growth.by_turn``; the rows of a program are neighbours, in order of its turns."""
    first = first_of_runs(program)
    turn = np.arange(program.size) - np.repeat(first, np.diff(first, append=program.size))
    early = np.flatnonzero(turn < MOST_TURNS)
    order = early[np.argsort(turn[early].astype(np.int8), kind="stable")]
    bounds = np.cumsum(np.bincount(turn[early]))
    for at, prompts in enumerate(np.split(prompt[order], bounds[:-1]), 1):
        yield floats((at, prompts.size, *np.quantile(prompts, (0.25, 0.5, 0.75))))


def sharing(frame: pl.DataFrame, block_size: int | None, hash_scope: str) -> Sharing | None:
    """Reuse of prefixes, from block ids where there are any, else from what the source says was cached."""
    inputs = column(frame, "in_tok")
    if block_size and frame["block_ids"].null_count() < frame.height:
        cached, reuse = block_reuse(frame, block_size, hash_scope)
        source = "block ids"
    elif frame["cached_tok"].null_count() < frame.height:
        cached, reuse, source = column(frame, "cached_tok"), (), "cached tokens"
    else:
        return None
    known = np.isfinite(cached) & (inputs > 0)
    later = known & ~(column(frame, "turn") == 0)
    return Sharing(
        source=source,
        reuse=reuse,
        cached_share=rounded(cached[known].sum() / inputs[known].sum()),
        new_quantiles=floats(np.quantile((inputs - cached)[later], QUANTILES)) if later.any() else (),
        hit_quantiles=floats(np.quantile((cached / inputs)[known], QUANTILES)),
    )


def block_reuse(
    frame: pl.DataFrame, block_size: int, hash_scope: str = "global"
) -> tuple[np.ndarray, tuple[Reuse, ...]]:
    """Replay the prompts, in order, against a cache that forgets nothing.

    A block is hit when an earlier request had the same blocks from the start up to and with it. Requests see the
    blocks of all before them, finished or not.

    Returns:
        tokens hit per row (NaN without block ids), and the rates at ``GRAINS`` multiples of ``block_size``.
    """
    ids = frame["block_ids"]
    lengths = ids.list.len().fill_null(0).to_numpy().astype(np.int64)
    row = np.repeat(np.arange(frame.height), lengths)
    starts = np.cumsum(lengths) - lengths
    position = np.arange(row.size) - starts[row]
    blocks = ids.filter(pl.Series(lengths > 0)).explode().to_numpy()
    prefix = prefix_prints(blocks, position, row, starts, _scope(frame, hash_scope))
    inputs = np.nan_to_num(column(frame, "in_tok"), nan=0.0)
    inputs = np.where(inputs > 0, inputs, lengths * block_size)
    hits = [_hits(prefix, position, row, frame.height, grain) for grain in GRAINS]
    tokens = [np.minimum(hit * block_size * grain, inputs) for hit, grain in zip(hits, GRAINS, strict=True)]
    reuse = tuple(
        Reuse(
            block_size=block_size * grain,
            num_blocks=int((lengths // grain).sum()),
            block_hit_rate=float(hit.sum() / max((lengths // grain).sum(), 1)),
            token_hit_rate=float(held[lengths > 0].sum() / inputs[lengths > 0].sum()),
        )
        for hit, held, grain in zip(hits, tokens, GRAINS, strict=True)
    )
    return np.where(lengths > 0, tokens[0], np.nan), reuse


def prefix_prints(
    blocks: np.ndarray, position: np.ndarray, row: np.ndarray, starts: np.ndarray, scope: np.ndarray
) -> np.ndarray:
    """A 64-bit fingerprint of each block with all before it in its row, and of the row's scope.

    Sums modulo 2**64 of mixed (id, position): a running sum needs no loop over depth, and two prefixes of the 10^8
    that a trace may hold collide with a chance of 10^-3 or less.
    """
    mixed = _mix(blocks.astype(np.uint64) ^ _mix(position.astype(np.uint64) + np.uint64(1)))
    total = np.cumsum(mixed, dtype=np.uint64)
    first = np.concatenate((np.zeros(1, np.uint64), total))[starts]
    return np.asarray(_mix((total - first[row]) ^ scope[row]))


def _mix(words: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit of the input reaches every bit."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(words ^ (words >> np.uint64(31)))


def _scope(frame: pl.DataFrame, hash_scope: str) -> np.ndarray:
    if hash_scope == "global":
        return np.zeros(frame.height, np.uint64)
    codes = frame["program_id"].fill_null("").rank("dense").to_numpy()
    return np.asarray(_mix(codes.astype(np.uint64)))


def _hits(prefix: np.ndarray, position: np.ndarray, row: np.ndarray, rows: int, grain: int) -> np.ndarray:
    """Blocks of ``grain`` source blocks hit per row: those whose prefix an earlier row had."""
    ends = position % grain == grain - 1
    owner = row[ends]
    _, first, inverse = np.unique(prefix[ends], return_index=True, return_inverse=True)
    return np.bincount(owner[owner > owner[first][inverse]], minlength=rows)
