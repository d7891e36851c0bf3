"""Policies by name, and every number in them that no paper prints.

A name says the whole: ``continuum``; ``braid-without-gate`` for Braid's with one part as in ``lru``; ``lru-with-gate``
for the other way round. Each call makes new objects, since policies learn.
"""

from __future__ import annotations

from dataclasses import dataclass

from braid.core.errors import InvalidParameterError
from braid.policy.agents.aging import Aging
from braid.policy.agents.costs import Costs
from braid.policy.agents.gap_model import GapModel
from braid.policy.agents.gaps import Memoryfulness, SlidingMean, ToolGaps
from braid.policy.agents.gate import Budget, Guests, WorkingSetGate
from braid.policy.agents.holds import Continuum, Pin2s
from braid.policy.agents.infercept import Batch, InferCept
from braid.policy.agents.oracle import Belady, NextUse, TrueContinuum
from braid.policy.agents.order import (
    LeastService,
    continuum,
    held_first,
    original_arrival,
    program_first,
    resident_first,
)
from braid.policy.agents.plain import LastInOrder, lru
from braid.policy.agents.policy import AgentPolicy, Retention
from braid.policy.agents.ranked import Ranked
from braid.policy.agents.ttl import ContinuumTTL
from braid.policy.agents.victim import LastProgram, Patient

