"""Decode steps as recorded kernel calls: new numbers into fixed tensors, one foreign call, the hidden states out.

The kernels, their order and their arguments are those of the model's own forward pass, and so are the results' bits.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
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


class _Recorded:
    """One tape with the tensors it reads (``batch``, ``x_BD``, ``turns``) and the one it fills (``hidden_BD``)."""

    def __init__(self, model: CausalLM, kv: KVStore, size: int, width: int) -> None:
        self._model, self._block_size = model, kv.block_size
        self.token_ids, self.positions = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self.slots, self.lens = np.zeros(size, np.int64), np.ones(size, np.int32)
        self.tables = np.zeros((size, width), np.int32)
        self._ids_B, self._positions_B = torch.from_numpy(self.token_ids), torch.from_numpy(self.positions)
        self.batch = ForwardBatch(
            token_ids_T=self._ids_B,
            positions_T=self._positions_B,
            slot_mapping_T=torch.from_numpy(self.slots),
            query_start=list(range(size + 1)),
            query_start_S1=torch.arange(size + 1, dtype=torch.int32),
            context_lens=[width * kv.block_size] * size,
            context_lens_S=torch.from_numpy(self.lens),
            block_tables_SB=torch.from_numpy(self.tables),
            block_size=kv.block_size,
            num_decodes=size,
            logit_rows=torch.arange(size),
        )
        self._x_BD: Tensor = model.embedding(self._ids_B)
        self._turns = model.turns(self._positions_B, 1)
        self._kv = kv
        self.tape: Tape | None = None
        self.kernel_seconds = 0.0
        self.hidden_BD: Tensor = self._x_BD

    def run(self, works: Sequence[Work]) -> Tensor:
        """Hidden states [B, D] of one decode step; recorded on the first call."""
        self._fill(works)
        self._x_BD.copy_(self._model.embedding(self._ids_B))
        turns = self._model.turns(self._positions_B, int(self.lens.max()))
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

    def _fill(self, works: Sequence[Work]) -> None:
        size = self._block_size
        for row, work in enumerate(works):
            start, blocks = work.start, work.block_ids
            self.token_ids[row] = work.token_ids[0]
            self.positions[row] = start
            self.lens[row] = start + 1
            self.slots[row] = blocks[start // size] * size + start % size
            used = start // size + 1
            self.tables[row, :used] = blocks[:used]


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
        longest = max(work.start for work in works) // self._kv.block_size + 1
        key = (size, max(MIN_TABLE, 1 << (longest - 1).bit_length()))
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
