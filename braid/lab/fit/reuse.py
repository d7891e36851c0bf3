"""What of a prompt was seen before, in traces with block ids: the law of shared prefixes."""

from __future__ import annotations

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from braid.lab.fit.lengths import Table, table

Ints = NDArray[np.int64]


class Reuse(msgspec.Struct, frozen=True, kw_only=True):
    """How requests share prefixes with earlier ones.

    A request shares so many leading blocks with an earlier one, then goes its own way. Copying from one that used its
    blocks recently makes some prefixes popular (as in a Chinese restaurant process) and lets conversations go on. Times
    between uses come out somewhat shorter than drawn, as others may use a prefix meanwhile.

    Args:
        block_size: tokens per block.
        hit_rate: share of the blocks that a cache without limit would hold.
        share: of a prompt's blocks that were seen before, by how many it has.
        lag_s: time since the last one of them was used last, by how many they are.
    """

    block_size: int
    hit_rate: float
    share: Table
    lag_s: Table


def seen_blocks(blocks: pl.Series) -> tuple[Ints, Ints, Ints]:
    """Leading blocks that earlier rows held, per row; all blocks per row; and the last earlier row that held the last
    of the seen ones (-1 where none was).

    Args:
        blocks: a list of ids per row, in order of time; null counts as none.
    """
    num = blocks.list.len().fill_null(0).cast(pl.Int64).to_numpy()
    row = np.repeat(np.arange(num.size), num)
    place = np.arange(row.size) - np.repeat(np.cumsum(num) - num, num)
    ids = blocks.drop_nulls().explode().drop_nulls().to_numpy()
    order = np.lexsort((place, row, ids))
    earlier = np.full(row.size, -1)
    same = (ids[order][1:] == ids[order][:-1]) & (row[order][1:] > row[order][:-1])
    earlier[order[1:][same]] = row[order[:-1][same]]
    # The first place of each row that was not seen ends its run.
    end = num.copy()
    np.minimum.at(end, row[earlier < 0], place[earlier < 0])
    last = np.full(num.size, -1)
    some = end > 0
    last[some] = earlier[(np.cumsum(num) - num)[some] + end[some] - 1]
    return end, num, last


def hit_rate(frame: pl.DataFrame) -> float | None:
    """What a cache without limit would hold of all prompts: of their blocks where there are ids, else of their tokens
    where the source says what was seen before; None where neither is known."""
    if frame["block_ids"].count():
        seen, num, _ = seen_blocks(frame["block_ids"])
        return float(seen.sum() / max(num.sum(), 1))
    told = frame.select("cached_tok", "in_tok").drop_nulls()
    if not told.height:
        return None
    cached, whole = (float(told[name].cast(pl.Float64).sum()) for name in told.columns)
    return cached / max(whole, 1.0)


def with_cached(frame: pl.DataFrame, block_size: int | None) -> pl.DataFrame:
    """The frame with ``cached_tok`` from block ids, where it holds ids and does not say."""
    if block_size is None or frame["cached_tok"].count() or not frame["block_ids"].count():
        return frame
    seen, _, _ = seen_blocks(frame["block_ids"])
    tokens = pl.min_horizontal(pl.Series(seen * block_size), pl.col("in_tok"))
    known = pl.col("block_ids").is_not_null()
    return frame.with_columns(pl.when(known).then(tokens).cast(pl.Int64).alias("cached_tok"))


def fit_reuse(frame: pl.DataFrame, block_size: int | None) -> Reuse | None:
    """From requests in order of time; None without block ids, or where nothing was ever seen again."""
    rows = frame.filter(pl.col("block_ids").list.len() > 0).drop_nulls("t_s")
    if block_size is None or not rows.height:
        return None
    seen, num, last = seen_blocks(rows["block_ids"])
    some = seen > 0
    if not some.any():
        return None
    times = rows["t_s"].to_numpy()
    lag = np.maximum(times[some] - times[last[some]], 0.0)
    return Reuse(
        block_size=block_size,
        hit_rate=float(seen.sum() / num.sum()),
        share=table(num.astype(float), seen / num),
        lag_s=table(seen[some].astype(float), lag, 12),
    )
