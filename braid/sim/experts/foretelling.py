"""Predictions of later layers' routing with a published precision: an oracle that errs as often as it is told to.

Gates reused one layer ahead chose 88.6 % of Qwen3's experts rightly, and about 4 points less with every layer
(BigMoeOnEdge). Which of the predictions err is drawn at random; who is named instead is, too.
"""

from __future__ import annotations

import random

from braid.core.experts import ExpertShape
from braid.policy.experts.policy import Routed

PRECISION = 0.886
LESS_PER_LAYER = 0.04


class Oracle:
    def __init__(self, shape: ExpertShape, *, seed: int = 0) -> None:
        self._shape = shape
        self._rng = random.Random(f"oracle {seed}")

    def foretell(self, routed: Routed, distance: int) -> dict[int, int]:
        """Rows by expert, of a layer that comes ``distance`` layers later; as many rows as there will be."""
        right = PRECISION - LESS_PER_LAYER * (distance - 1)
        first, num = self._shape.id_of(routed.layer, 0), self._shape.per_layer
        found: dict[int, int] = {}
        wrong = 0
        for expert, load in routed.loads.items():
            kept = self._share_of(load, right)
            wrong += load - kept
            if kept:
                found[expert] = kept
        others = [expert for expert in range(first, first + num) if expert not in routed.loads]
        pool = others if len(others) >= wrong and not routed.is_prefill else range(first, first + num)
        for expert in (
            self._rng.sample(pool, wrong) if wrong <= len(pool) else self._rng.choices(pool, k=wrong)
        ):
            found[expert] = found.get(expert, 0) + 1
        return found

    def _share_of(self, load: int, part: float) -> int:
        """Each row is right or wrong; of many the share is taken."""
        if load > 16:
            return round(load * part)
        return sum(self._rng.random() < part for _ in range(load))
