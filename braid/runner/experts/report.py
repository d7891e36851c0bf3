"""What a store tells of itself, as plain numbers."""

from __future__ import annotations

from braid.core.experts import ExpertLayout, ExpertStats, LayerUse
from braid.policy.experts.slots import PHASES, SlotTable
from braid.runner.experts.reader import ReaderTimes
from braid.runner.experts.tally import Tally


def stats_of(
    table: SlotTable, tally: Tally, layout: ExpertLayout, *, link: ReaderTimes, file: ReaderTimes
) -> ExpertStats:
    """
    Args:
        link: what fills the slots; ``file``: what reads the file, the same where nothing lies between.
    """
    shape, early, seconds = table.shape, table.prefetches, tally.total()
    layers = tuple(_layer_use(table, layer) for layer in range(shape.layers))
    num_used = sum(layer.hits + layer.misses + layer.bypasses for layer in layers)
    return ExpertStats(
        total=shape.total,
        slots=table.num_slots,
        slot_bytes=layout.record_bytes,
        cycle=shape.cycle,
        layers=layers,
        bytes_by_cause={cause.label: count for cause, count in file.bytes.items()},
        prefetched={"useful": early.useful, "late": early.late, "wasted": early.wasted},
        stall_s=seconds.stall,
        compute_s=seconds.compute,
        link_busy_s=link.busy_s,
        planning_s=seconds.planning,
        failed_reads=file.failed,
        computed={"device": num_used - tally.slow, "host": tally.slow},
    )


def _layer_use(table: SlotTable, layer: int) -> LayerUse:
    counts = [table.counts[phase][layer] for phase in PHASES]
    return LayerUse(
        table.held(layer),
        sum(count.hits + count.joins for count in counts),
        sum(count.misses for count in counts),
        sum(count.bypasses for count in counts),
    )
