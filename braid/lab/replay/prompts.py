"""Which streams each prompt is made of, so that what the trace's prompts share is shared.

Block ids: one segment for each block; tokens beyond the last block are a stream of their own, or, where the program's
next prompt goes on with a further block, that block's first words.

Without them, a turn's prompt begins with the prompt of the turn that it waited for:
- all of it, where the source's count of shared (``lcp_prev_tok``) or cached tokens (``cached_tok``) covers it but for a
  partial block, or where, without a count, prompts are known to hold earlier turns and this one did not shrink; then
  that turn's answer too, as a stream of its own, where the prompt is long enough for both;
- as many tokens as the count says, where it says less;
- nothing, where prompts are not known to hold earlier turns, or shrank.
The rest is new. A sub-agent's first prompt begins like its group's very first one for as many tokens as ``cached_tok``
says. All other prompts are streams of their own.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from braid.lab.replay.content import mix
from braid.lab.replay.graph import Graph
from braid.lab.replay.lengths import scaled
from braid.lab.table import TraceInfo

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

_BLOCK, _PROMPT, _REPLY = 1, 2, 3
_LEAST_BLOCK = 16


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
    key = stream_keys(
        _BLOCK, flat.astype(np.int64) if info.hash_scope != "program" else _scoped(frame, row, flat)
    )
    there = tok > 0
    return Blocks(Segments(row[there], key[there], tok[there]), grain, scale)


def _shared_out(known: NDArray[np.float64], row: Ints, in_tok: Ints) -> Ints:
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
    alone = stream_keys(_PROMPT, _source(frame))
    spaces = np.where(scope.is_null().to_numpy(), alone, scope.fill_null(0).to_numpy())
    return (mix(spaces[row].view(np.uint64)) ^ ids.astype(np.int64).view(np.uint64)).view(np.int64)


def _source(frame: pl.DataFrame) -> Ints:
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


class Prompts(NamedTuple):
    """Args:
    segments: of every row that has a prompt; a row's sum to its ``Sized.in_tok``.
    held_of: the row whose whole prompt and answer each prompt begins with, the program's last one that is sent; -1
        for none.
    """

    segments: Segments
    held_of: Ints


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """What prompts are made from; arrays over rows.

    Args:
        frame: the rows, with ``source_row``.
        info: of the trace.
        graph: before anything is left out.
        in_tok, reply_tok: as in the trace (0 for none).
        asked_tok: of the answers, scaled.
        sized: the prompts, scaled.
        kept: rows that will be sent.
        factor: of all lengths.
    """

    frame: pl.DataFrame
    info: TraceInfo
    graph: Graph
    in_tok: Ints
    reply_tok: Ints
    asked_tok: Ints
    sized: Sized
    kept: Flags
    factor: float


def prompts_of(rows: Rows) -> Prompts:
    """Segments of all prompts."""
    blocks, rest = rows.sized.blocks, rows.sized.rest_tok.copy()
    own, held_of = stream_keys(_PROMPT, _source(rows.frame)), np.full(rest.size, -1)
    parts = []
    if blocks is not None:
        tok = scaled(blocks.segments.tok, blocks.scale, 1)
        parts.append(Segments(blocks.segments.row, blocks.segments.key, tok))
    order = _several(rows)
    if order.size:
        woven = _Woven(rows, own)
        woven.run(order)
        written, held_of = woven.segments(), woven.held_of
        rest[written.row] = 0
        parts.append(written)
    fresh = np.flatnonzero(rest > 0)
    parts.append(Segments(fresh, own[fresh], rest[fresh]))
    return Prompts(_joined(parts), held_of)


def _several(rows: Rows) -> Ints:
    """Rows of programs with several requests, where anything can be said of what they share."""
    counted = {"lcp_prev_tok", "cached_tok"} & set(rows.frame.columns)
    said = any(rows.frame[name].null_count() < rows.frame.height for name in counted)
    known = said or rows.sized.blocks is not None or rows.info.input_scope == "full"
    if not known or not rows.graph.waiter.size:
        return np.empty(0, np.int64)
    graph = rows.graph
    busy = np.zeros(rows.frame.height, bool)
    busy[graph.group[graph.waiter]] = True
    found = np.flatnonzero(busy[graph.group])
    return found[np.argsort(graph.rank[found])]


def _joined(parts: list[Segments]) -> Segments:
    if len(parts) == 1:
        return parts[0]
    row, key, tok = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(row, kind="stable")
    return Segments(row[order], key[order], tok[order])


def cut(segments: Segments, in_tok: Ints) -> Segments:
    """Prompts shortened at their end to ``in_tok`` tokens, by row; shared beginnings stay shared."""
    start = np.cumsum(segments.tok) - segments.tok
    first = np.append(True, segments.row[1:] != segments.row[:-1])[: start.size]
    start -= np.repeat(start[first], np.diff(np.append(np.flatnonzero(first), start.size)))
    tok = np.clip(in_tok[segments.row] - start, 0, segments.tok)
    there = tok > 0
    return Segments(segments.row[there], segments.key[there], tok[there])


class _Text(NamedTuple):
    """A prompt: streams, and where each ends in it."""

    keys: list[int]
    ends: list[int]

    def head(self, num: int) -> _Text:
        """Its first ``num`` tokens."""
        whole = bisect.bisect_left(self.ends, num)
        if not num or whole == len(self.ends):
            return _Text(self.keys[:whole], self.ends[:whole])
        return _Text(self.keys[: whole + 1], [*self.ends[:whole], num])

    def then(self, key: int, end: int) -> _Text:
        """With ``key`` up to ``end``."""
        if end <= (self.ends[-1] if self.ends else 0):
            return self
        return _Text([*self.keys, key], [*self.ends, end])


class _Woven:
    """The programs' turns, one after another, each with what it shares with the turn that it waited for."""

    def __init__(self, rows: Rows, own: Ints) -> None:
        self._factor, self._full = rows.factor, rows.info.input_scope == "full"
        self._in_tok, self._own, self._has_blocks = rows.sized.in_tok.tolist(), own, rows.sized.has_blocks
        self._raw, self._raw_reply = rows.in_tok.tolist(), rows.reply_tok.tolist()
        self._reply = np.where(rows.reply_tok > 0, rows.asked_tok, 0).tolist()
        self._reply_keys = stream_keys(_REPLY, _source(rows.frame))
        counts, cached = _counts(rows.frame)
        self._counts, self._cached, self._grain = counts.to_list(), cached.to_list(), _grain(counts)
        self._programs = rows.frame["program_id"].to_list()
        self._blocks, self._kept = _BlockRows(rows.sized.blocks, own.size), rows.kept
        self._source, self._group = _sources(rows), rows.graph.group
        self._texts: dict[int, _Text] = {}
        self._first: dict[int, int] = {}
        self._owner: dict[int, int] = {}
        self._last: dict[str, int] = {}
        self.held_of = np.full(own.size, -1)

    def run(self, order: Ints) -> None:
        """``order``: rows of programs with several requests, none before what it waits for."""
        for row in order.tolist():
            if not self._raw[row]:
                continue
            before = int(self._source[row])
            while before >= 0 and not self._raw[before]:
                before = int(self._source[before])
            shared, answer = self._shared(row, before) if before >= 0 else (0, False)
            if before >= 0:
                self._hold(row, before, shared, answer)
            if self._kept[row]:
                self._last[self._programs[row]] = row
            if self._has_blocks[row]:
                if before >= 0:
                    self._continue_tail(row, before)
            else:
                self._texts[row] = self._text(row, before, shared, answer)
            self._first.setdefault(int(self._group[row]), row)

    def _shared(self, row: int, before: int) -> tuple[int, bool]:
        """Tokens (as in the trace) of the earlier prompt, and whether its answer follows them."""
        prompt, mine = self._raw[before], self._raw[row]
        count, grain = self._counts[row], self._grain
        if self._has_blocks[row] and self._has_blocks[before]:
            count, grain = self._blocks.common_tok(row, before), self._blocks.grain
        if count is None:
            covered, count = self._full, 0
        else:
            covered = count > 0 and prompt < count + grain
        if covered and mine >= prompt:
            return prompt, mine >= prompt + self._raw_reply[before]
        return min(count, prompt, mine), False

    def _hold(self, row: int, before: int, shared: int, answer: bool) -> None:
        """Whether the prompt begins with all of the last sent turn's prompt and answer."""
        if self._kept[before]:
            owner = before if answer and self._raw_reply[before] else -1
        else:
            owner = self._owner.get(before, -1)
            if owner >= 0 and shared < self._raw[owner] + self._raw_reply[owner]:
                owner = -1
        self._owner[row] = owner
        if owner >= 0 and self._last.get(self._programs[row]) == owner:
            self.held_of[row] = owner

    def _text(self, row: int, before: int, shared: int, answer: bool) -> _Text:
        mine, earlier = self._in_tok[row], self._texts.get(before)
        if earlier is None:
            text = self._as_parent(row) if before < 0 else _Text([], [])
        elif shared == self._raw[before]:
            text = earlier.head(min(self._in_tok[before], mine))
            if answer:
                end = min(self._in_tok[before] + self._reply[before], mine)
                text = text.then(int(self._reply_keys[before]), end)
        else:
            text = earlier.head(min(self._scaled(shared), self._in_tok[before], mine))
        return text.then(int(self._own[row]), mine)

    def _as_parent(self, row: int) -> _Text:
        first, cached = self._first.get(int(self._group[row])), self._cached[row]
        if (
            first is None
            or not cached
            or first not in self._texts
            or self._programs[first] == self._programs[row]
        ):
            return _Text([], [])
        return self._texts[first].head(min(self._scaled(cached), self._in_tok[first], self._in_tok[row]))

    def _scaled(self, tokens: int) -> int:
        return int(tokens * self._factor + 0.5)

    def _continue_tail(self, row: int, before: int) -> None:
        """What was behind the earlier prompt's last whole block begins this one's next block."""
        if self._has_blocks[before] and (key := self._blocks.following(row, before)) is not None:
            self._own[before] = key

    def segments(self) -> Segments:
        rows = np.array(list(self._texts), np.int64)
        texts = list(self._texts.values())
        counts = np.array([len(text.keys) for text in texts], np.int64)
        flat = chain.from_iterable
        key = np.fromiter(flat(text.keys for text in texts), np.int64, int(counts.sum()))
        end = np.fromiter(flat(text.ends for text in texts), np.int64, int(counts.sum()))
        tok = np.diff(end, prepend=0)
        first = np.cumsum(counts) - counts
        tok[first] = end[first]
        return Segments(np.repeat(rows, counts), key, tok)


