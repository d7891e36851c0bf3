"""The contract between whoever holds experts (a store, or a replay of recorded routing) and what decides about them.

Experts are numbered over all layers (`braid.core.experts.ExpertShape`); a plan names experts, never positions in a
list.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from typing import NamedTuple, Protocol


class Routed(NamedTuple):
    """What the router of one layer chose in one step of the whole batch.

    Args:
        layer: among the MoE layers.
        loads: rows (tokens) of every expert that is needed, by id.
        scores: the router's scores, mean over the rows, at least of the largest ``2 * top_k``, by id; empty where they
            are not known (recorded routing may hold the weights of the chosen experts alone).
        is_prefill: most rows are of prompts.
    """

    layer: int
    loads: Mapping[int, int]
    scores: Mapping[int, float] = {}
    is_prefill: bool = False


class ExpertCache(Protocol):
    """Which expert goes when another needs its slot. Pure: it is told everything, and work is O(log n) per expert told.

    Who holds the slots (`braid.policy.experts.slots.SlotTable`) calls ``routed`` once per layer and step, before any
    ``victim`` for that layer, and ``admitted`` and ``evicted`` as slots change hands.
    """

    @property
    def name(self) -> str: ...

    @property
    def scope(self) -> str:
        """``global``: all layers share the slots; ``layer``: each has an equal part."""
        ...

    @property
    def bypasses(self) -> bool:
        """A miss that is worth less than every possible victim had better not be admitted."""
        ...

    def routed(self, routed: Routed) -> None:
        """A layer's router has chosen."""
        ...

    def admitted(self, expert: int) -> None:
        """It has a slot now."""
        ...

    def evicted(self, expert: int) -> None:
        """It has none any more."""
        ...

    def victim(self, kept: Container[int], layers: Collection[int]) -> int | None:
        """Who is missed least among the admitted of these layers, without those of ``kept`` (in use).

        None if there is nobody. Whether the newcomer is worth it is for the caller to judge, by ``worth``.
        """
        ...

    def worth(self, expert: int) -> float:
        """How much it would be missed: larger is kept longer. Comparable between experts at one moment only."""
        ...


class ExpertTimes(NamedTuple):
    """What one layer's experts cost on this machine (HybriMoE, section 2.1 of its summaries), all in seconds.

    Args:
        link_s: one expert over the link into fast memory, ``link_busy_s`` while the CPU computes too.
        fast_s: one expert where fast memory is computed with, whatever its load, plus ``fast_row_s`` per row.
        slow_s: one expert computed on the tier below, plus ``slow_row_s`` per row; infinite where that tier computes
            nothing (a disk).
        slow_first_s: added to the first expert of a layer there (cold processor cache).
    """

    link_s: float
    link_busy_s: float
    fast_s: float
    fast_row_s: float
    slow_s: float
    slow_row_s: float
    slow_first_s: float = 0.0


class Activated(NamedTuple):
    """An expert that a layer needs now.

    ``ready_s``: seconds until it is in fast memory; 0 if it is there, None if it is below and nobody fetches it yet.
    """

    expert: int
    load: int
    ready_s: float | None


class DispatchPlan(NamedTuple):
    """Who computes and fetches what, in order, and when all is predicted to be done.

    Every activated expert is in exactly one of ``fast`` and ``slow``; every expert of ``fetch`` is in ``fast``.
    """

    fast: tuple[int, ...]
    slow: tuple[int, ...]
    fetch: tuple[int, ...]
    makespan_s: float
    name: str
    """Which plan won: ``greedy``, ``all-slow``, ``all-fetched``."""
