"""MRS, "minus recent score" (HybriMoE, arXiv 2504.05897): who goes is known by the router's scores of late."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from braid.core.experts import ExpertShape
from braid.policy.experts.policy import Routed
from braid.policy.experts.scores import Fading

ALPHA = 0.1
"""Ours: long memory. See ``PAPER_ALPHA``."""
PAPER_ALPHA = 0.5
"""As in the released code; what the paper used is not known."""


class RecentScores:
    """``S <- alpha * TopP(s) + (1 - alpha) * S`` after every routing of the layer, S 0 at first.

    ``TopP`` keeps the p largest scores, p = ``2 * top_k``, and sets all others to 0, but for experts that this step
    needs: of several rows the scores are the mean, and who is needed by one of them may not be among its largest. Where
    the scores are not known, an expert's share of the rows stands for them.

    Args:
        alpha: in (0, 1); how much the newest scores weigh.
    """

    def __init__(self, shape: ExpertShape, alpha: float = ALPHA) -> None:
        self._alpha = alpha
        self._top_p = 2 * shape.top_k
        self._sums = Fading(shape, 1.0 - alpha)
        self.key, self.shift, self.worth = self._sums.key, self._sums.shift, self._sums.worth

    def told(self, routed: Routed) -> Iterable[int]:
        scores = routed.scores or _shares(routed.loads)
        if len(scores) > self._top_p:
            best = sorted(scores, key=scores.__getitem__, reverse=True)[: self._top_p]
            scores = {expert: scores[expert] for expert in {*best, *routed.loads} if expert in scores}
        self._sums.step(routed.layer)
        for expert, score in scores.items():
            self._sums.earn(expert, self._alpha * score)
        return scores


def _shares(loads: Mapping[int, int]) -> Mapping[int, float]:
    total = sum(loads.values())
    return {expert: load / total for expert, load in loads.items()}
