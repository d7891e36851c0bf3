"""Experts in main memory below a device's slots: copied up from there, or computed with by the CPU meanwhile.

The calling thread gives the device what it holds, computes the CPU's experts while the device and the link are at
theirs, and puts the rows of both together. Each pair's row comes from one side; experts are named by id throughout.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from braid.core.faults import Faults
from braid.layers.moe import Routed
from braid.policy.experts.policy import Routed as Told
from braid.runner.experts.arena import DeviceArena
from braid.runner.experts.reader import Cause, Read

if TYPE_CHECKING:
    from braid.runner.experts.store import ExpertStore


class Inputs(NamedTuple):
    """Of a layer, in main memory."""

    x_TD: Tensor
    ids_Tk: Tensor


class Rows(NamedTuple):
    """What the CPU made: rows of the pairs ``places``, and how long it computed."""

    places_N: Tensor
    rows_ND: Tensor
    seconds: float


class HostTier:
    """
    Args:
        store: of the same file, in main memory.
    """

    def __init__(self, store: ExpertStore) -> None:
        self.store = store
        self._computing: set[int] = set()
        """Threads that compute here now."""

    @property
    def is_computing(self) -> bool:
        return bool(self._computing)

    def inputs(self, x_TD: Tensor, routed: Routed) -> Inputs:
        """To be asked for before the device is given more to do: copies wait for that."""
        return Inputs(x_TD.cpu(), routed.ids_Tk.cpu())

    def hear(self, told: Told, held: Collection[int]) -> None:
        """What a step needs, but for those that the device holds: these need no room here."""
        missing = {expert: load for expert, load in told.loads.items() if expert not in held}
        scores = {expert: score for expert, score in told.scores.items() if expert not in held}
        if missing:
            self.store.hear(told._replace(loads=missing, scores=scores))

    def compute(self, told: Told, slow: Collection[int], inputs: Inputs, act: str) -> Rows:
        """
        Args:
            slow: the experts.

        Raises:
            ExpertReadError: one cannot be read from the file.
        """
        thread = threading.get_ident()
        self._computing.add(thread)
        try:
            mine = told._replace(loads={expert: told.loads[expert] for expert in slow}, scores={})
            pairs_PD, seconds = self.store.pairs(mine, *inputs, act=act)
        finally:
            self._computing.discard(thread)
        first = told.layer * self.store.shape.per_layer
        indices = [expert - first for expert in slow]
        places_N = torch.from_numpy(np.flatnonzero(np.isin(inputs.ids_Tk.numpy(), indices)))
        return Rows(places_N, pairs_PD[places_N], seconds)


def put_rows(rows: Rows, pairs_PD: Tensor) -> None:
    """Into a layer's pairs, wherever these are."""
    places_N, rows_ND = rows.places_N, rows.rows_ND
    if pairs_PD.is_cuda:
        places_N, rows_ND = (
            part.pin_memory().to(pairs_PD.device, non_blocking=True) for part in (places_N, rows_ND)
        )
    pairs_PD.index_copy_(0, places_N, rows_ND)


class HostSource:
    """Fills a device's rows from a host tier, which reads from the file what it has not.

    Args:
        faults: place ``experts.fetch``; its phase is the cause.
    """

    def __init__(self, tier: HostTier, arena: DeviceArena, faults: Faults | None = None) -> None:
        self._tier, self._arena = tier, arena
        self._link = threading.Lock()
        self.fill = (faults or Faults()).around("experts.fetch", self._fill, lambda read: read.cause.label)

    @property
    def is_direct(self) -> bool:
        return self._tier.store.is_direct

    def close(self) -> None:
        pass

    def _fill(self, read: Read) -> None:
        is_prefill = read.urgency is not Cause.DEMAND
        with self._tier.store.held(read.expert, is_prefill=is_prefill) as record_B, self._link:
            # One at a time: there is one link, and so it is known how long it takes.
            begin, read.is_busy = time.perf_counter(), self._tier.is_computing
            self._arena.put(read.row, record_B)
            read.link_s = time.perf_counter() - begin
