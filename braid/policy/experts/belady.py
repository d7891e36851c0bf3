"""The best eviction there can be (Belady, IBM Systems Journal 5, 1966): for replays, since it is told the future."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from math import inf

from braid.core.experts import ExpertShape
from braid.policy.experts.policy import Routed


class NextUse:
    """When it is used next: the farther away, the sooner it goes.

    Args:
        future: the experts of every call of ``told`` to come, in order.
    """

    def __init__(self, shape: ExpertShape, future: Sequence[Collection[int]]) -> None:
        self._uses: list[list[int]] = [[] for _ in range(shape.total)]
        for when in range(len(future) - 1, -1, -1):
            for expert in future[when]:
                self._uses[expert].append(when)
        self._now = -1

    def told(self, routed: Routed) -> Iterable[int]:
        """
        Raises:
            ValueError: this is not the future that was told.
        """
        self._now += 1
        for expert in routed.loads:
            uses = self._uses[expert]
            if not uses or uses.pop() != self._now:
                raise ValueError(f"expert {expert} was not foretold for routing {self._now}")
        return routed.loads

    def key(self, expert: int) -> float:
        uses = self._uses[expert]
        return -float(uses[-1]) if uses else -inf

    def shift(self, layer: int) -> float:
        return 0.0

    def worth(self, expert: int) -> float:
        uses = self._uses[expert]
        return 1.0 / (1 + uses[-1] - self._now) if uses else 0.0
