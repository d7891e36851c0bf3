"""Steps of a model as its experts see them: who is needed in every layer, and by how many rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from braid.policy.experts.policy import Routed
from braid.sim.experts.routes import Route, Routes


class Step(NamedTuple):
    """Args:
    rows: of the whole batch.
    layers: in order; one that was not recorded is left out.
    """

    rows: int
    layers: tuple[Routed, ...]

    @property
    def is_prefill(self) -> bool:
        return bool(self.layers) and self.layers[0].is_prefill


def recorded(routes: Routes) -> list[Step]:
    """Every prompt as one step, and every token that follows as one."""
    groups: dict[tuple[int, bool, int], list[Route]] = {}
    for route in routes.routes:
        step = -1 if route.is_prefill else route.step
        groups.setdefault((route.turn, not route.is_prefill, step), []).append(route)
    return [_step(found) for _, found in sorted(groups.items(), key=lambda item: item[0])]


def _step(routes: Sequence[Route]) -> Step:
    by_layer: dict[int, list[Route]] = {}
    for route in routes:
        by_layer.setdefault(route.layer, []).append(route)
    rows = max(len(found) for found in by_layer.values())
    return Step(rows, tuple(_routed(layer, found) for layer, found in sorted(by_layer.items())))


def _routed(layer: int, routes: Iterable[Route]) -> Routed:
    """Weights of the chosen stand for scores."""
    loads: dict[int, int] = {}
    scores: dict[int, float] = {}
    rows = 0
    for route in routes:
        rows += 1
        for expert in route.experts:
            loads[expert] = loads.get(expert, 0) + 1
        for expert, weight in zip(route.experts, route.weights, strict=False):
            scores[expert] = scores.get(expert, 0.0) + weight
    return Routed(layer, loads, {expert: score / rows for expert, score in scores.items()}, route.is_prefill)
