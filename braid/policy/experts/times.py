"""What experts cost on this machine, learnt while serving: over the link, on the fast side, on the slow side."""

from __future__ import annotations

from collections import deque
from statistics import median

from braid.policy.agents.least_squares import LeastSquares
from braid.policy.experts.policy import ExpertTimes

LINK_BYTES = 20e9
"""Bytes per second from main memory to a GPU, until that is known."""
SLOW_BYTES = 15e9
"""That a CPU computes with, for one row."""
FAST_BYTES = 1e12
LAUNCH_S = 1e-4
"""To launch what computes one expert on a GPU."""
ROWS = 8
"""So many rows more cost a CPU as much as an expert more."""
WINDOW = 31
"""Fetches, of which the median is believed."""
BELIEVED = 8
"""Fetches as which the prior counts: the first ones are not like those to come."""
WARMING = 8
"""Layers of either side that are not believed: there, code is loaded and memory touched for the first time."""


def prior_times(record_bytes: int) -> ExpertTimes:
    """What is believed of an expert of so many bytes before anything is measured."""
    link_s, slow_s = record_bytes / LINK_BYTES, record_bytes / SLOW_BYTES
    return ExpertTimes(
        link_s=link_s,
        link_busy_s=link_s,
        fast_s=LAUNCH_S + record_bytes / FAST_BYTES,
        fast_row_s=record_bytes / FAST_BYTES,
        slow_s=slow_s,
        slow_row_s=slow_s / ROWS,
        slow_first_s=LAUNCH_S,
    )


class LearntTimes:
    """Begins with ``prior``; every measurement moves it. Used under one lock."""

    def __init__(self, prior: ExpertTimes) -> None:
        self.prior = prior
        self._links = {
            is_busy: deque([seconds] * BELIEVED, WINDOW)
            for is_busy, seconds in ((False, prior.link_s), (True, prior.link_busy_s))
        }
        self._fast = LeastSquares((prior.fast_s, prior.fast_row_s))
        self._slow = LeastSquares((prior.slow_first_s, prior.slow_s, prior.slow_row_s))
        self._num_fast = self._num_slow = 0
        self._times: ExpertTimes | None = prior

    def fetched(self, seconds: float, *, is_busy: bool) -> None:
        """One expert came over the link; ``is_busy``: the slow side computed meanwhile."""
        self._links[is_busy].append(seconds)
        self._times = None

    def fast(self, seconds: float, experts: int, rows: int) -> None:
        """The fast side computed so many experts with so many rows, all together."""
        self._num_fast += 1
        if self._num_fast > WARMING:
            self._fast.add((experts, rows), seconds)
            self._times = None

    def slow(self, seconds: float, experts: int, rows: int) -> None:
        """The same of the slow side, for one layer."""
        self._num_slow += 1
        if self._num_slow > WARMING:
            self._slow.add((1, experts, rows), seconds)
            self._times = None

    @property
    def times(self) -> ExpertTimes:
        """As believed now."""
        if self._times is None:
            link_s, busy_s = (median(self._links[is_busy]) for is_busy in (False, True))
            (fast_s, fast_row_s), (first_s, slow_s, slow_row_s) = (
                self._fast.coefficients,
                self._slow.coefficients,
            )
            self._times = ExpertTimes(
                link_s, max(link_s, busy_s), fast_s, fast_row_s, slow_s, slow_row_s, first_s
            )
        return self._times
