"""When a waiting request may start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol


class PoolLoad(NamedTuple):
    """The block pool as a request at the head of the queue finds it.

    ``num_needed`` is what granting the request takes out of the ``num_free`` blocks, cached ones that it
    would revive included.
    """

    num_needed: int
    num_free: int
    num_blocks: int
    num_running: int


class Admission(Protocol):
    """Both questions are asked before every admission; the cheap one first."""

    def has_seat(self, num_running: int) -> bool: ...

    def admits(self, load: PoolLoad) -> bool: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class WatermarkAdmission:
    """Admits while there is a seat and a fraction of the blocks stays free for the growth of those that
    run.

    The watermark does not hold for a request that would run alone: it could never start otherwise.
    """

    max_num_seqs: int
    watermark: float = 0.01

    def has_seat(self, num_running: int) -> bool:
        return num_running < self.max_num_seqs

    def admits(self, load: PoolLoad) -> bool:
        spare = load.num_free - load.num_needed
        if load.num_running == 0:
            return spare >= 0
        return spare >= self.watermark * load.num_blocks
