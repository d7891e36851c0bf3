"""Programs of tool-calling agents through the production scheduler, in virtual time, under any agent policy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any

from braid.core.errors import BraidError, CapacityError, InvalidParameterError
from braid.core.metrics import RequestTimes, jct
from braid.policy.agents.catalog import ORACLES, AgentSettings, agent_policy, oracle_policy
from braid.policy.agents.costs import CostPrior, Costs, LearntCosts
from braid.policy.agents.oracle import NextUse
from braid.policy.agents.policy import AgentPolicy
from braid.policy.agents.program import Program
from braid.sched.config import Policies, SchedulerConfig
from braid.sched.observer import Observer, Observers
from braid.sim.clients import Clients
from braid.sim.executor import StepTime, TierTime
from braid.sim.grain import Grained
from braid.sim.ledger import Ledger
from braid.sim.programs import Family, Place, Start, arrivals_of, draw_starts
from braid.sim.run import Arrival, SimReport, simulate


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentSetup:
    """All that a simulation is made of but its programs, its policy and its seed. Lengths are in tokens.

    Args:
        cost: of one step of the engine.
        machine: what ``cost`` stands for, in words.
        rate, num_programs: of the programs, per second.
        kv_tokens: that the device holds.
        host_kv_tokens, disk_kv_tokens: that the tiers below it hold; 0 for none.
        tiers: how fast these are, per block; None where there are none.
        max_model_len: of one request.
        max_num_seqs, max_num_batched_tokens: of one step.
        grain: steps that are simulated as one, see ``braid.sim.grain``.
        clients: what they say of their programs.

    Raises:
        InvalidParameterError: the grain does not divide the block size, or a tier has tokens and no times.
        CapacityError: one request does not fit.
    """

    cost: StepTime
    machine: str
    rate: float
    num_programs: int
    kv_tokens: int
    max_model_len: int
    host_kv_tokens: int = 0
    disk_kv_tokens: int = 0
    tiers: TierTime | None = None
    block_size: int = 256
    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    grain: int = 1
    clients: Clients = field(default_factory=Clients)
    settings: AgentSettings = field(default_factory=AgentSettings)

    def __post_init__(self) -> None:
        if self.grain < 1 or self.block_size % self.grain:
            raise InvalidParameterError(
                f"grain must divide the block size ({self.block_size}), got {self.grain}", param="grain"
            )
        for name in ("host_kv_tokens", "disk_kv_tokens"):
            if getattr(self, name) < 0:
                raise InvalidParameterError(
                    f"{name} must be at least 0, got {getattr(self, name)}", param=name
                )
        if self.has_lower and self.tiers is None:
            raise InvalidParameterError("tiers below the device need times", param="tiers")
        if self.kv_tokens < self.max_model_len:
            raise CapacityError(
                f"the KV store holds {self.kv_tokens} tokens, but one request may have {self.max_model_len}; "
                "choose a smaller context or more KV"
            )

    @property
    def has_lower(self) -> bool:
        return bool(self.host_kv_tokens or self.disk_kv_tokens)

    @property
    def scheduler(self) -> SchedulerConfig:
        """In units of ``grain`` tokens."""
        return SchedulerConfig(
            num_blocks=self.kv_tokens // self.block_size,
            block_size=self.block_size // self.grain,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_model_len=self.max_model_len // self.grain,
            num_host_blocks=self.host_kv_tokens // self.block_size,
            num_disk_blocks=self.disk_kv_tokens // self.block_size,
            max_waiting=max(10_000, 100 * self.num_programs),
        )

    def costs(self) -> LearntCosts:
        """What an engine starts with, in units."""
        prior, grain = CostPrior(), self.grain
        return LearntCosts(
            prior._replace(
                token_s=prior.token_s * grain,
                pair_s=prior.pair_s * grain * grain,
                decode_s=prior.decode_s * grain,
            ),
            has_lower=self.has_lower,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AgentRun:
    """What came of one policy and one seed, one value per program or turn, in seconds.

    Args:
        jct_s: of each family, from its root's first arrival to its last end.
        ttft_first_s: of each family's very first turn; ``ttft_later_s`` of all others.
        tokens: of prompts, by origin, see ``braid.sched.observer.Origins``.
        kept: what had become of what was kept, by name.
        tiers: by tier below the device, what became of blocks; see ``LowerTier.counts``.
    """

    policy: str
    seed: int
    jct_s: tuple[float, ...]
    ttft_first_s: tuple[float, ...]
    ttft_later_s: tuple[float, ...]
    tokens: Mapping[str, int]
    kept: Mapping[str, int]
    tiers: Mapping[str, Mapping[str, int]]
    num_preemptions: int
    num_refused: int
    num_steps: int
    num_extrapolated: int
    seconds: float


def run_agents(
    families: Sequence[Family],
    setup: AgentSetup,
    policy: str,
    seed: int,
    *,
    observer: Observer | None = None,
) -> AgentRun:
    """One simulation. Equal arguments give equal results. ``observer`` hears of every turn, in units of the grain.

    Raises:
        InvalidParameterError: there is no such policy, or nothing to simulate.
    """
    starts = draw_starts(families, setup.num_programs, setup.rate, seed)
    return run_starts(starts, setup, policy, seed, observer=observer)


def run_starts(
    starts: Sequence[Start], setup: AgentSetup, policy: str, seed: int, *, observer: Observer | None = None
) -> AgentRun:
    """The same of families whose times are known; ``seed`` is only noted.

    Raises:
        InvalidParameterError: there is no such policy.
    """
    arrivals, places = arrivals_of(starts, grain=setup.grain, clients=setup.clients, seed=seed)
    costs = setup.costs()
    agents = _policy(policy, setup.settings, costs, Future(arrivals))
    ledger = Ledger(setup.block_size // setup.grain)
    report = simulate(
        arrivals,
        setup.scheduler,
        Grained(setup.cost, setup.grain, setup.max_num_batched_tokens),
        Policies(agents=agents, costs=costs),
        tiers=setup.tiers if setup.has_lower else None,
        observer=ledger if observer is None else Observers(ledger, observer),
    )
    return _run(policy, seed, setup, report, ledger, starts, places)


def _policy(name: str, settings: AgentSettings, costs: Costs, next_use: NextUse) -> AgentPolicy:
    if name in ORACLES:
        return oracle_policy(name, next_use, costs, settings)
    return agent_policy(name, costs, settings)


class Future:
    """When programs come back, read from the trace: a ``NextUse``.

    A program that waits for its sub-agents comes back no sooner than after its gap from now on.
    """

    def __init__(self, arrivals: Sequence[Arrival]) -> None:
        self._delays: defaultdict[str, list[float]] = defaultdict(list)
        for arrival in arrivals:
            if arrival.program is not None:
                self._delays[arrival.program.program].append(arrival.delay)

    def __call__(self, program: Program, now: float) -> float:
        delays = self._delays[program.id.program] if program.id is not None else []
        if program.num_turns >= len(delays):
            return inf
        begin = now if program.num_working else program.last_active
        return max(now, begin + delays[program.num_turns])


def _run(
    policy: str,
    seed: int,
    setup: AgentSetup,
    report: SimReport,
    ledger: Ledger,
    starts: Sequence[Start],
    places: Sequence[Place],
) -> AgentRun:
    turns: defaultdict[int, list[RequestTimes]] = defaultdict(list)
    first: list[float] = []
    later: list[float] = []
    for times in report.requests:
        place = places[int(times.request_id)]
        turns[place.start].append(times)
        (later if place.turn else first).append(times.ttft)
    if not turns:
        raise BraidError(
            f"no turn could be simulated: {next(iter(report.refused.values()), 'there is none')}"
        )
    return AgentRun(
        policy=policy,
        seed=seed,
        jct_s=tuple(jct(turns[number]) for number in range(len(starts)) if turns[number]),
        ttft_first_s=tuple(first),
        ttft_later_s=tuple(later),
        tokens={name: count * setup.grain for name, count in ledger.tokens.items()},
        kept=dict(report.stats.programs_kept),
        tiers=dict(report.stats.tiers),
        num_preemptions=report.stats.num_preemptions,
        num_refused=len(report.refused),
        num_steps=report.stats.num_steps,
        num_extrapolated=report.num_extrapolated,
        seconds=report.seconds,
    )


def plain_setup(setup: AgentSetup) -> dict[str, Any]:
    """A setup as plain data, for results; the cost only in words."""
    names = [name for name in AgentSetup.__slots__ if name not in ("cost", "settings", "clients", "tiers")]
    tiers = None if setup.tiers is None else setup.tiers._asdict()
    settings = {name: getattr(setup.settings, name) for name in AgentSettings.__slots__}
    more = {"agent_settings": settings, "clients": asdict(setup.clients), "tiers": tiers}
    return {name: getattr(setup, name) for name in names} | more