def _counts(frame: pl.DataFrame) -> tuple[pl.Series, pl.Series]:
    """Tokens shared with the turn before, and cached tokens, where the source says."""
    cached = frame["cached_tok"]
    if "lcp_prev_tok" not in frame.columns:
        return cached, cached
    return frame.select(pl.coalesce("lcp_prev_tok", "cached_tok")).to_series(), cached


def _grain(counts: pl.Series) -> int:
    """Tokens of the blocks that a source counts in; 1 where it counts tokens."""
    said = counts.drop_nulls().to_numpy()
    grain = int(np.gcd.reduce(said)) if said.size else 1
    return grain if grain >= _LEAST_BLOCK else 1


def _sources(rows: Rows) -> Ints:
    """The last of the program's own requests that each waited for; -1 for none."""
    graph, names = rows.graph, rows.frame["program_id"]
    source = np.full(rows.frame.height, -1)
    own = (names.gather(graph.waiter) == names.gather(graph.awaited)).to_numpy()
    source[graph.waiter[own]] = graph.awaited[own]
    return source


class _BlockRows:
    """Blocks by row."""

    def __init__(self, blocks: Blocks | None, num_rows: int) -> None:
        none = np.empty(0, np.int64)
        segments = blocks.segments if blocks else Segments(none, none, none)
        self._key, self._tok = segments.key, segments.tok
        self._at = np.searchsorted(segments.row, np.arange(num_rows + 1))
        self.grain = blocks.grain if blocks else 1

    def _common(self, row: int, before: int) -> int:
        mine = self._key[self._at[row] : self._at[row + 1]]
        other = self._key[self._at[before] : self._at[before + 1]]
        num = min(mine.size, other.size)
        differ = np.flatnonzero(mine[:num] != other[:num])
        return int(differ[0]) if differ.size else num

    def common_tok(self, row: int, before: int) -> int:
        """Tokens of the blocks that both prompts begin with."""
        at = int(self._at[before])
        return int(self._tok[at : at + self._common(row, before)].sum())

    def following(self, row: int, before: int) -> int | None:
        """The block behind the earlier prompt's last one, where the prompt goes on with it."""
        num = int(self._at[before + 1] - self._at[before])
        if self._common(row, before) < num or self._at[row] + num >= self._at[row + 1]:
            return None
        return int(self._key[self._at[row] + num])
