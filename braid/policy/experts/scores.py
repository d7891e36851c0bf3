"""Scores that count uses: how recent, how many, and both together."""

from __future__ import annotations

from collections.abc import Iterable
from math import exp, inf, log

from braid.core.experts import ExpertShape
from braid.policy.experts.policy import Routed


class Recency:
    """LRU: when it was last used, over all layers. Of one step's experts the one with the lowest id goes first."""

    def __init__(self, shape: ExpertShape) -> None:
        self._last = [0.0] * shape.total
        self._now = 0

    def told(self, routed: Routed) -> Iterable[int]:
        for expert in sorted(routed.loads):
            self._now += 1
            self._last[expert] = self._now
        return routed.loads

    def key(self, expert: int) -> float:
        return self._last[expert]

    def shift(self, layer: int) -> float:
        return 0.0

    def worth(self, expert: int) -> float:
        return self._last[expert]


class Frequency:
    """LFU: steps that used it, ever; of equals the least recent goes first."""

    def __init__(self, shape: ExpertShape) -> None:
        self._uses = [0.0] * shape.total

    def told(self, routed: Routed) -> Iterable[int]:
        for expert in routed.loads:
            self._uses[expert] += 1
        return routed.loads

    def key(self, expert: int) -> float:
        return self._uses[expert]

    def shift(self, layer: int) -> float:
        return 0.0

    def worth(self, expert: int) -> float:
        return self._uses[expert]


class Fading:
    """Sums that fade: with every step of its layer an expert's is multiplied by ``keep``, then what it has earned is
    added.

    Kept as logarithms, as they were at step 0 of the layer: then only what earns has to be touched, and nothing
    underflows however long it has not been used.

    Args:
        keep: in (0, 1).
    """

    def __init__(self, shape: ExpertShape, keep: float) -> None:
        self._per_layer = shape.per_layer
        self._log_keep = log(keep)
        self._keys = [-inf] * shape.total
        self._steps = [0] * shape.layers

    def step(self, layer: int) -> None:
        """Everything of this layer fades."""
        self._steps[layer] += 1

    def earn(self, expert: int, earned: float) -> None:
        """After ``step``."""
        shift = self.shift(expert // self._per_layer)
        total = exp(self._keys[expert] + shift) + earned
        if total > 0:
            self._keys[expert] = log(total) - shift

    def key(self, expert: int) -> float:
        return self._keys[expert]

    def shift(self, layer: int) -> float:
        return self._steps[layer] * self._log_keep

    def worth(self, expert: int) -> float:
        return exp(self._keys[expert] + self.shift(expert // self._per_layer))


class FadingCount:
    """EWMA: uses, of which each counts ``keep`` times as much with every step of the layer."""

    def __init__(self, shape: ExpertShape, keep: float = 0.9) -> None:
        self._sums = Fading(shape, keep)
        self.key, self.shift, self.worth = self._sums.key, self._sums.shift, self._sums.worth

    def told(self, routed: Routed) -> Iterable[int]:
        self._sums.step(routed.layer)
        for expert in routed.loads:
            self._sums.earn(expert, 1.0)
        return routed.loads


class FrequencyOfRecent:
    """LFRU: uses ever, multiplied by ``keep`` for every step of the layer since the last one.

    Published ones divide by the age instead; then two experts may change places while nobody uses either, and no heap
    can hold them. Here the order changes by use alone.
    """

    def __init__(self, shape: ExpertShape, keep: float = 0.9) -> None:
        self._per_layer = shape.per_layer
        self._log_keep = log(keep)
        self._uses = [0] * shape.total
        self._keys = [-inf] * shape.total
        self._steps = [0] * shape.layers

    def told(self, routed: Routed) -> Iterable[int]:
        self._steps[routed.layer] += 1
        shift = self.shift(routed.layer)
        for expert in routed.loads:
            self._uses[expert] += 1
            self._keys[expert] = log(self._uses[expert]) - shift
        return routed.loads

    def key(self, expert: int) -> float:
        return self._keys[expert]

    def shift(self, layer: int) -> float:
        return self._steps[layer] * self._log_keep

    def worth(self, expert: int) -> float:
        return exp(self._keys[expert] + self.shift(expert // self._per_layer))
