"""From segments to words: endless streams of word numbers, the same everywhere and for ever.

A stream is SplitMix64 (Steele et al. 2014) from a start that its key and the seed give; word ``i`` depends on nothing
but key, seed and ``i``, so a longer read begins with the shorter one, and any piece can be made alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from braid.lab.replay.planning.plan import ReplayPlan

UInts = NDArray[np.uint64]
Ints = NDArray[np.int64]
Words = NDArray[np.int32]

_STEP = np.uint64(0x9E3779B97F4A7C15)


def mix(values: UInts) -> UInts:
    """A one-to-one scramble of 64 bits: SplitMix64's output function."""
    return _mix_here(values.copy())


def _mix_here(z: UInts) -> UInts:
    """The same in place: prompts are long, and each further array costs."""
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def prompt_words(keys: Sequence[int] | Ints, toks: Sequence[int] | Ints, seed: int, num_words: int) -> Words:
    """The words of a prompt: ``toks[0]`` of stream ``keys[0]``, then ``toks[1]`` of ``keys[1]``, ...

    Returns:
        int32 [sum(toks)], each in [0, num_words).
    """
    if not 0 < num_words <= 1 << 31:
        raise ValueError(f"num_words must be from 1 to 2**31, got {num_words}")
    lengths = np.asarray(toks, np.int64)
    if not lengths.size:
        return np.empty(0, np.int32)
    starts = mix(mix(np.asarray(keys, np.int64).view(np.uint64) + _STEP) ^ _seed(seed))
    # A stream's word i comes from start + (i + 1) steps; here i counts from the prompt's beginning.
    starts -= (np.cumsum(lengths) - lengths).view(np.uint64) * _STEP
    raw = np.arange(1, int(lengths.sum()) + 1, dtype=np.uint64)
    raw *= _STEP
    raw += np.repeat(starts, lengths)
    _mix_here(raw)
    # The upper half times the range, shifted back: every word is as likely, to 2**-32 of num_words.
    raw >>= np.uint64(32)
    raw *= np.uint64(num_words)
    raw >>= np.uint64(32)
    return raw.astype(np.int32)


def words(key: int, num: int, seed: int, num_words: int) -> Words:
    """The first ``num`` words of the stream ``key``: int32 [num], each in [0, num_words)."""
    return prompt_words([key], [num], seed, num_words)


def _seed(seed: int) -> np.uint64:
    return np.uint64(mix(np.array([seed % 2**64], np.uint64) * _STEP)[0])


def planned_hit_rate(plan: ReplayPlan, block_tok: int) -> float:
    """The share of the plan's prompt blocks that a cache without limit would find, 0 to 1.

    A block is ``block_tok`` tokens, a prompt's last one whatever is left; it is found if an earlier prompt began with
    all the same words up to its end. Order plays no part: of equal prefixes all but one are found.
    """
    if block_tok < 1:
        raise ValueError(f"block_tok must be at least 1, got {block_tok}")
    frame = plan.frame
    if not frame.height:
        return 0.0
    counts = frame["segment_toks"].list.len().to_numpy().astype(np.int64)
    toks = frame["segment_toks"].explode().to_numpy()
    keys = frame["segment_keys"].explode().to_numpy()
    row = np.repeat(np.arange(frame.height), counts)
    begun = np.cumsum(toks) - toks
    start = begun - np.repeat(begun[np.cumsum(counts) - counts], counts)
    # Words up to a place are the same if the same streams began at the same places.
    marks = mix(mix(keys.view(np.uint64) + _STEP) + start.view(np.uint64) * _STEP)
    sums = np.cumsum(marks)
    firsts = np.cumsum(counts) - counts
    prefix = sums - np.repeat(sums[firsts] - marks[firsts], counts)
    total = int((-(-frame["in_tok"].to_numpy() // block_tok)).sum())
    return 1 - _distinct(prefix, start, start + toks, row, block_tok) / total


def _distinct(prefix: UInts, start: Ints, end: Ints, row: Ints, block_tok: int) -> int:
    """Different prefixes that end at a block's end.

    Among prompts that share a segment and all before it, the one that reads it furthest has all block ends that any
    of them has inside it, but for ends of last, partial blocks.
    """
    last = np.append(row[1:] != row[:-1], True)
    partial = last & (end % block_tok != 0)
    tails = np.unique(mix(prefix[partial] + end[partial].view(np.uint64) * _STEP)).size
    order = np.argsort(prefix)
    prefix = prefix[order]
    first = np.flatnonzero(np.append(True, prefix[1:] != prefix[:-1]))
    furthest = np.maximum.reduceat(end[order], first)
    whole = furthest // block_tok - start[order][first] // block_tok
    return int(whole.sum()) + tails
