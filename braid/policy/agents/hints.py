"""What clients say of their next turn, beside what was learnt: believed as far as it has come true."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from math import erf, isfinite, log, sqrt

from braid.core.program import RetainIntent
from braid.policy.agents.gap_model import EDGES, MIN_S, NEVER, bin_of

P90_OVER_MEDIAN = 4.0
"""Where a client names only one of the two."""
SMALLEST_SIGMA = 0.3
Z90 = 1.2816
"""The 90th percentile of the normal law."""
MOST_ODDS = 16.0
"""A client's word counts at most so many times as much as what was learnt, or as little."""
LARGEST_STEP = 4.0
"""By which one gap may change the odds."""
FADE = 0.95
"""What is left of the odds' logarithm after each gap."""
MAX_OWNERS = 1024


def hinted_shares(intent: RetainIntent | None) -> list[float] | None:
    """Of the gap model's bins, by a log-normal law with the median and the 90th percentile that a client names; None
    without a usable hint."""
    if intent is None:
        return None
    median, p90 = _positive(intent.return_s), _positive(intent.return_p90_s)
    if median is None and p90 is None:
        return None
    if median is None:
        assert p90 is not None, "one of two is there"
        median = p90 / P90_OVER_MEDIAN
    p90 = p90 or median * P90_OVER_MEDIAN
    sigma = max(SMALLEST_SIGMA, log(max(p90, median) / median) / Z90)
    below = [0.0, *((1 + erf(log(edge / median) / (sigma * sqrt(2)))) / 2 for edge in EDGES[1:-1]), 1.0]
    return [high - low for low, high in pairwise(below)] + [0.0]


def _positive(seconds: float | None) -> float | None:
    return None if seconds is None or not isfinite(seconds) or seconds <= 0 else max(seconds, MIN_S)


class HintTrust:
    """The odds of hints against what was learnt, per owner: multiplied by how much likelier the hint found each gap.

    So wrong hints lose their weight after a few turns, and only those of who sends them; the bound on the odds keeps
    the learnt law in sight, and lets a client that has mended its ways come back.
    """

    def __init__(self) -> None:
        self._odds: OrderedDict[str, float] = OrderedDict()

    def weight(self, owner: str) -> float:
        """Of the hint, in (0, 1)."""
        odds = self._odds.get(owner, 1.0)
        return odds / (1 + odds)

    def learn(self, owner: str, gap_s: float, hinted: Sequence[float], learnt: Sequence[float]) -> None:
        place = bin_of(gap_s)
        ratio = _between((hinted[place] + 1e-6) / (learnt[place] + 1e-6), LARGEST_STEP)
        self._odds[owner] = _between(self._odds.get(owner, 1.0) ** FADE * ratio, MOST_ODDS)
        self._odds.move_to_end(owner)
        if len(self._odds) > MAX_OWNERS:
            self._odds.popitem(last=False)

    def blend(self, owner: str, hinted: Sequence[float], learnt: Sequence[float]) -> list[float]:
        weight = self.weight(owner)
        # Nobody can say that a program surely returns: what was learnt of that stands.
        returns = 1 - learnt[NEVER]
        return [
            weight * returns * said + (1 - weight) * seen if place != NEVER else seen
            for place, (said, seen) in enumerate(zip(hinted, learnt, strict=True))
        ]


def _between(odds: float, most: float) -> float:
    return min(most, max(1 / most, odds))
