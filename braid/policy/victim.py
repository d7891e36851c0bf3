"""Who gives up its blocks when the pool is empty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from braid.core.request import Request


class Victim(Protocol):
    def choose(self, candidates: Sequence[Request]) -> Request:
        """``candidates`` are the preemptible running requests, earliest in order first; never empty."""
        ...


class LastInOrder:
    """The one that would run last: the earliest request always advances, so preemption cannot livelock."""

    def choose(self, candidates: Sequence[Request]) -> Request:
        return candidates[-1]