DEFAULT = "braid"
NAMES = ("lru", "program-fcfs", "resident-first", "plas", "infercept", "pin-2s", "continuum", DEFAULT)
PARTS = ("order", "gate", "rank", "victim")
ABLATIONS = tuple(
    [f"{DEFAULT}-without-{part}" for part in PARTS] + [f"lru-with-{part}" for part in PARTS],
)
ORACLES = ("oracle", "continuum-oracle")
"""Of the simulator only: they are told the future."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentSettings:
    """What papers leave open, and what is Braid's own. Seconds; written into every result.

    Args:
        gap_samples: gaps that are remembered, of all tools and of each.
        waits: of returning turns that found less than half, of which T is the mean.
        lengths: programs that have ended, of which eta is reckoned.
        infercept_gap_s: a tool's gap before any was seen.
        plas_levels, plas_quantum_s, plas_promote: queues, the first threshold, and how many times its service a turn
            waits until it is promoted.
        newcomer_every, aged_every, aged_s, seniority_s: see ``Aging``.
        preemption_budget: see ``Patient``.
        gate_share, gate_lower_share: see ``WorkingSetGate``.
        newcomer_s, newcomer_share, overdue_s, overdue_share: its budgets; see ``Budget``.
        soon_s: see ``Ranked``.
        gap_weight: of a level of the gap model in the one below, in samples.
    """

    gap_samples: int = 4096
    waits: int = 256
    lengths: int = 256
    infercept_gap_s: float = 1.0
    plas_levels: int = 8
    plas_quantum_s: float = 2.0
    plas_promote: float = 8.0
    newcomer_every: int = 64
    aged_every: int = 64
    aged_s: float = 120.0
    seniority_s: float = 28_800.0
    preemption_budget: int = 3
    gate_share: float = 0.8
    gate_lower_share: float = 0.3
    newcomer_s: float = 60.0
    newcomer_share: float = 0.3
    overdue_s: float = 1800.0
    overdue_share: float = 0.05
    soon_s: float = 60.0
    gap_weight: float = 10.0

    def __post_init__(self) -> None:
        for name in ("gap_samples", "waits", "lengths", "plas_levels", "newcomer_every", "aged_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in (
            "plas_quantum_s",
            "gate_share",
            "newcomer_share",
            "overdue_share",
            "soon_s",
            "gap_weight",
        ):
            self._require(name, getattr(self, name) > 0, "above 0")
        for name in (
            "aged_s",
            "seniority_s",
            "gate_lower_share",
            "newcomer_s",
            "overdue_s",
            "preemption_budget",
        ):
            self._require(name, getattr(self, name) >= 0, "at least 0")

    def _require(self, name: str, ok: bool, valid: str) -> None:
        if not ok:
            raise InvalidParameterError(f"{name} must be {valid}, got {getattr(self, name)!r}", param=name)


def agent_policy(name: str, costs: Costs, settings: AgentSettings | None = None) -> AgentPolicy:
    """A new policy.

    Raises:
        InvalidParameterError: there is none of that name.
    """
    settings = settings or AgentSettings()
    if name in ABLATIONS:
        return _ablation(name, costs, settings)
    plain = lru()._replace(name=name)
    match name:
        case "lru":
            return plain
        case "program-fcfs":
            return plain._replace(order=program_first())
        case "resident-first":
            return plain._replace(order=resident_first())
        case "plas":
            order = LeastService(settings.plas_levels, settings.plas_quantum_s, settings.plas_promote)
            return plain._replace(order=order)
        case "infercept":
            return _infercept(costs, settings)
        case "pin-2s":
            retention: Retention = Pin2s(ToolGaps(settings.gap_samples))
            return AgentPolicy(name, held_first(), plain.gate, LastProgram(spares_final=True), retention)
        case "continuum":
            retention = Continuum(costs, _ttl(settings))
            return AgentPolicy(name, continuum(), plain.gate, LastProgram(), retention)
        case "braid":
            return _braid(costs, settings)
    raise unknown_policy(name)


def unknown_policy(name: str) -> InvalidParameterError:
    """What to tell who asks for a policy that there is not."""
    names = ", ".join((*NAMES, *ABLATIONS))
    return InvalidParameterError(
        f"unknown agent policy {name!r}; choose one of {names}", param="agent_policy"
    )


def oracle_policy(
    name: str, next_use: NextUse, costs: Costs, settings: AgentSettings | None = None
) -> AgentPolicy:
    """``oracle``: Braid's other decisions, and what is needed last is evicted first. ``continuum-oracle``: Continuum
    with the true gaps.

    Raises:
        InvalidParameterError: there is none of that name.
    """
    if name == "oracle":
        return agent_policy(DEFAULT, costs, settings)._replace(name=name, retention=Belady(next_use))
    if name == "continuum-oracle":
        retention = TrueContinuum(costs, next_use, _ttl(settings or AgentSettings()))
        return agent_policy("continuum", costs, settings)._replace(name=name, retention=retention)
    raise InvalidParameterError(
        f"unknown oracle {name!r}; choose one of {', '.join(ORACLES)}", param="agent_policy"
    )


def _infercept(costs: Costs, settings: AgentSettings) -> AgentPolicy:
    batch = Batch()
    gaps = ToolGaps(settings.gap_samples)
    retention = InferCept(costs, batch, settings.infercept_gap_s, gaps)
    order = original_arrival(started=batch.add)
    return lru()._replace(name="infercept", order=order, retention=retention)


def _ttl(settings: AgentSettings) -> ContinuumTTL:
    return ContinuumTTL(
        ToolGaps(settings.gap_samples), SlidingMean(settings.waits), Memoryfulness(settings.lengths)
    )


def _braid(costs: Costs, settings: AgentSettings, *, is_ranked: bool = True) -> AgentPolicy:
    guests = Guests()
    order = Aging(
        newcomer_every=settings.newcomer_every,
        aged_every=settings.aged_every,
        aged_s=settings.aged_s,
        seniority_s=settings.seniority_s,
        guests=guests,
    )
    gate = WorkingSetGate(
        share=settings.gate_share,
        lower_share=settings.gate_lower_share,
        newcomers=Budget(costs, after_s=settings.newcomer_s, share=settings.newcomer_share),
        overdue=Budget(costs, after_s=settings.overdue_s, share=settings.overdue_share),
        guests=guests,
    )
    model = GapModel(settings.gap_weight)
    retention = Ranked(costs, soon_s=settings.soon_s, guests=guests, is_ranked=is_ranked, model=model)
    return AgentPolicy(DEFAULT, order, gate, Patient(settings.preemption_budget), retention)


def _ablation(name: str, costs: Costs, settings: AgentSettings) -> AgentPolicy:
    """Parts of Braid's in the place of those of ``lru``."""
    base, _, part = name.rpartition("-")
    parts = {part} if base == "lru-with" else set(PARTS) - {part}
    plain, full = lru(), _braid(costs, settings, is_ranked="rank" in parts)
    return AgentPolicy(
        name,
        full.order if "order" in parts else plain.order,
        full.gate if "gate" in parts else plain.gate,
        full.victim if "victim" in parts else LastInOrder(),
        # The gate needs weights, whether or not eviction goes by rank.
        full.retention if parts & {"rank", "gate"} else plain.retention,
    )
