"""What is settled before requests are numbered: which are sent, with how many tokens of what, and after which."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from braid.lab.replay.planning import notes as say
from braid.lab.replay.planning.blocks import Segments, sized
from braid.lab.replay.planning.graph import Flags, Graph, Ints
from braid.lab.replay.planning.lengths import NEVER, TOO_LONG, fitted, lengths_of, scaled
from braid.lab.replay.planning.prompts import cut, prompts_of
from braid.lab.replay.planning.rewire import capped, without
from braid.lab.replay.planning.shared import Rows
from braid.lab.table import Trace, TraceError

if TYPE_CHECKING:
    from braid.lab.replay.planning.plan import PlanOptions


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """Arrays over ``rows``, those of the chosen groups.

    Args:
        graph: of those that are sent.
        kept: those that are sent.
        in_tok, out_tok, cancel_after_tok: scaled and cut.
        segments: of the rows that are sent.
        gone: rows of the trace, by reason.
        notes: what differs from the trace.
    """

    rows: pl.DataFrame
    graph: Graph
    kept: Flags
    in_tok: Ints
    out_tok: Ints
    cancel_after_tok: Ints
    shared_tok: Ints
    segments: Segments
    gone: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]


def settled(trace: Trace, options: PlanOptions, rows: pl.DataFrame, graph: Graph) -> Settled:
    """Everything about ``rows`` of a trace but when their groups start.

    Raises:
        TraceError: nothing can be sent, or output lengths are unknown throughout.
    """
    lengths = lengths_of(rows, trace.frame, options.failed, chance(options, "lengths"))
    factor = options.length_factor
    size = sized(rows, trace.info, lengths.in_tok, factor)
    out_tok = scaled(lengths.out_tok, factor, 1)
    cancel = np.where(lengths.cancel_after_tok < 0, NEVER, scaled(lengths.cancel_after_tok, factor))
    # What is cancelled has more to come, whatever the factor makes of it.
    out_tok = np.maximum(out_tok, cancel + 1)
    fit = fitted(size.in_tok, out_tok, options.max_tokens, options.too_long == "cut")
    reasons = {**lengths.gone, TOO_LONG: fit.too_long}
    gone, kept = _reasons(reasons, rows)
    if not kept.any():
        told = ", ".join(f"{len(places):,} {reason}" for reason, places in gone.items())
        raise TraceError(f"no request of this trace can be sent: {told}")
    prompts = prompts_of(
        Rows(
            frame=rows,
            info=trace.info,
            graph=graph,
            in_tok=lengths.in_tok,
            reply_tok=lengths.reply_tok,
            asked_tok=out_tok,
            sized=size,
            kept=kept,
            factor=factor,
        )
    )
    sent = np.where(kept, fit.in_tok, 0)
    sent_graph = without(graph, ~kept)
    final = sent_graph if options.max_gap_s is None else capped(sent_graph, options.max_gap_s)
    return Settled(
        rows=rows,
        graph=final,
        kept=kept,
        in_tok=sent,
        out_tok=out_tok,
        cancel_after_tok=cancel,
        shared_tok=_shared(prompts.held_of, fit.in_tok, out_tok, fit.cut),
        segments=cut(prompts.segments, sent),
        gone=gone,
        notes=(
            *lengths.notes,
            *say.length_notes(options, size, fit.cut & kept),
            *say.left_out_notes(gone, options),
            *say.content_notes(trace, graph, size),
            *say.wait_notes(graph, sent_graph, kept, options),
        ),
    )


def _reasons(reasons: Mapping[str, Flags], rows: pl.DataFrame) -> tuple[dict[str, tuple[int, ...]], Flags]:
    """Rows of the trace by the first reason that keeps each from being sent, and the rows that are sent."""
    kept, gone = np.ones(rows.height, bool), {}
    for reason, mask in reasons.items():
        if (mask & kept).any():
            gone[reason] = tuple(rows["source_row"].filter(pl.Series(mask & kept)).to_list())
        kept &= ~mask
    return gone, kept


def _shared(held_of: Ints, in_tok: Ints, out_tok: Ints, cut_off: Flags) -> Ints:
    """Tokens of the prompt and answer that each prompt begins with, where both are whole and something follows."""
    held = np.where(held_of >= 0, in_tok[held_of] + out_tok[held_of], 0)
    return np.where((held_of >= 0) & ~cut_off[held_of] & (held < in_tok), held, 0)


def chance(options: PlanOptions, what: str) -> np.random.Generator:
    """One source of chance for each use, so that one option does not change what another draws."""
    return np.random.default_rng([options.seed, *what.encode()])
