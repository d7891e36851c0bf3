"""Placement that never changes: experts given beforehand, or those used most in the first steps."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from braid.core.experts import ExpertShape
from braid.policy.experts.policy import Routed

LEARNING_STEPS = 64
EDGE = 0.5
"""Half a use, so that who is in stays, unless a newcomer was used more often."""


class Placement:
    """Uses in the first steps of its layer, or 1 for a given expert and 0 for all others.

    It is fixed only where a newcomer that is worth less is not admitted, and one that is worth the same is not either
    (``EDGE``): what was learnt settles, and then every miss is bypassed.

    Args:
        experts: who is to stay; None: learn it.
        learning_steps: steps of a layer that count.
    """

    def __init__(
        self,
        shape: ExpertShape,
        experts: Collection[int] | None = None,
        learning_steps: int = LEARNING_STEPS,
    ) -> None:
        self._left = [0 if experts is not None else learning_steps] * shape.layers
        self._uses = [0.0] * shape.total
        for expert in experts or ():
            self._uses[expert] = 1.0

    def told(self, routed: Routed) -> Iterable[int]:
        if not self._left[routed.layer]:
            return ()
        self._left[routed.layer] -= 1
        for expert in routed.loads:
            self._uses[expert] += 1
        return routed.loads

    def key(self, expert: int) -> float:
        return self._uses[expert]

    def shift(self, layer: int) -> float:
        return 0.0

    def worth(self, expert: int) -> float:
        return self._uses[expert]
