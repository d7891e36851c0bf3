"""The admitted experts in the order in which they go: a heap for each layer, cleared of old entries as they surface."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container
from heapq import heapify, heappop, heappush

_Entry = tuple[float, int, int]
"""Key, when it was told, expert. Of equal keys the one told about longest ago goes first."""
_SLACK = 64
"""Old entries that a heap may hold beyond as many as it has living ones."""


class Ranking:
    """Every expert that is in it has a key; the least is the first to go.

    Keys are compared within a layer as they are, and between layers with their layer's ``shift`` added: that is how a
    decay that is common to all experts of a layer costs nothing per expert.
    """

    def __init__(self, layers: int) -> None:
        self._entries: dict[int, _Entry] = {}
        self._heaps: list[list[_Entry]] = [[] for _ in range(layers)]
        self._sizes = [0] * layers
        self._told = 0

    def __contains__(self, expert: int) -> bool:
        return expert in self._entries

    def put(self, expert: int, layer: int, key: float) -> None:
        """It is in now, with this key."""
        self._told += 1
        if expert not in self._entries:
            self._sizes[layer] += 1
        entry = self._entries[expert] = key, self._told, expert
        heap = self._heaps[layer]
        heappush(heap, entry)
        if len(heap) > 2 * self._sizes[layer] + _SLACK:
            heap[:] = [each for each in heap if self._entries.get(each[2]) is each]
            heapify(heap)

    def drop(self, expert: int, layer: int) -> None:
        """It is in no longer."""
        del self._entries[expert]
        self._sizes[layer] -= 1

    def least(
        self, layers: Collection[int], kept: Container[int], shift: Callable[[int], float]
    ) -> int | None:
        """Who goes first of these layers, but for those of ``kept``; None if there is nobody."""
        best, found = None, None
        for layer in layers:
            entry = self._head(layer)
            if entry is not None and entry[2] in kept:
                entry = self._beyond(layer, kept)
            if entry is not None:
                rank = entry[0] + shift(layer), entry[1]
                if best is None or rank < best:
                    best, found = rank, entry[2]
        return found

    def _head(self, layer: int) -> _Entry | None:
        heap = self._heaps[layer]
        while heap and self._entries.get(heap[0][2]) is not heap[0]:
            heappop(heap)
        return heap[0] if heap else None

    def _beyond(self, layer: int, kept: Container[int]) -> _Entry | None:
        """The first that is not kept; those before it stay where they are."""
        passed: list[_Entry] = []
        while (entry := self._head(layer)) is not None and entry[2] in kept:
            passed.append(heappop(self._heaps[layer]))
        for each in passed:
            heappush(self._heaps[layer], each)
        return entry
