"""How long to hold a program's KV when its turn ends: the published policy, and what was released of it.

Both are baselines, kept as they are; what the paper leaves open is an argument and is written into every result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from typing import NamedTuple

from braid.policy.agents.gaps import Memoryfulness, SlidingMean, ToolGaps

COLD_SAMPLES = 100
"""K of the cold-start ladder."""
FIXED_S = 2.0


class Hold(NamedTuple):
    """Hold for ``seconds`` (0: not at all). ``source``: which step of the ladder said so."""

    seconds: float
    source: str


def best_ttl(gaps: Sequence[float], benefit: float) -> float:
    """The hold that maximises U(t) = P(gap <= t) * benefit - t over 0 and the gaps themselves; ties go to the smaller.

    Args:
        gaps: sorted, seconds; P is their empirical distribution.
        benefit: seconds that a return within the hold saves.

    Source: Continuum, arXiv 2511.02230 v6, the utility of a time-to-live.
    """
    best, best_utility = 0.0, 0.0
    num = len(gaps)
    for index, gap in enumerate(gaps):
        if index + 1 < num and gaps[index + 1] == gap:
            continue
        utility = (index + 1) / num * benefit - gap
        if utility > best_utility:
            best, best_utility = gap, utility
    return best


def exponential_ttl(benefit: float) -> float:
    """The same for gaps of an exponential law of mean 1 s: ln B where B > 1."""
    return log(benefit) if benefit > 1 else 0.0


@dataclass(slots=True)
class ContinuumTTL:
    """Continuum's hold at the end of a turn that calls a tool (paper v6).

    B(r) = T * eta + R(r): T the mean wait of returning turns whose KV was evicted, eta the memoryfulness of programs,
    R(r) the time to rebuild the context. KV size cancels out.
    """

    gaps: ToolGaps = field(default_factory=ToolGaps)
    waits: SlidingMean = field(default_factory=SlidingMean)
    lengths: Memoryfulness = field(default_factory=Memoryfulness)

    @property
    def is_cold(self) -> bool:
        """Whether there are too few samples for a law of gaps and for eta, which counts as 1 then."""
        return len(self.gaps.all) <= COLD_SAMPLES

    def benefit(self, rebuild_s: float) -> float:
        """B(r); ``rebuild_s`` is R(r)."""
        return self.waits.value * (1.0 if self.is_cold else self.lengths.value) + rebuild_s

    def hold(self, tool: str, rebuild_s: float) -> Hold:
        """The ladder: an assumed law, the pooled gaps, the tool's own."""
        benefit = self.benefit(rebuild_s)
        if self.is_cold:
            return Hold(exponential_ttl(benefit), "cold")
        own = self.gaps.of(tool)
        if len(own) <= COLD_SAMPLES:
            return Hold(best_ttl(self.gaps.all.sorted, benefit), "global")
        return Hold(best_ttl(own, benefit), "tool")


def fixed_hold(gaps: ToolGaps, tool: str | None) -> Hold:
    """What Continuum's public code does: 2 s, but nothing without a tool, or where the tool's mean gap is over 2 s."""
    if tool is None:
        return Hold(0.0, "none")
    own = gaps.of(tool)
    if own and sum(own) / len(own) > FIXED_S:
        return Hold(0.0, "tool")
    return Hold(FIXED_S, "tool" if own else "cold")
