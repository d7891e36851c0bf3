"""One cache for every policy: experts have scores, and the admitted one with the least goes first."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable
from typing import Protocol

from braid.core.experts import ExpertShape
from braid.policy.experts.policy import Routed
from braid.policy.experts.ranking import Ranking


class Scores(Protocol):
    """What a policy knows of every expert, admitted or not."""

    def told(self, routed: Routed) -> Iterable[int]:
        """A layer's router has chosen; the experts whose keys have changed."""
        ...

    def key(self, expert: int) -> float:
        """Orders the experts of a layer; changes only for those that ``told`` names."""
        ...

    def shift(self, layer: int) -> float:
        """Added to the keys of a layer, it makes them comparable with those of others, at this moment."""
        ...

    def worth(self, expert: int) -> float:
        """The same order at this moment over all experts, on a scale of its own from 0 up."""
        ...


class RankedCache:
    """An `braid.policy.experts.policy.ExpertCache` of any scores.

    Args:
        bypasses: scores are good enough to turn newcomers away. None: with a ``global`` scope only; in a layer's own
            few slots the newest matter more than their scores say (Qwen3-30B-A3B's recorded routing, MRS, 16 slots of
            128: 62.8 % hits with it, 64.2 % without).
        edge: what an admitted expert is worth beyond its score when a newcomer is weighed against it.
    """

    def __init__(
        self,
        name: str,
        scope: str,
        shape: ExpertShape,
        scores: Scores,
        *,
        bypasses: bool | None = None,
        edge: float = 0.0,
    ) -> None:
        self.name = name
        self.scope = scope
        self.bypasses = scope == "global" if bypasses is None else bypasses
        self.scores = scores
        self._shape = shape
        self._edge = edge
        self._ranking = Ranking(shape.layers, scores.shift)

    def routed(self, routed: Routed) -> None:
        self._ranking.shifted(routed.layer)
        for expert in self.scores.told(routed):
            if expert in self._ranking:
                self._ranking.put(expert, routed.layer, self.scores.key(expert))

    def admitted(self, expert: int) -> None:
        self._ranking.put(expert, self._shape.layer_of(expert), self.scores.key(expert))

    def evicted(self, expert: int) -> None:
        self._ranking.drop(expert, self._shape.layer_of(expert))

    def victim(self, kept: Container[int], layers: Collection[int]) -> int | None:
        return self._ranking.least(layers, kept)

    def worth(self, expert: int) -> float:
        return self.scores.worth(expert) + (self._edge if expert in self._ranking else 0.0)
