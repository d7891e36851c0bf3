"""Streams by number, and a trace's blocks as pieces of streams."""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

import numpy as np
import polars as pl

from braid.lab.replay.planning.content import mix
from braid.lab.replay.planning.graph import Flags, Floats, Ints
from braid.lab.replay.planning.lengths import scaled
from braid.lab.table import TraceInfo

BLOCK, PROMPT, REPLY = 1, 2, 3


def stream_keys(kind: int, numbers: Ints) -> Ints:
    """Keys of streams: 63 bits, different for different kinds and numbers but for one chance in 2**63."""
    salt = np.uint64(kind << 60)
    return (mix(mix(numbers.astype(np.int64).view(np.uint64)) + salt) >> np.uint64(1)).view(np.int64)


class Segments(NamedTuple):
    """Flat, in order of ``row`` and then of the prompt: ``tok`` words of the stream ``key``."""

    row: Ints
    key: Ints
    tok: Ints


class Blocks(NamedTuple):
    """Args:
    segments: one for each block, those of a row no more than its prompt.
    grain: tokens that a partial block can have.
    scale: what lengths of rows with blocks are really multiplied by: a block has a whole number of tokens.
    """

    segments: Segments
    grain: int
    scale: float


def blocks_of(frame: pl.DataFrame, info: TraceInfo, factor: float) -> Blocks | None:
    """The blocks of a trace's rows; None where there are none, or where their lengths are unknown."""
    ids = frame["block_ids"]
    varying = "block_tokens" in frame.columns
    if ids.null_count() == frame.height or (info.block_size is None and not varying):
        return None
    counts = ids.list.len().fill_null(0).to_numpy().astype(np.int64)
    filled = pl.Series(counts > 0)
    row = np.repeat(np.arange(frame.height), counts)
    flat = ids.filter(filled).explode().to_numpy()
    in_tok = np.maximum(frame["in_tok"].fill_null(0).to_numpy(), 0)
    first = np.cumsum(counts) - counts
    if varying:
        known = frame["block_tokens"].filter(filled).explode().to_numpy().astype(np.float64)
        tok = _shared_out(known, row, in_tok)
        scale, grain = factor, 1
    else:
        size = info.block_size or 1
        tok = np.full(row.size, size)
        scale, grain = int(scaled(np.array([size]), factor, 1)[0]) / size, size
    start = np.cumsum(tok) - tok
    start -= np.repeat(start[np.minimum(first, max(row.size - 1, 0))], counts) if row.size else 0
    tok = np.clip(in_tok[row] - start, 0, tok)
    known_as = _scoped(frame, row, flat) if info.hash_scope == "program" else flat.astype(np.int64)
    key = stream_keys(BLOCK, known_as)
    there = tok > 0
    return Blocks(Segments(row[there], key[there], tok[there]), grain, scale)


def _shared_out(known: Floats, row: Ints, in_tok: Ints) -> Ints:
    """Lengths of blocks; those without one share evenly what the others leave of the prompt."""
    missing = np.isnan(known)
    if not missing.any():
        return known.astype(np.int64)
    rows = in_tok.size
    left = np.maximum(in_tok - np.bincount(row, np.where(missing, 0, known), rows), 0)
    each = left // np.maximum(np.bincount(row, missing, rows), 1)
    return np.where(missing, each[row], known).astype(np.int64)


def _scoped(frame: pl.DataFrame, row: Ints, ids: Ints) -> Ints:
    """Ids that are only equal within a program; a row without one shares with nobody."""
    names = frame["program_id"].unique(maintain_order=True).drop_nulls()
    hashes = [
        int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)
        for name in names
    ]
    table = pl.DataFrame({"program_id": names, "scope": pl.Series(hashes, dtype=pl.Int64)})
    scope = frame.select("program_id").join(table, on="program_id", how="left", maintain_order="left")[
        "scope"
    ]
    alone = stream_keys(PROMPT, source_of(frame))
    spaces = np.where(scope.is_null().to_numpy(), alone, scope.fill_null(0).to_numpy())
    return (mix(spaces[row].view(np.uint64)) ^ ids.astype(np.int64).view(np.uint64)).view(np.int64)


def source_of(frame: pl.DataFrame) -> Ints:
    """Row numbers of the trace."""
    return frame["source_row"].to_numpy().astype(np.int64)


class Sized(NamedTuple):
    """Prompts, scaled; arrays over rows.

    Args:
        in_tok: 0 where there is no prompt.
        rest_tok: of it, behind the blocks.
        has_blocks: rows that have some.
        blocks: None for none at all; their lengths are not scaled.
    """

    in_tok: Ints
    rest_tok: Ints
    has_blocks: Flags
    blocks: Blocks | None


def sized(frame: pl.DataFrame, info: TraceInfo, in_tok: Ints, factor: float) -> Sized:
    """Prompt lengths times ``factor``. Blocks keep a whole number of tokens, at least 1."""
    plain = np.where(in_tok > 0, scaled(in_tok, factor, 1), 0)
    blocks = blocks_of(frame, info, factor)
    if blocks is None:
        return Sized(plain, plain, np.zeros(in_tok.size, bool), None)
    segments, num = blocks.segments, in_tok.size
    has_blocks = np.zeros(num, bool)
    has_blocks[segments.row] = True
    covered = np.bincount(segments.row, segments.tok, num).astype(np.int64)
    rest = np.where(has_blocks, scaled(in_tok - covered, blocks.scale), plain)
    in_blocks = np.bincount(segments.row, scaled(segments.tok, blocks.scale, 1), num).astype(np.int64)
    return Sized(rest + in_blocks, rest, has_blocks, blocks)
