"""Decode steps as recorded kernel calls: new numbers into fixed tensors, one foreign call, the hidden states out.

The kernels, their order and their arguments are those of the model's own forward pass, and so are the results' bits.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

import braid.kernels as ops
from braid.core.step import Work
from braid.kernels.tape import Tape, UnrecordableError
from braid.layers.batch import ForwardBatch
from braid.models.decoder import CausalLM
from braid.runner.kv_store import KVStore

logger = logging.getLogger(__name__)

MAX_BYTES = 128 << 20
"""Memory of the activations of all tapes; the least recently used go first."""
MIN_TABLE = 32
"""Block tables are this wide or the next power of two that fits."""


class Inputs:
    """What a step of ``size`` decodes reads, in host tensors that stay in place: ids, positions, slots [B] int64,
    lengths [B] and block tables [B, W] int32.

    Args:
        is_pinned: for copies to a GPU that nobody waits for.
    """

    def __init__(self, size: int, width: int, block_size: int, *, is_pinned: bool = False) -> None:
        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(*shape, dtype=dtype, pin_memory=is_pinned)

        self._block_size = block_size
        self.ids_B, self.positions_B, self.slots_B = (zeros(size, dtype=torch.int64) for _ in range(3))
        self.lens_B = zeros(size, dtype=torch.int32).fill_(1)
        self.tables_BW = zeros(size, width, dtype=torch.int32)
        # Through numpy, numbers are written in a fraction of the time.
        self._ids, self._positions, self._slots, self._lens, self._tables = (
            tensor.numpy()
            for tensor in (self.ids_B, self.positions_B, self.slots_B, self.lens_B, self.tables_BW)
        )

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence, the new one included."""
        return int(self._lens.max())

    def fill(self, works: Sequence[Work]) -> None:
        size = self._block_size
        for row, work in enumerate(works):
            start, blocks = work.start, work.block_ids
            self._ids[row] = work.token_ids[0]
            self._positions[row] = start
            self._lens[row] = start + 1
            self._slots[row] = blocks[start // size] * size + start % size
            used = start // size + 1
            self._tables[row, :used] = blocks[:used]


def table_width(works: Sequence[Work], block_size: int) -> int:
    """Of the block tables that hold these decodes."""
    longest = max(work.start for work in works) // block_size + 1
    return max(MIN_TABLE, 1 << (longest - 1).bit_length())


class _Recorded:
    """One tape with the tensors it reads (``batch``, ``x_BD``, ``turns``) and the one it fills (``hidden_BD``)."""

    def __init__(self, model: CausalLM, kv: KVStore, size: int, width: int) -> None:
        self._model = model
        self._inputs = inputs = Inputs(size, width, kv.block_size)
        self.batch = ForwardBatch(
            token_ids_T=inputs.ids_B,
            positions_T=inputs.positions_B,
            slot_mapping_T=inputs.slots_B,
            query_start=list(range(size + 1)),
            query_start_S1=torch.arange(size + 1, dtype=torch.int32),
            context_lens=[width * kv.block_size] * size,
            context_lens_S=inputs.lens_B,
            block_tables_SB=inputs.tables_BW,
            block_size=kv.block_size,
            num_decodes=size,
            logit_rows=torch.arange(size),
        )
        self._x_BD: Tensor = model.embedding(inputs.ids_B)
        self._turns = model.turns(inputs.positions_B, 1)
        self._kv = kv
        self.tape: Tape | None = None
        self.kernel_seconds = 0.0
        self.hidden_BD: Tensor = self._x_BD

    def run(self, works: Sequence[Work]) -> Tensor:
        """Hidden states [B, D] of one decode step; recorded on the first call."""
        inputs = self._inputs
        inputs.fill(works)
        self._x_BD.copy_(self._model.embedding(inputs.ids_B))
        turns = self._model.turns(inputs.positions_B, inputs.longest)
        for (cos, sin), (new_cos, new_sin) in zip(self._turns, turns, strict=True):
            cos.copy_(new_cos)
            sin.copy_(new_sin)
        begin = time.perf_counter()
        if self.tape is None:
            self.tape, self.hidden_BD = ops.record(self._compute)
        else:
            self.tape.replay()
        self.kernel_seconds += time.perf_counter() - begin
        return self.hidden_BD

    def _compute(self) -> Tensor:
        return self._model.stack(self._x_BD, self._turns, self.batch, self._kv.layers)


class DecodeReplay:
    """Decode steps of a model by tape, one tape per batch size.

    Used by one thread; another one may ``clear``. Models that need more than native kernels (and other devices) are
    left to the caller.
    """

    def __init__(self, model: CausalLM, kv: KVStore) -> None:
        self._model, self._kv = model, kv
        self._recorded: OrderedDict[tuple[int, int], _Recorded] = OrderedDict()
        self._refused: set[int] = set()

    def run(self, works: Sequence[Work]) -> tuple[Tensor, Tensor, float] | None:
        """Hidden states [B, D], KV slots [B] and seconds in kernels of a step of decodes; None if not replayed.

        The tensors are overwritten by the next step.
        """
        size = len(works)
        if size in self._refused or self._model.device.type != "cpu":
            return None
        key = (size, table_width(works, self._kv.block_size))
        known = self._recorded  # the same one to the end of the step, though another lane may clear meanwhile
        recorded = known.get(key) or _Recorded(self._model, self._kv, *key)
        before = recorded.kernel_seconds
        try:
            hidden_BD = recorded.run(works)
        except UnrecordableError as reason:
            logger.info("decode steps of %d requests are not replayed: %s", size, reason)
            self._refused.add(size)
            return None
        known[key] = recorded
        known.move_to_end(key)
        _make_room(known)
        return hidden_BD, recorded.batch.slot_mapping_T, recorded.kernel_seconds - before

    def clear(self) -> None:
        """Give the memory of all tapes back, but of one under way; they are recorded again when they are needed."""
        self._recorded = OrderedDict()


def _make_room(known: OrderedDict[tuple[int, int], _Recorded]) -> None:
    tapes = [recorded.tape for recorded in known.values() if recorded.tape is not None]
    total = sum(tape.num_bytes for tape in tapes)
    while total > MAX_BYTES and len(known) > 1:
        _, oldest = known.popitem(last=False)
        total -= oldest.tape.num_bytes if oldest.tape is not None else 0
