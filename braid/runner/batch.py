"""From a plan's works to the tensors of one step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from braid.core.step import Work
from braid.layers.batch import ForwardBatch


def build_batch(works: Sequence[Work], block_size: int, device: torch.device) -> ForwardBatch:
    """Lay the works out one after another; decodes must come first (``StepPlan`` keeps that order)."""
    lengths = [len(work.token_ids) for work in works]
    query_start = [0]
    for length in lengths:
        query_start.append(query_start[-1] + length)
    total = query_start[-1]
    token_ids = np.empty(total, dtype=np.int64)
    positions = np.empty(total, dtype=np.int64)
    slots = np.empty(total, dtype=np.int64)
    tables = np.zeros((len(works), _blocks_needed(works, block_size)), dtype=np.int32)
    for row, work in enumerate(works):
        begin, end = query_start[row], query_start[row + 1]
        token_ids[begin:end] = work.token_ids
        used = -(-(work.start + lengths[row]) // block_size)
        tables[row, :used] = work.block_ids[:used]
        _place(work.start, lengths[row], tables[row], block_size, positions[begin:end], slots[begin:end])
    context_lens = [work.start + length for work, length in zip(works, lengths, strict=True)]
    rows = [query_start[row + 1] - 1 for row, work in enumerate(works) if work.sample is not None]
    return ForwardBatch(
        token_ids_T=_to(token_ids, device),
        positions_T=_to(positions, device),
        slot_mapping_T=_to(slots, device),
        query_start=query_start,
        query_start_S1=torch.tensor(query_start, dtype=torch.int32),
        context_lens=context_lens,
        context_lens_S=torch.tensor(context_lens, dtype=torch.int32),
        block_tables_SB=_to(tables, device),
        block_size=block_size,
        num_decodes=_count_decodes(works),
        logit_rows=_to(np.array(rows, dtype=np.int64), device),
    )


def _blocks_needed(works: Sequence[Work], block_size: int) -> int:
    return max(-(-(work.start + len(work.token_ids)) // block_size) for work in works)


def _place(
    start: int,
    length: int,
    table: NDArray[np.int32],
    block_size: int,
    positions: NDArray[np.int64],
    slots: NDArray[np.int64],
) -> None:
    """Fill positions and KV slots of tokens ``[start, start + length)``."""
    if length == 1:
        positions[0] = start
        slots[0] = int(table[start // block_size]) * block_size + start % block_size
        return
    positions[:] = np.arange(start, start + length)
    slots[:] = table[positions // block_size].astype(np.int64) * block_size + positions % block_size


def _count_decodes(works: Sequence[Work]) -> int:
    """Length of the leading run of one-token works; kernels treat exactly these as decodes."""
    count = 0
    for work in works:
        if len(work.token_ids) != 1:
            break
        count += 1
    return count


def _to(array: NDArray[np.generic], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
