"""Prometheus metrics of a store of experts: what is in memory, what had to be read, and what that cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client.core import Metric

from braid.core.experts import ExpertStats
from braid.server.observe.instruments import Labels, gauge, gauges, total, totals

_GAUGES: tuple[tuple[str, str, Callable[[ExpertStats], float]], ...] = (
    ("experts", "Routed experts of all layers", lambda experts: experts.total),
    ("expert_slots", "Experts that memory can hold", lambda experts: experts.slots),
    ("expert_slot_bytes", "Memory of one of them", lambda experts: experts.slot_bytes),
    ("expert_cycle", "Experts that one token uses", lambda experts: experts.cycle),
)
_COUNTERS: tuple[tuple[str, str, Callable[[ExpertStats], float]], ...] = (
    ("expert_stall_seconds", "Time in which steps stood still for experts", lambda experts: experts.stall_s),
    ("expert_compute_seconds", "Time in which steps computed experts", lambda experts: experts.compute_s),
    (
        "expert_link_busy_seconds",
        "Time in which experts were being read",
        lambda experts: experts.link_busy_s,
    ),
    (
        "expert_planning_seconds",
        "Time in which it was decided who reads what",
        lambda experts: experts.planning_s,
    ),
    (
        "expert_failed_reads",
        "Reads of experts that failed; their steps' requests failed too",
        lambda experts: experts.failed_reads,
    ),
)
_CAUSES = ("demand", "prefill", "prefetch")
_FATES = ("useful", "late", "wasted")
_SIDES = ("device", "host")


def expert_families(experts: ExpertStats, labels: Labels) -> Iterator[Metric]:
    """All of them, as they stand."""
    for name, help, value in _GAUGES:
        yield gauge(name, help, value(experts), labels)
    resident = {str(layer): float(use.resident) for layer, use in enumerate(experts.layers)}
    yield gauges("experts_resident", "Experts in memory, by layer of experts", "layer", resident, labels)
    uses: dict[Labels, float] = {
        (str(layer), outcome): float(count)
        for layer, use in enumerate(experts.layers)
        for outcome, count in (("hit", use.hits), ("miss", use.misses), ("bypass", use.bypasses))
    }
    help = "Experts that steps needed: in memory, read into memory, or used without a place there"
    yield totals("expert_uses", help, ("layer", "outcome"), uses, labels)
    sides: dict[Labels, float] = {(side,): float(experts.computed.get(side, 0)) for side in _SIDES}
    help = "Experts that steps computed: where the model is, or by the CPU below a GPU"
    yield totals("expert_computed", help, ("side",), sides, labels)
    read: dict[Labels, float] = {(cause,): float(experts.bytes_by_cause.get(cause, 0)) for cause in _CAUSES}
    yield totals("expert_read_bytes", "Read from the file of experts, by why", ("cause",), read, labels)
    early: dict[Labels, float] = {(fate,): float(experts.prefetched.get(fate, 0)) for fate in _FATES}
    yield totals("expert_prefetches", "Experts read ahead, by what became of them", ("fate",), early, labels)
    for name, help, value in _COUNTERS:
        yield total(name, help, value(experts), labels)
