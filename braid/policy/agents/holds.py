"""Hard holds of the baselines that pin: Continuum as published, and as released.

Neither holds anything for a turn that was aborted, nor where no tool is called. While it is not known how a turn ended,
the tool that its client named counts; the decision is made again when it is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from braid.policy.agents.costs import Costs
from braid.policy.agents.gaps import ToolGaps
from braid.policy.agents.policy import Keep, Rank
from braid.policy.agents.program import Finish, Program
from braid.policy.agents.ttl import ContinuumTTL, Hold, fixed_hold

FOUND_AT_LEAST = 0.5
"""Of what it could reuse: below that, the KV of a returning turn counts as evicted."""


class Pin2s:
    """Continuum's released code: the whole context for 2 s, or not at all."""

    is_ranked = False

    def __init__(self, gaps: ToolGaps | None = None) -> None:
        self._gaps = gaps or ToolGaps()

    def arrived(self, program: Program, gap_s: float, now: float) -> None:
        if program.tool is not None:
            self._gaps.add(program.tool, gap_s)

    def started(self, program: Program, waited_s: float, found: float, now: float) -> None:
        pass

    def ended(self, program: Program, now: float) -> Keep:
        if program.finish in (Finish.ABORT, Finish.STOP):
            return Keep()
        return _keep(fixed_hold(self._gaps, program.tool))

    def left(self, program: Program, now: float) -> None:
        pass

    def rank(self, program: Program, now: float) -> Rank:
        return _equal()


class Continuum:
    """Continuum as published (v6): see ``ContinuumTTL``.

    R(r) is the time to copy the context up where there is a tier below the device, and to prefill it where there is
    none. T is the mean over returning turns that found less than half of what they could reuse.
    """

    is_ranked = False

    def __init__(self, costs: Costs, ttl: ContinuumTTL | None = None) -> None:
        self._costs = costs
        self.ttl = ttl or ContinuumTTL()

    def arrived(self, program: Program, gap_s: float, now: float) -> None:
        if program.tool is not None:
            self.ttl.gaps.add(program.tool, gap_s)

    def started(self, program: Program, waited_s: float, found: float, now: float) -> None:
        if found < FOUND_AT_LEAST:
            self.ttl.waits.add(waited_s)

    def ended(self, program: Program, now: float) -> Keep:
        if program.tool is None or program.finish is Finish.ABORT:
            return Keep()
        return _keep(self.ttl.hold(program.tool, self.rebuild_s(program)))

    def left(self, program: Program, now: float) -> None:
        self.ttl.lengths.add(program.num_turns)

    def rank(self, program: Program, now: float) -> Rank:
        return _equal()

    def describe(self) -> Mapping[str, float]:
        """T, eta, and how many waits, lengths and gaps they and P rest on."""
        ttl = self.ttl
        return {
            "wait_mean_seconds": ttl.waits.value,
            "wait_samples": len(ttl.waits),
            "eta": ttl.lengths.value,
            "eta_samples": len(ttl.lengths),
            "gap_mean_seconds": ttl.gaps.all.mean,
            "gap_samples": len(ttl.gaps.all),
        }

    def rebuild_s(self, program: Program) -> float:
        """R(r): of the whole context, the paper does not ask what of it would survive."""
        reload_s = self._costs.reload_s(len(program.keys))
        return reload_s if isfinite(reload_s) else self._costs.prefill_s(program.num_tokens)


def _keep(hold: Hold) -> Keep:
    return Keep(hold_s=hold.seconds, source=hold.source)


def _equal() -> Rank:
    """Nobody asks for ranks where blocks go by their last use."""
    return Rank(0, 0.0, 1.0)
