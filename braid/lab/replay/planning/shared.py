"""What a program's prompts share with the ones before."""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from itertools import chain
from typing import NamedTuple

import numpy as np
import polars as pl

from braid.lab.replay.planning.blocks import REPLY, Blocks, Segments, Sized, source_of, stream_keys
from braid.lab.replay.planning.graph import Flags, Graph, Ints
from braid.lab.table import TraceInfo

_LEAST_BLOCK = 16


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


def several(rows: Rows) -> Ints:
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


class Shared:
    """The programs' turns, one after another, each with what it shares with the turn that it waited for."""

    def __init__(self, rows: Rows, own: Ints) -> None:
        self._factor, self._full = rows.factor, rows.info.input_scope == "full"
        self._in_tok, self._own, self._has_blocks = rows.sized.in_tok.tolist(), own, rows.sized.has_blocks
        self._raw, self._raw_reply = rows.in_tok.tolist(), rows.reply_tok.tolist()
        self._reply = np.where(rows.reply_tok > 0, rows.asked_tok, 0).tolist()
        self._reply_keys = stream_keys(REPLY, source_of(rows.frame))
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
