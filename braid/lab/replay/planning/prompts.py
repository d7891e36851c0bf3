"""Which streams each prompt is made of, so that what the trace's prompts share is shared.

Block ids: one segment for each block; tokens beyond the last block are a stream of their own, or, where the program's
next prompt goes on with a further block, that block's first words.

Without them, a turn's prompt begins with the prompt of the turn that it waited for:
- all of it, where the source's count of shared (``lcp_prev_tok``) or cached tokens (``cached_tok``) covers it but for a
  partial block, or where, without a count, prompts are known to hold earlier turns and this one did not shrink; then
  that turn's answer too, as a stream of its own, where the prompt is long enough for both;
- as many tokens as the count says, where it says less;
- nothing, where there is no count, and prompts are not known to hold earlier turns or this one shrank.
The rest is new. A sub-agent's first prompt begins like its group's very first one for as many tokens as ``cached_tok``
says. All other prompts are streams of their own.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from braid.lab.replay.planning.blocks import PROMPT, Segments, source_of, stream_keys
from braid.lab.replay.planning.graph import Ints
from braid.lab.replay.planning.lengths import scaled
from braid.lab.replay.planning.shared import Rows, Shared, several


class Prompts(NamedTuple):
    """Args:
    segments: of every row that has a prompt; a row's sum to its ``Sized.in_tok``.
    held_of: the row whose whole prompt and answer each prompt begins with, the program's last one that is sent; -1
        for none.
    """

    segments: Segments
    held_of: Ints


def prompts_of(rows: Rows) -> Prompts:
    """Segments of all prompts."""
    blocks, rest = rows.sized.blocks, rows.sized.rest_tok.copy()
    own, held_of = stream_keys(PROMPT, source_of(rows.frame)), np.full(rest.size, -1)
    parts = []
    if blocks is not None:
        tok = scaled(blocks.segments.tok, blocks.scale, 1)
        parts.append(Segments(blocks.segments.row, blocks.segments.key, tok))
    order = several(rows)
    if order.size:
        shared = Shared(rows, own)
        shared.run(order)
        written, held_of = shared.segments(), shared.held_of
        rest[written.row] = 0
        parts.append(written)
    fresh = np.flatnonzero(rest > 0)
    parts.append(Segments(fresh, own[fresh], rest[fresh]))
    return Prompts(_joined(parts), held_of)


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
