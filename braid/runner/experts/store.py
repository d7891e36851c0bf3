"""Routed experts in slots, with their file below: what a layer needs and lacks is read while it computes what it has.

On a GPU main memory lies between (`braid.runner.experts.host`): slots are filled from there, and the CPU may compute a
part of what they lack.

The result is put together in the order of the router's choices, never in that of what landed: its bits do not depend on
the number of slots, on who is kept, on what is read early, nor on the order of reads.
"""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

import braid.kernels as ops
from braid.checkpoint.expert_file import ExpertFile
from braid.core.errors import InvalidParameterError
from braid.core.experts import ExpertStats
from braid.core.faults import Faults
from braid.layers.moe import Routed
from braid.policy.experts.policy import ExpertCache
from braid.policy.experts.policy import Routed as Told
from braid.policy.experts.sides import Sides
from braid.policy.experts.slots import ABSENT, PHASES, SlotTable
from braid.runner.experts.arena import Arena, DeviceArena, HostArena, open_arena
from braid.runner.experts.depth import measured_depth
from braid.runner.experts.early import Predicted
from braid.runner.experts.host import HostSource, HostTier, put_rows
from braid.runner.experts.ledger import Ledger
from braid.runner.experts.reader import Source
from braid.runner.experts.report import stats_of
from braid.runner.experts.source import FileSource
from braid.runner.experts.stopwatch import Stopwatch
from braid.runner.experts.task import Task
from braid.runner.experts.told import told_of

if TYPE_CHECKING:
    from braid.runner.experts.module import StoredExperts

STAGING = 8
"""Rows beside the slots."""
PART = 8
"""Experts that the CPU computes below a GPU before it looks what has landed there."""


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


