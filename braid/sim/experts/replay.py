"""Recorded routing against a cache of experts: who would have been there.

Caches start empty and run through the prompt, one token after another; hits are counted in decode. Experts that a layer
is computing with are no victims.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from braid.core.errors import InvalidParameterError
from braid.core.experts import ExpertShape
from braid.policy.experts.catalog import ORACLE, STATIC, expert_cache
from braid.policy.experts.policy import Routed
from braid.policy.experts.slots import Counts, SlotTable
from braid.sim.experts.routes import Route, Routes


class Rules(NamedTuple):
    """When a miss is admitted.

    Args:
        floor: slots of a layer that others never take.
        bypass: a miss that is worth less than its victim is not admitted.

    None: as the server has it (`braid.policy.experts.slots.SlotTable`).
    """

    floor: int | None
    bypass: bool | None


EVERY_MISS = Rules(floor=0, bypass=False)
"""As published comparisons count: every miss is admitted, and no layer has a floor."""
SERVED = Rules(floor=None, bypass=None)
"""As a server does."""
RULES = {"every-miss": EVERY_MISS, "served": SERVED}


@dataclass(frozen=True, kw_only=True, slots=True)
class Replay:
    """What came of one cache.

    Args:
        slots: of all layers together.
        decode, prefill: by layer.
    """

    policy: str
    scope: str
    slots: int
    decode: tuple[Counts, ...]
    prefill: tuple[Counts, ...]

    @property
    def decode_hit_rate(self) -> float:
        """Of what decode wanted; 0 where there was no decode."""
        return sum(self.decode, Counts()).hit_rate

    @property
    def bypass_rate(self) -> float:
        """Of what decode wanted: computed without a slot."""
        counts = sum(self.decode, Counts())
        return counts.bypasses / counts.wanted if counts.wanted else 0.0

    @property
    def by_layer(self) -> list[float]:
        return [counts.hit_rate for counts in self.decode]


def replay(routes: Routes, policy: str, slots: int, *, scope: str, rules: Rules = EVERY_MISS) -> Replay:
    """Run through a recording with one cache.

    Args:
        slots: of all layers together; with the scope ``layer`` each has an equal part, and the first ones what is left.
        rules: ``static`` bypasses whatever they say, and ``belady`` admits every miss.

    Raises:
        InvalidParameterError: there is no such policy, or too few slots for one layer of one token.
    """
    shape = routes.shape
    _check(shape, slots, scope)
    rules = EVERY_MISS if policy == ORACLE else rules
    future = [route.experts for route in routes.routes] if policy == ORACLE else None
    cache = expert_cache(policy, shape, scope=scope, future=future)
    bypass = True if policy == STATIC else rules.bypass
    table = SlotTable(shape, slots, cache, floor=rules.floor, bypass=bypass)
    for route in routes.routes:
        demand = table.use(routed_of(route))
        for load in demand.loads:
            table.loaded(load.expert)
        table.release(route.experts)
    return Replay(
        policy=policy,
        scope=scope,
        slots=slots,
        decode=tuple(table.counts["decode"]),
        prefill=tuple(table.counts["prefill"]),
    )


def routed_of(route: Route) -> Routed:
    """A token's routing as caches are told it: the recorded weights stand for the scores."""
    scores = dict(zip(route.experts, route.weights, strict=True)) if route.weights else {}
    return Routed(route.layer, dict.fromkeys(route.experts, 1), scores, route.is_prefill)


def ceiling(routes: Sequence[Route]) -> float:
    """Decode's hit rate if nothing ever went: all but first touches, after the recorded prefill."""
    touched: set[int] = set()
    wanted = hits = 0
    for route in routes:
        if not route.is_prefill:
            wanted += len(route.experts)
            hits += sum(expert in touched for expert in route.experts)
        touched.update(route.experts)
    return hits / wanted if wanted else 0.0


def _check(shape: ExpertShape, slots: int, scope: str) -> None:
    least = shape.top_k * (shape.layers if scope == "layer" else 1)
    if not least <= slots <= shape.total:
        raise InvalidParameterError(
            f"{slots:,} slots in all cannot be: {least:,} hold one layer of one token"
            f"{' in every layer' if scope == 'layer' else ''}, and there are {shape.total:,} experts",
            param="slots",
        )
