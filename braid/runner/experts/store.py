"""Routed experts in slots, with their file below: what a layer needs and lacks is read while it computes what it has.

The result is put together in the order of the router's choices, never in that of what landed: its bits do not depend on
the number of slots, on who is kept, on what is read early, nor on the order of reads.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

import braid.kernels as ops
from braid.checkpoint.expert_file import ExpertFile
from braid.core.errors import InvalidParameterError
from braid.core.experts import ExpertStats, LayerUse
from braid.core.faults import Faults
from braid.layers.moe import Routed
from braid.policy.experts.policy import ExpertCache
from braid.policy.experts.policy import Routed as Told
from braid.policy.experts.slots import PHASES, SlotTable
from braid.runner.experts.arena import open_arena
from braid.runner.experts.depth import measured_depth
from braid.runner.experts.early import Predicted
from braid.runner.experts.ledger import Ledger

if TYPE_CHECKING:
    from braid.runner.experts.module import StoredExperts

STAGING = 8
"""Rows beside the slots."""


class SlotNeed(NamedTuple):
    """Counts since the store was opened.

    Args:
        num_slots: that there are now.
        num_missed: misses that so many slots more would have made hits.
        num_missing: experts that were not there when they were needed; those who computed waited ``stall_s`` for them.
    """

    num_slots: int
    num_missed: int
    num_missing: int
    stall_s: float


class _Here(threading.local):
    """What one thread computes with."""

    def __init__(self) -> None:
        self.pairs_N: Tensor | None = None


class ExpertStore:
    """The experts of one model. Several threads may compute layers at the same time.

    Args:
        file: the experts, one record each.
        num_slots: records that are kept on the device; never more than there are experts. None at all is allowed: every
            expert then goes through the staging rows.
        cache: who goes when another needs room.
        staging: rows beside the slots, at least one.
        readers: reads under way at the same time; None: as many as are measured to be best.
        prefetch: ``off``, ``on`` or ``auto``: read what later layers are foreseen to need, while the disk is idle.
        floor, bypass: as in `braid.policy.experts.slots.SlotTable`.
        always_verify: check each record whenever it is read, not only the first time.
        faults: place ``experts.read`` (demand, prefill, prefetch).
        clock: what pauses after failures are measured with.

    Raises:
        InvalidParameterError: a number or name that cannot be.
        CheckpointError: the file is gone, or has changed.
        OSError, RuntimeError: there is no memory for so many slots.
    """

    def __init__(
        self,
        file: ExpertFile,
        num_slots: int,
        cache: ExpertCache,
        *,
        device: torch.device | None = None,
        staging: int = STAGING,
        readers: int | None = None,
        prefetch: str = "off",
        floor: int | None = None,
        bypass: bool | None = None,
        always_verify: bool = False,
        faults: Faults | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        readers = measured_depth(file) if readers is None else readers
        if staging < 1 or readers < 1:
            raise InvalidParameterError(
                f"staging rows and readers must be at least 1, got {staging} and {readers}",
                param="expert_memory",
            )
        self.file, self.shape, self.layout = file, file.shape, file.layout
        self.staging, self.prefetch = staging, prefetch
        self.table = SlotTable(
            file.shape, min(num_slots, file.shape.total), cache, floor=floor, bypass=bypass
        )
        self._arena = open_arena(
            staging + self.table.num_slots,
            file.layout.record_bytes,
            staging + file.shape.total,
            device or torch.device("cpu"),
        )
        self._ledger = Ledger(
            file,
            self.table,
            self._arena,
            staging=staging,
            readers=readers,
            prefetch=prefetch,
            always_verify=always_verify,
            faults=faults,
            clock=clock,
        )
        self._here = _Here()

    @property
    def num_bytes(self) -> int:
        """Memory for slots and staging."""
        return (self.table.num_slots + self.staging) * self.layout.record_bytes

    @property
    def is_direct(self) -> bool:
        """Whether the file is read past the page cache."""
        return self._ledger.reader.is_direct

    @property
    def num_readers(self) -> int:
        return self._ledger.reader.depth

    @property
    def wants_predictions(self) -> bool:
        """Later layers' routers are to be asked in steps of decodes, at present."""
        return self._ledger.early.is_on

    # -- computing -------------------------------------------------------------------------------------------

    def compute(
        self,
        layer: int,
        x_TD: Tensor,
        routed: Routed,
        *,
        act: str,
        is_prefill: bool = False,
        predict: Callable[[], Sequence[Predicted]] | None = None,
    ) -> Tensor:
        """The weighted sum [T, D] of the experts that a router chose: what `braid.layers.moe.Experts` gives, bit by bit
        for experts of the same numbers.

        Args:
            layer: among the MoE layers.
            predict: asks later layers' routers what they would choose for the same rows.

        Raises:
            ExpertReadError: an expert that is needed cannot be read, or is not what was written.
        """
        ledger, begin = self._ledger, time.perf_counter()
        task = ledger.begin(self._told(layer, routed, is_prefill), len(x_TD), begin)
        try:
            if predict is not None and not is_prefill and self.wants_predictions:
                self._foresee(predict)
            pairs_PD = self._pairs(routed.ids_Tk.numel(), x_TD)
            group: Mapping[int, int] = {}
            while group := ledger.next(task, group, time.perf_counter() - begin):
                begin = time.perf_counter()
                self._compute_group(layer, x_TD, routed, group, pairs_PD, act)
            return ops.combine_pairs(pairs_PD, routed.weights_Tk, x_TD.dtype)
        finally:
            ledger.finish(task)

    def _told(self, layer: int, routed: Routed, is_prefill: bool) -> Told:
        """The same for policies: experts by id, over all rows of the batch."""
        first, num_best = layer * self.shape.per_layer, min(2 * self.shape.top_k, self.shape.per_layer)
        # numpy and lists: on so few numbers they take a tenth of what torch's calls take.
        ids_Tk, scores_TX = routed.ids_Tk.numpy(force=True), routed.scores_TX.numpy(force=True)
        if len(ids_Tk) == 1:
            loads, scores_X = (
                dict.fromkeys(ids_Tk[0].tolist(), 1),
                scores_TX[0],
            )  # a router chooses different ones
        else:
            indices, counts = np.unique(ids_Tk, return_counts=True)
            loads, scores_X = dict(zip(indices.tolist(), counts.tolist(), strict=True)), scores_TX.mean(0)
        best = np.argpartition(scores_X, -num_best)[-num_best:].tolist()
        all_scores = scores_X.tolist()
        scores = {first + index: all_scores[index] for index in {*best, *loads}}
        if not isfinite(sum(scores.values())):  # a broken request is not to spoil what policies learn
            scores = {}
        return Told(layer, {first + index: load for index, load in loads.items()}, scores, is_prefill)

    def _pairs(self, num_pairs: int, x_TD: Tensor) -> Tensor:
        """Room for the pairs' rows, kept for the thread's next layer: new memory for each would be faulted in again."""
        here, size = self._here, num_pairs * x_TD.shape[1]
        if here.pairs_N is None or len(here.pairs_N) < size:
            here.pairs_N = torch.empty(size, dtype=torch.float32, device=x_TD.device)
        return here.pairs_N[:size].view(num_pairs, x_TD.shape[1])

    def _compute_group(
        self,
        layer: int,
        x_TD: Tensor,
        routed: Routed,
        group: Mapping[int, int],
        pairs_PD: Tensor,
        act: str,
    ) -> None:
        first = layer * self.shape.per_layer
        slots = np.full(self.shape.per_layer, -1, np.int64)
        for expert, row in group.items():
            slots[expert - first] = row
        slots_X = torch.from_numpy(slots)
        if self._arena.rows_RB.is_cuda:
            slots_X = slots_X.to(x_TD.device)
        ops.expert_pairs(x_TD, routed.ids_Tk, self._arena.rows_RB, slots_X, self.layout, pairs_PD, act=act)
        self._arena.used()

    def _foresee(self, predict: Callable[[], Sequence[Predicted]]) -> None:
        begin = time.perf_counter()
        told = [(self._told(one.layer, one.routed, False), one.distance) for one in predict()]
        if told:
            self._ledger.foresee(told, time.perf_counter() - begin)

    def module(self, layer: int, act: str) -> StoredExperts:
        """What takes the place of a layer's `braid.layers.moe.Experts`."""
        from braid.runner.experts.module import StoredExperts

        return StoredExperts(self, layer, act=act)

    # -- between steps ---------------------------------------------------------------------------------------

    def resize(self, num_slots: int) -> None:
        """Another number of slots: free ones go first, then the worst, and those in use as soon as they are not.

        Raises:
            InvalidParameterError: a negative number, or more than there are addresses for.
        """
        num_slots = min(num_slots, self.shape.total)
        if num_slots > self.most_slots:
            raise InvalidParameterError(
                f"{num_slots} slots for experts were asked for, but the system's limit on addresses allows "
                f"{self.most_slots}",
                param="expert_memory",
            )
        self._ledger.resize(num_slots)

    @property
    def most_slots(self) -> int:
        """That ``resize`` can make."""
        return min(self.shape.total, self._arena.capacity - self.staging)

    def need(self, num_remembered: int) -> SlotNeed:
        """What more slots would be worth; from now on so many experts that are gone are watched."""
        return self._ledger.snapshot(lambda: self._need(num_remembered))

    def _need(self, num_remembered: int) -> SlotNeed:
        table = self.table
        table.num_remembered = num_remembered
        missing = sum(counts.misses + counts.bypasses for phase in PHASES for counts in table.counts[phase])
        return SlotNeed(table.num_slots, table.num_missed, missing, self._ledger.tally.total().stall)

    def close(self) -> None:
        """Whoever computes gets an error. A read that hangs is left behind."""
        self._ledger.close()

    def check_integrity(self, *, records: bool = False) -> None:
        """
        Args:
            records: also that every slot holds what was written to the file; slow.

        Raises:
            AssertionError: what is kept here contradicts itself.
        """
        self._ledger.check_integrity()
        for expert in list(self.table.ready()) if records else ():
            record_B = self._arena.rows_RB[self.staging + self.table.slots[expert]].cpu().numpy()
            assert zlib.crc32(record_B.data) == self.file.crc(expert), (
                f"the slot of expert {expert} is altered"
            )

    # -- what it tells ---------------------------------------------------------------------------------------

    def stats(self) -> ExpertStats:
        """Its state and counts; cheap."""
        return self._ledger.snapshot(self._stats)

    def _stats(self) -> ExpertStats:
        table, tally, times = self.table, self._ledger.tally, self._ledger.reader.times()
        early, seconds = table.prefetches, tally.total()
        return ExpertStats(
            total=self.shape.total,
            slots=table.num_slots,
            slot_bytes=self.layout.record_bytes,
            cycle=self.shape.cycle,
            layers=tuple(self._layer_use(layer) for layer in range(self.shape.layers)),
            bytes_by_cause={cause.label: count for cause, count in times.bytes.items()},
            prefetched={"useful": early.useful, "late": early.late, "wasted": early.wasted},
            stall_s=seconds.stall,
            compute_s=seconds.compute,
            link_busy_s=times.busy_s,
            planning_s=seconds.planning,
            failed_reads=times.failed,
        )

    def _layer_use(self, layer: int) -> LayerUse:
        counts = [self.table.counts[phase][layer] for phase in PHASES]
        return LayerUse(
            self.table.held(layer),
            sum(count.hits + count.joins for count in counts),
            sum(count.misses for count in counts),
            sum(count.bypasses for count in counts),
        )

    def detail(self) -> dict[str, object]:
        """More than ``stats``, as plain numbers, for benchmarks: seconds by layer, union by rows, what was learnt."""
        return self._ledger.snapshot(self._detail)

    def _detail(self) -> dict[str, object]:
        tally, times = self._ledger.tally, self._ledger.reader.times()
        return {
            "reads": times.reads,
            "read_s": times.read_s,
            "record_s": self._ledger.reader.record_s,
            "expert_s": tally.fast.value,
            "layers": [asdict(layer) for layer in tally.layers],
            "unions": {rows: union.mean for rows, union in sorted(tally.unions.items())},
            "prefetch": self._ledger.early.describe(),
            "failed_prefetches": self.table.prefetches.failed,
        }