class _Slow(NamedTuple):
    """What the tier below computed of a layer."""

    layer: int
    seconds: float
    experts: int
    rows: int


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
        readers: reads under way at the same time; None: as many as are measured to be best, and above a host tier one
            more than it has, so that one copies while the others wait for the disk.
        prefetch: ``off``, ``on`` or ``auto``: read what later layers are foreseen to need, while the disk is idle.
        floor, bypass: as in `braid.policy.experts.slots.SlotTable`.
        always_verify: check each record whenever it is read, not only the first time.
        faults: place ``experts.read`` (demand, prefill, prefetch), above a host tier ``experts.fetch``.
        clock: what pauses after failures are measured with.
        pinned: slots are in main memory, and a GPU is to copy from them by itself.
        host: the tier that the slots are filled from, closed with this one; None: the file.
        sides: makes what says which experts that tier computes; None: it computes nothing.

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
        pinned: bool = False,
        host: HostTier | None = None,
        sides: Callable[[SlotTable], Sides] | None = None,
    ) -> None:
        if readers is None:
            readers = measured_depth(file) if host is None else host.store.num_readers + 1
        device = device or torch.device("cpu")
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
        num_rows, record_bytes = staging + self.table.num_slots, file.layout.record_bytes
        self._arena: Arena
        source: Source
        if host is None:
            self._arena = open_arena(
                num_rows, record_bytes, staging + file.shape.total, device, pinned=pinned
            )
            source = FileSource(file, self._arena, always_verify=always_verify, faults=faults)
        else:
            self._arena = arena = DeviceArena(num_rows, record_bytes, device)
            source = HostSource(host, arena, faults)
        self.host = host
        self._sides = None if sides is None else sides(self.table)
        self._watch = None if sides is None else Stopwatch(device)
        self._ledger = Ledger(
            file,
            self.table,
            self._arena,
            source=source,
            staging=staging,
            readers=readers,
            prefetch=prefetch,
            clock=clock,
            sides=self._sides,
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
    def is_pinned(self) -> bool:
        """Whether a GPU copies from the slots by itself."""
        return isinstance(self._arena, HostArena) and self._arena.is_pinned

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
        told = told_of(self.shape, layer, routed, is_prefill)
        task = ledger.begin(told, len(x_TD), begin)
        try:
            if self.host is not None:
                self.host.hear(told, task.ready)
            if predict is not None and not is_prefill and self.wants_predictions:
                self._foresee(predict)
            pairs_PD = self._pairs(routed.ids_Tk.numel(), x_TD)
            if task.slow:
                self._on_both_sides(task, told, x_TD, routed, pairs_PD, act)
            else:
                self._fill(task, x_TD, routed.ids_Tk, pairs_PD, act)
            return ops.combine_pairs(pairs_PD, routed.weights_Tk, x_TD.dtype)
        finally:
            ledger.finish(task)
            if self._sides is not None:
                self._learn()

    def _fill(
        self,
        task: Task,
        x_TD: Tensor,
        ids_Tk: Tensor,
        pairs_PD: Tensor,
        act: str,
        group: Mapping[int, int] = MappingProxyType({}),
        seconds: float = 0.0,
    ) -> float:
        """Compute what the task has left, as it comes; the seconds of that.

        Args:
            group: computed before, in ``seconds``.
        """
        total = 0.0
        while group := self._ledger.next(task, group, seconds):
            seconds = self._compute_group(task, x_TD, ids_Tk, group, pairs_PD, act)
            total += seconds
        return total

    def _on_both_sides(
        self, task: Task, told: Told, x_TD: Tensor, routed: Routed, pairs_PD: Tensor, act: str
    ) -> None:
        """The device begins with what it holds, and the CPU computes its own meanwhile. After every part of that the
        device gets what has landed."""
        host, ids_Tk, begin = self.host, routed.ids_Tk, time.perf_counter()
        assert host is not None, "a plan for two sides, but there is one"
        inputs = host.inputs(x_TD, routed)
        slow_s, num_rows, seconds = time.perf_counter() - begin, 0, 0.0
        group: Mapping[int, int] = {}
        slow = sorted(task.slow, key=lambda expert: (told.loads[expert], expert))
        for first in range(0, len(slow), PART):
            if group := self._ledger.next(task, group, seconds, wait=False):
                seconds = self._compute_group(task, x_TD, ids_Tk, group, pairs_PD, act)
            rows = host.compute(told, slow[first : first + PART], inputs, act)
            put_rows(rows, pairs_PD)
            slow_s, num_rows = slow_s + rows.seconds, num_rows + len(rows.places_N)
        self._fill(task, x_TD, ids_Tk, pairs_PD, act, group, seconds)
        self._learn(_Slow(task.layer, slow_s, len(slow), num_rows))

    def _learn(self, slow: _Slow | None = None) -> None:
        """What either side took."""
        sides, watch = self._sides, self._watch
        assert sides is not None
        assert watch is not None
        done = watch.take()
        if not done and slow is None:
            return

        def tell() -> None:
            for one in done:
                sides.measured_fast(one.seconds, one.experts, one.rows)
            if slow is not None:
                sides.measured_slow(slow.seconds, slow.experts, slow.rows)
                self._ledger.tally.layers[slow.layer].compute += slow.seconds

        self._ledger.snapshot(tell)

    def _pairs(self, num_pairs: int, x_TD: Tensor) -> Tensor:
        """Room for the pairs' rows, kept for the thread's next layer: new memory for each would be faulted in again."""
        here, size = self._here, num_pairs * x_TD.shape[1]
        if here.pairs_N is None or len(here.pairs_N) < size:
            here.pairs_N = torch.empty(size, dtype=torch.float32, device=x_TD.device)
        return here.pairs_N[:size].view(num_pairs, x_TD.shape[1])

    def _compute_group(
        self,
        task: Task,
        x_TD: Tensor,
        ids_Tk: Tensor,
        group: Mapping[int, int],
        pairs_PD: Tensor,
        act: str,
    ) -> float:
        """The experts in these rows; seconds until the calling thread goes on."""
        begin, watch = time.perf_counter(), self._watch
        first = task.layer * self.shape.per_layer
        slots = np.full(self.shape.per_layer, -1, np.int64)
        for expert, row in group.items():
            slots[expert - first] = row
        slots_X = torch.from_numpy(slots)
        if self._arena.rows_RB.is_cuda:
            slots_X = slots_X.to(x_TD.device)
        mark = None if watch is None else watch.begin()
        ops.expert_pairs(x_TD, ids_Tk, self._arena.rows_RB, slots_X, self.layout, pairs_PD, act=act)
        self._arena.used()
        if watch is not None and mark is not None:
            watch.end(mark, len(group), sum(task.loads[expert] for expert in group))
        return time.perf_counter() - begin

    def _foresee(self, predict: Callable[[], Sequence[Predicted]]) -> None:
        begin = time.perf_counter()
        told = [(told_of(self.shape, one.layer, one.routed, False), one.distance) for one in predict()]
        if told:
            self._ledger.foresee(told, time.perf_counter() - begin)

    # -- for the tier above ----------------------------------------------------------------------------------

    def has(self, expert: int) -> bool:
        """It is in a slot now."""
        return self.table.slots[expert] != ABSENT

    def hear(self, told: Told) -> None:
        """A step needs these experts; ``held`` and ``pairs`` follow for each of them, and tell the cache nothing."""
        self._ledger.hear(told)

    @contextmanager
    def held(self, expert: int, *, is_prefill: bool) -> Iterator[Tensor]:
        """The record of an expert, read from the file if it is not here.

        Raises:
            ExpertReadError: it cannot be read.
        """
        told = Told(self.shape.layer_of(expert), {expert: 1}, {}, is_prefill)
        task = self._ledger.begin(told, 1, time.perf_counter(), is_told=True)
        try:
            yield self._arena.rows_RB[self._ledger.next(task, {}, 0.0)[expert]]
        finally:
            self._ledger.finish(task)

    def pairs(self, told: Told, x_TD: Tensor, ids_Tk: Tensor, *, act: str) -> tuple[Tensor, float]:
        """What the experts of ``told`` make of their rows, and the seconds in which it was computed.

        Rows [T * k, D] of other experts' pairs hold anything, and all of them change with the thread's next call.

        Raises:
            ExpertReadError: one cannot be read.
        """
        task = self._ledger.begin(told, len(x_TD), time.perf_counter(), is_told=True)
        try:
            pairs_PD = self._pairs(ids_Tk.numel(), x_TD)
            return pairs_PD, self._fill(task, x_TD, ids_Tk, pairs_PD, act)
        finally:
            self._ledger.finish(task)

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
        tiers = [self] if self.host is None else [self.host.store, self]
        for tier in tiers:  # whoever waits below, for one above, waits no longer
            tier._ledger.close()
        for tier in tiers:
            tier._arena.close()

    def check_integrity(self, *, records: bool = False) -> None:
        """
        Args:
            records: also that every slot holds what was written to the file; slow.

        Raises:
            AssertionError: what is kept here contradicts itself.
        """
        if self.host is not None:
            self.host.store.check_integrity(records=records)
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
        link = self._ledger.reader.times()
        file = link if self.host is None else self.host.store._ledger.reader.times()
        return stats_of(self.table, self._ledger.tally, self.layout, link=link, file=file)

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
            "times": None if self._sides is None else self._sides.times._asdict(),
        }
