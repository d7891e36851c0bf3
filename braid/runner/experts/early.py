"""Reads of experts that nobody needs yet: what is foreseen, and the one read that may be under way for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from math import inf
from typing import NamedTuple

from braid.layers.moe import Routed
from braid.policy.experts.policy import ExpertTimes
from braid.policy.experts.policy import Routed as Told
from braid.policy.experts.prefetch import Prefetcher
from braid.policy.experts.slots import ABSENT, Load, SlotTable
from braid.runner.experts.tally import Tally


class Predicted(NamedTuple):
    """What the router of ``layer`` would choose for rows as they are ``distance`` layers before it."""

    layer: int
    distance: int
    routed: Routed


class _Here(threading.local):
    """When this thread began the first layer of a step of decodes, and with how many rows; 0 before that."""

    def __init__(self) -> None:
        self.begin = 0.0
        self.rows = 0


class Early:
    """Tells a prefetcher what happens in steps of decodes, and asks it. Used under its store's lock.

    Args:
        mode: ``off``, ``on`` or ``auto``.
        times: what experts cost, where that is learnt; None: as the store counts it, and nothing is computed below.
    """

    def __init__(self, table: SlotTable, mode: str, times: Callable[[], ExpertTimes] | None = None) -> None:
        prefetcher = Prefetcher(table, mode=mode)
        self._table, self._times = table, times
        self._prefetcher = None if mode == "off" else prefetcher
        self._here = _Here()

    @property
    def is_on(self) -> bool:
        """Later layers' routers are to be asked."""
        return self._prefetcher is not None and self._prefetcher.is_on

    def routed(self, told: Told, rows: int) -> None:
        """Before the table is asked."""
        prefetcher = self._prefetcher
        if prefetcher is None or told.is_prefill:
            return
        if told.layer == 0:
            self._here.begin, self._here.rows = time.perf_counter(), rows
        missing = sum(self._table.slot_of(expert) == ABSENT for expert in told.loads)
        prefetcher.routed(told.layer, told.loads, missing)

    def computed(self, layer: int) -> None:
        """The thread that asked for this layer has it."""
        here = self._here
        if self._prefetcher is not None and here.begin and layer == self._table.shape.layers - 1:
            self._prefetcher.step_took(time.perf_counter() - here.begin, here.rows)
            here.begin = 0.0

    def predicted(self, told: Told, distance: int, seconds: float) -> None:
        if self._prefetcher is not None:
            self._prefetcher.predicted(told.layer, distance, told.loads, told.scores, seconds)

    def next(self, tally: Tally, record_s: float) -> Load | None:
        """What to read now that the link is idle. ``landed`` must follow.

        Args:
            record_s: that a record takes on the link; 0 where nobody knows yet.
        """
        prefetcher = self._prefetcher
        if prefetcher is None or not tally.fast.count or not record_s:
            return None
        if self._times is None:
            times = ExpertTimes(record_s, record_s, tally.fast.value, 0.0, inf, 0.0)
        else:
            times = self._times()
        found = prefetcher.next(times, link_idle=True)
        if found is None:
            return None
        load = self._table.prefetch(found.expert)
        if load is None:
            prefetcher.landed(found.expert)
        return load

    def landed(self, expert: int) -> None:
        """A read has ended, or is taken back."""
        if self._prefetcher is not None:
            self._prefetcher.landed(expert)

    def describe(self) -> dict[str, float | str]:
        """What was learnt."""
        return {} if self._prefetcher is None else self._prefetcher.describe()
