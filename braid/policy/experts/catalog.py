"""Expert caches by name. Each call makes a new one, since caches learn."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

from braid.core.errors import InvalidParameterError
from braid.core.experts import ExpertShape
from braid.policy.experts.belady import NextUse
from braid.policy.experts.cache import RankedCache, Scores
from braid.policy.experts.mrs import PAPER_ALPHA, RecentScores
from braid.policy.experts.scores import FadingCount, Frequency, FrequencyOfRecent, Recency
from braid.policy.experts.static import EDGE, LEARNING_STEPS, Placement

DEFAULT = "mrs"
STATIC = "static"
ORACLE = "belady"
_LEARNERS: Mapping[str, Callable[[ExpertShape], Scores]] = MappingProxyType(
    {
        "lru": Recency,
        "lfu": Frequency,
        "lfru": FrequencyOfRecent,
        "ewma": FadingCount,
        DEFAULT: RecentScores,
        "mrs-paper": lambda shape: RecentScores(shape, PAPER_ALPHA),
    }
)
NAMES = (*_LEARNERS, STATIC)
"""Those that a server can have."""
ALL_NAMES = (*NAMES, ORACLE)
SCOPES = ("global", "layer")


def expert_cache(
    name: str,
    shape: ExpertShape,
    *,
    scope: str = "global",
    experts: Collection[int] | None = None,
    learning_steps: int = LEARNING_STEPS,
    future: Sequence[Collection[int]] | None = None,
) -> RankedCache:
    """A new cache.

    Args:
        scope: ``global``: all layers share the slots; ``layer``: each has an equal part.
        experts: of ``static``: who stays; None: those used most in the first ``learning_steps`` steps of their layer.
        future: of ``belady``: the experts of every routing to come, in order.

    Raises:
        InvalidParameterError: there is none of that name or scope, or an offline one is not told the future.
    """
    if scope not in SCOPES:
        raise InvalidParameterError(
            f"scope of experts {scope!r} is not known; choices: {', '.join(SCOPES)}", param="scope"
        )
    if name == STATIC:
        placement = Placement(shape, experts, learning_steps)
        return RankedCache(name, scope, shape, placement, bypasses=True, edge=EDGE)
    if name == ORACLE:
        if future is None:
            raise InvalidParameterError(
                f"{name} is told the future: recorded routing can be replayed with it, nothing else; "
                f"choices: {', '.join(NAMES)}",
                param="policy",
            )
        return RankedCache(name, scope, shape, NextUse(shape, future))
    if name not in _LEARNERS:
        raise InvalidParameterError(
            f"expert cache {name!r} is not known; choices: {', '.join(ALL_NAMES)}", param="policy"
        )
    return RankedCache(name, scope, shape, _LEARNERS[name](shape))


def unknown_cache(name: str) -> InvalidParameterError:
    """What to tell who asks a server for a cache that it cannot have."""
    return InvalidParameterError(
        f"unknown expert cache {name!r}; choose one of {', '.join(NAMES)}", param="expert_cache"
    )
