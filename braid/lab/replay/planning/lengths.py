"""How many tokens each request of a plan has: what is not said is drawn, what cannot be sent is listed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from braid.lab.table import TraceError

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

ZERO_INPUT, TOO_LONG, FAILED_SKIPPED = "zero_input", "too_long", "failed_skipped"
_NEIGHBOURS = 64
_LIKE = 1.25
NEVER = -1


class Lengths(NamedTuple):
    """Arrays over rows, as in the trace, not yet scaled.

    Args:
        in_tok: 0 where it is zero or unknown.
        out_tok: to ask for, at least 1.
        cancel_after_tok: ``NEVER`` for never.
        reply_tok: of the answer that later turns can hold: 0 for a request that failed or was cancelled.
        gone: requests that are not sent, by reason.
        notes: what was put in place of the trace's own numbers.
    """

    in_tok: Ints
    out_tok: Ints
    cancel_after_tok: Ints
    reply_tok: Ints
    gone: Mapping[str, Flags]
    notes: tuple[str, ...]


def lengths_of(rows: pl.DataFrame, trace: pl.DataFrame, failed: str, rng: np.random.Generator) -> Lengths:
    """Lengths of ``rows``, some of ``trace``'s, from all of which missing output lengths are drawn.

    Raises:
        TraceError: output lengths are missing, and no request of the trace says its own.
    """
    in_tok = np.maximum(rows["in_tok"].fill_null(0).to_numpy(), 0)
    recorded = rows["out_tok"].fill_null(0).to_numpy()
    unknown = rows["out_tok"].is_null().to_numpy()
    is_failed = (rows["status"] == "failed").fill_null(False).to_numpy()
    is_cancelled = (rows["status"] == "cancelled").fill_null(False).to_numpy()
    unanswered = is_failed | is_cancelled
    sent = in_tok > 0
    skipped = sent & is_failed if failed == "skip" else np.zeros(rows.height, bool)
    out_tok = np.maximum(recorded, 1)
    wanted = sent & ~skipped & (unknown | unanswered)
    if wanted.any():
        out_tok[wanted] = drawn_outputs(trace, rows.filter(pl.Series(wanted)), rng)
    # What was cancelled had more to come.
    out_tok = np.where(is_cancelled, np.maximum(out_tok, recorded + 1), out_tok)
    cancel = np.where(is_cancelled, recorded, NEVER)
    if failed == "cancel":
        cancel = np.where(is_failed, 0, cancel)
    gone = {ZERO_INPUT: ~sent, FAILED_SKIPPED: skipped}
    empty = sent & ~unknown & (recorded < 1) & ~unanswered
    notes = _notes(sent & is_failed, sent & is_cancelled, sent & unknown & ~unanswered, empty, failed)
    return Lengths(in_tok, out_tok, cancel, np.where(unanswered, 0, out_tok), gone, notes)


def _notes(failed: Flags, cancelled: Flags, unknown: Flags, empty: Flags, how: str) -> tuple[str, ...]:
    drawn = "an output length drawn from answered requests with prompts of like length"
    failed_are = {
        "send": f"sent like the others, with {drawn}.",
        "cancel": "sent and cancelled as soon as an answer begins.",
    }
    said = [
        (cancelled, f"were cancelled in the trace: so they are, after as many tokens; they ask for {drawn}."),
        (unknown, f"do not say how long their answer was: they get {drawn}."),
        (empty, "were answered without a token: they ask for 1."),
    ]
    if how in failed_are:
        said.insert(0, (failed, f"failed in the trace: they are {failed_are[how]}"))
    return tuple(f"{int(mask.sum()):,} requests {text}" for mask, text in said if mask.any())


def drawn_outputs(trace: pl.DataFrame, asked: pl.DataFrame, rng: np.random.Generator) -> Ints:
    """For each of ``asked`` the output length of a random answered request with a prompt of like length (within 25 %,
    and where these are few the nearest ones too), of the same model and kind where these were answered often enough.

    Raises:
        TraceError: nothing was answered.
    """
    was_answered = (
        pl.col("status").is_in(["ok", "unknown"]) & (pl.col("in_tok") > 0) & (pl.col("out_tok") > 0)
    )
    answered = trace.filter(was_answered).select("model", "kind", "in_tok", "out_tok")
    if not answered.height:
        raise TraceError("output lengths are missing, and no answered request says its own to draw them from")
    pools = answered.partition_by("model", "kind", as_dict=True)
    everything: _Pool | None = None
    found = np.empty(asked.height, np.int64)
    places = asked.select("model", "kind", "in_tok").with_row_index("at")
    for key, part in places.partition_by("model", "kind", as_dict=True, maintain_order=True).items():
        own = pools.get(key)
        if own is not None and own.height >= _NEIGHBOURS:
            pool = _Pool(own)
        else:
            pool = everything = everything or _Pool(answered)
        found[part["at"].to_numpy()] = pool.draw(part["in_tok"].to_numpy(), rng)
    return found


class _Pool:
    """Answered requests by length of prompt."""

    def __init__(self, answered: pl.DataFrame) -> None:
        in_tok, out_tok = answered["in_tok"].to_numpy(), answered["out_tok"].to_numpy()
        order = np.argsort(in_tok, kind="stable")
        self._in_tok, self._out_tok = in_tok[order], out_tok[order]

    def draw(self, in_tok: Ints, rng: np.random.Generator) -> Ints:
        low = np.searchsorted(self._in_tok, in_tok / _LIKE, "left")
        high = np.searchsorted(self._in_tok, in_tok * _LIKE, "right")
        more = np.where(high - low < _NEIGHBOURS, _NEIGHBOURS // 2, 0)
        low, high = np.maximum(low - more, 0), np.minimum(high + more, self._in_tok.size)
        return np.asarray(self._out_tok[rng.integers(low, high)])


def scaled(tokens: Ints, factor: float, least: int = 0) -> Ints:
    """``tokens`` times ``factor``, rounded, not below ``least``."""
    return np.asarray(np.maximum(np.floor(tokens * factor + 0.5).astype(np.int64), least))


class Fitted(NamedTuple):
    """Args:
    in_tok: prompts cut to the context where asked.
    too_long: requests that do not fit.
    cut: prompts that were cut.
    """

    in_tok: Ints
    too_long: Flags
    cut: Flags


def fitted(in_tok: Ints, out_tok: Ints, max_tokens: int | None, cut: bool) -> Fitted:
    """Requests in a context of ``max_tokens``; an answer is never cut, so one that fills the context does not fit."""
    none = np.zeros(in_tok.size, bool)
    if max_tokens is None:
        return Fitted(in_tok, none, none)
    over = in_tok + out_tok > max_tokens
    if not cut:
        return Fitted(in_tok, over, none)
    room = max_tokens - out_tok
    too_long = over & (room < 1)
    shortened = over & ~too_long
    return Fitted(np.where(shortened, room, in_tok), too_long, shortened)
