"""Decode steps on a GPU as CUDA graphs, one per stream and batch size, so that every split has its own.

A graph belongs to the stream that it was captured on and computes on that stream's multiprocessors. Only what stands
between the embedding and the head is captured; token ids, positions, rotations and block tables are copied into fixed
tensors before. None of this has been run on a GPU yet; what does not need one is tested with fakes.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from braid.core.step import Work
from braid.layers.batch import ForwardBatch
from braid.layers.mlp import GatedMLP
from braid.models.decoder import CausalLM
from braid.runner.kv_store import KVStore
from braid.runner.replay import Inputs, table_width

logger = logging.getLogger(__name__)

MAX_GRAPHS = 64
"""The least recently used go first."""
SEEN = 1
"""Steps of a kind that run eagerly before it is captured: libraries set themselves up then, and rare kinds stay so."""


class Capture(NamedTuple):
    """A recorded computation and the tensor that it fills whenever it is replayed."""

    replay: Callable[[], None]
    output: Tensor


class Device(Protocol):
    """What captures."""

    def stream(self) -> int | None:
        """The thread's stream by its handle; None where nothing can be captured on it."""
        ...

    def capture(self, compute: Callable[[], Tensor]) -> Capture:
        """Record without computing."""
        ...


class CudaDevice:
    """All graphs share one pool of memory: they are replayed one at a time, and read before the next."""

    def __init__(self, device: torch.device) -> None:
        self._cuda: Any = torch.cuda
        self._device = device
        self._pool: Any = None

    def stream(self) -> int | None:
        stream = self._cuda.current_stream(self._device)
        is_default = stream == self._cuda.default_stream(self._device)
        return None if is_default else int(stream.cuda_stream)

    def capture(self, compute: Callable[[], Tensor]) -> Capture:
        # Not ``torch.cuda.graph``, which waits for the whole device, the other lane included.
        self._pool = self._pool or self._cuda.graph_pool_handle()
        graph = self._cuda.CUDAGraph()
        before = self._cuda.memory_reserved(self._device)
        # The other lane's thread may allocate meanwhile: only this one must not.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            output = compute()
        finally:
            graph.capture_end()
        grown = self._cuda.memory_reserved(self._device) - before
        logger.info("a decode step of %d requests is a graph now: %.1f MiB more", len(output), grown / 2**20)
        return Capture(graph.replay, output)


class _Fixed:
    """The tensors of a step of ``size`` requests whose tables have ``width`` blocks."""

    def __init__(self, model: CausalLM, kv: KVStore, size: int, width: int) -> None:
        device = model.device
        self._model, self._kv = model, kv
        self._inputs = Inputs(size, width, kv.block_size, is_pinned=device.type == "cuda")
        self._ids_B, self._positions_B, self._slots_B, self._tables_BW = (
            torch.zeros_like(tensor, device=device)
            for tensor in (
                self._inputs.ids_B,
                self._inputs.positions_B,
                self._inputs.slots_B,
                self._inputs.tables_BW,
            )
        )
        self.batch = ForwardBatch(
            token_ids_T=self._ids_B,
            positions_T=self._positions_B,
            slot_mapping_T=self._slots_B,
            query_start=list(range(size + 1)),
            query_start_S1=torch.arange(size + 1, dtype=torch.int32),
            # As long as the tables: what is behind a sequence's end is masked by its position.
            context_lens=[width * kv.block_size] * size,
            context_lens_S=self._inputs.lens_B,
            block_tables_SB=self._tables_BW,
            block_size=kv.block_size,
            num_decodes=size,
            logit_rows=torch.arange(size, device=device),
        )
        self._x_BD = model.embedding(self._ids_B)
        self._turns = model.turns(self._positions_B, 1)
        self.num_seen = 0
        self.captured: Capture | None = None

    def fill(self, works: Sequence[Work]) -> None:
        inputs = self._inputs
        inputs.fill(works)
        for tensor, host in (
            (self._ids_B, inputs.ids_B),
            (self._positions_B, inputs.positions_B),
            (self._slots_B, inputs.slots_B),
            (self._tables_BW, inputs.tables_BW),
        ):
            # The host's side is written again after the step's end only, so nobody has to wait for the copy.
            tensor.copy_(host, non_blocking=True)
        self._x_BD.copy_(self._model.embedding(self._ids_B))
        turns = self._model.turns(self._positions_B, inputs.longest)
        for (cos, sin), (new_cos, new_sin) in zip(self._turns, turns, strict=True):
            cos.copy_(new_cos)
            sin.copy_(new_sin)

    def compute(self) -> Tensor:
        return self._model.stack(self._x_BD, self._turns, self.batch, self._kv.layers)


class DecodeGraphs:
    """Decode steps of a model by graph; the twin of ``DecodeReplay``.

    Used by one thread; another one may ``clear``. Left to the caller: what is seen for the first time, steps on the
    device's default stream, and models with sliding windows (their steps' shapes follow the contexts) or experts (whose
    choice is read in between).
    """

    def __init__(self, model: CausalLM, kv: KVStore, device: Device | None = None) -> None:
        self._model, self._kv = model, kv
        self._device = device or CudaDevice(model.device)
        self._known: OrderedDict[tuple[int, int, int], _Fixed] = OrderedDict()
        self._is_refused = not all(_has_fixed_shapes(block) for block in model.blocks)

    def run(self, works: Sequence[Work]) -> tuple[Tensor, Tensor, float] | None:
        """Hidden states [B, D], KV slots [B] and 0 of a step of decodes; None if not replayed.

        The tensors are overwritten by the next step.
        """
        stream = None if self._is_refused else self._device.stream()
        if stream is None:
            return None
        key = (stream, len(works), table_width(works, self._kv.block_size))
        known = self._known  # the same one to the end of the step, though another lane may clear meanwhile
        fixed = known.get(key)
        if fixed is None:
            fixed = known[key] = _Fixed(self._model, self._kv, *key[1:])
        known.move_to_end(key)
        while len(known) > MAX_GRAPHS:
            known.popitem(last=False)
        fixed.num_seen += 1
        if fixed.num_seen <= SEEN:
            return None
        fixed.fill(works)
        if fixed.captured is None and not self._capture(fixed, len(works)):
            return None
        assert fixed.captured is not None, "nothing was captured"
        fixed.captured.replay()
        return fixed.captured.output, fixed.batch.slot_mapping_T, 0.0

    def _capture(self, fixed: _Fixed, size: int) -> bool:
        try:
            fixed.captured = self._device.capture(fixed.compute)
        except RuntimeError as reason:
            logger.warning(
                "decode steps (of %d requests) cannot be captured, and run eagerly: %s", size, reason
            )
            self._is_refused = True
            self._known = OrderedDict()
            return False
        return True

    def clear(self) -> None:
        """Give the memory of all graphs back; they are captured again when they are needed."""
        self._known = OrderedDict()


def _has_fixed_shapes(block: Any) -> bool:
    return isinstance(block.mlp, GatedMLP) and getattr(block.attention, "window", None) is None
