"""What one call of a layer has still to do: experts to compute, to wait for, and to find room for."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from braid.runner.experts.reader import Cause, ExpertReadError, Read


@dataclass(slots=True, eq=False)
class Task:
    """Every expert of ``loads`` is in one of ``ready``, ``waiting``, ``later`` until it is handed out, or in ``slow``.

    Args:
        loads: rows of every expert that the layer needs, by id.
        cause: why it reads.
        ready: arena rows of experts that may be computed now, heaviest first.
        waiting: reads under way.
        later: experts without a row, heaviest first.
        staged: experts for which it uses a staging row now.
        slow: others, which the tier below computes.
    """

    layer: int
    loads: Mapping[int, int]
    cause: Cause
    ready: dict[int, int] = field(default_factory=dict)
    waiting: dict[int, Read] = field(default_factory=dict)
    later: deque[int] = field(default_factory=deque)
    staged: set[int] = field(default_factory=set)
    slow: frozenset[int] = frozenset()

    @property
    def is_over(self) -> bool:
        return not (self.ready or self.waiting or self.later)

    def settle(self) -> None:
        """Move what has landed to what may be computed.

        Raises:
            ExpertReadError: one of its reads has failed.
        """
        for expert, read in list(self.waiting.items()):
            if read.is_settled:
                del self.waiting[expert]
                if read.error is not None:
                    raise ExpertReadError(str(read.error))
                self.ready[expert] = read.row

    def take(self, most: int) -> dict[int, int]:
        """Rows of the experts to compute next.

        All that are ready; but as long as others have no row, those in staging rows first, so that these are free
        again while the others are computed, and no more than ``most`` at a time.
        """
        if not self.later:
            group, self.ready = self.ready, {}
            return group
        first = [expert for expert in self.ready if expert in self.staged] or list(self.ready)
        return {expert: self.ready.pop(expert) for expert in first[:most]}
