"""The admitted experts in the order in which they go: a heap for each layer, cleared of old entries as they surface."""

from __future__ import annotations

from collections.abc import Callable, Collection, Container
from heapq import heapify, heappop, heappush
from math import inf

_Entry = tuple[float, int, int]
"""Key, when it was told, expert. Of equal keys the one told about longest ago goes first."""
_NOBODY: _Entry = (inf, 0, -1)
_SLACK = 64
"""Old entries that a heap may hold beyond as many as it has living ones."""


class Ranking:
    """Every expert that is in it has a key; the least is the first to go.

    Keys are compared within a layer as they are, and between layers with their layer's ``shift`` added: that is how a
    decay that is common to all experts of a layer costs nothing per expert.

    Args:
        shift: of a layer, now; whoever changes it says so with ``shifted``.
    """

    def __init__(self, layers: int, shift: Callable[[int], float]) -> None:
        self._shift = shift
        self._entries: dict[int, _Entry] = {}
        self._heaps: list[list[_Entry]] = [[] for _ in range(layers)]
        self._sizes = [0] * layers
        self._told = 0
        self._firsts = [_NOBODY] * layers
        """The first of every layer, its shift added."""
        self._changed: set[int] = set()
        """Layers whose first is to be looked up."""

    def __contains__(self, expert: int) -> bool:
        return expert in self._entries

    def shifted(self, layer: int) -> None:
        self._changed.add(layer)

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
        self._changed.add(layer)

    def drop(self, expert: int, layer: int) -> None:
        """It is in no longer."""
        del self._entries[expert]
        self._sizes[layer] -= 1
        self._changed.add(layer)

    def least(self, layers: Collection[int], kept: Container[int]) -> int | None:
        """Who goes first of these layers, but for those of ``kept``; None if there is nobody."""
        for layer in self._changed:
            self._firsts[layer] = self._moved(layer, self._head(layer))
        self._changed.clear()
        first = min(map(self._firsts.__getitem__, layers), default=_NOBODY)
        if first[2] in kept:
            first = min((self._unkept(layer, kept) for layer in layers), default=_NOBODY)
        return first[2] if first is not _NOBODY else None

    def _moved(self, layer: int, entry: _Entry | None) -> _Entry:
        return _NOBODY if entry is None else (entry[0] + self._shift(layer), entry[1], entry[2])

    def _head(self, layer: int) -> _Entry | None:
        heap = self._heaps[layer]
        while heap and self._entries.get(heap[0][2]) is not heap[0]:
            heappop(heap)
        return heap[0] if heap else None

    def _unkept(self, layer: int, kept: Container[int]) -> _Entry:
        """The first of a layer that is not kept; those before it stay where they are."""
        if self._firsts[layer][2] not in kept:
            return self._firsts[layer]
        passed: list[_Entry] = []
        while (entry := self._head(layer)) is not None and entry[2] in kept:
            passed.append(heappop(self._heaps[layer]))
        for each in passed:
            heappush(self._heaps[layer], each)
        return self._moved(layer, entry)
