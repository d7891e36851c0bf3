"""What clients say of themselves: which programs have a name, and when they claim to come back."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from random import Random

from braid.core.errors import InvalidParameterError
from braid.core.program import RetainIntent

SHORTEST_S, LONGEST_S = 0.1, 3600.0
"""Bounds of what anybody claims."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Hints:
    """What clients say with a turn of the gap after it, as ``return_s``.

    Args:
        factor: of what is true that they say.
        noise: the deviation of the logarithm of a further factor, by chance, of each turn.
        pivot_s: where above 0 they lie: who stays away for ``x`` says ``pivot_s ** 2 / x``, so that the longest gap is
            called the shortest.
    """

    factor: float = 1.0
    noise: float = 0.0
    pivot_s: float = 0.0

    def __post_init__(self) -> None:
        for name, ok in (
            ("factor", self.factor > 0),
            ("noise", self.noise >= 0),
            ("pivot_s", self.pivot_s >= 0),
        ):
            if not ok:
                raise InvalidParameterError(f"{name} is too small: {getattr(self, name)!r}", param=name)

    def said(self, gap_s: float, chance: Random) -> RetainIntent:
        true = max(gap_s, SHORTEST_S)
        told = self.pivot_s**2 / true if self.pivot_s else true
        told *= self.factor * exp(self.noise * chance.gauss(0, 1))
        return RetainIntent(return_s=min(max(told, SHORTEST_S), LONGEST_S))


@dataclass(frozen=True, kw_only=True, slots=True)
class Clients:
    """Args:
    say_final: whether they say that no turn follows a program's last one.
    anonymous: share of families that name no program, so that every turn of theirs stands alone.
    hints: None where nobody says anything.
    """

    say_final: bool = False
    anonymous: float = 0.0
    hints: Hints | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.anonymous <= 1:
            raise InvalidParameterError(
                f"anonymous must be between 0 and 1, got {self.anonymous!r}", param="anonymous"
            )
