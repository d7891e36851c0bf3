"""``braid sim agents``: a trace of agents' programs in virtual time, under any agent policies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Group, Parameter

from braid.cli.sim.machine import ENGINE, MachineFlags
from braid.cli.trace.load import Format
from braid.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from braid.lab.programs.families import FamilyOptions
    from braid.policy.agents.catalog import AgentSettings
    from braid.sim.agents import AgentSetup
    from braid.sim.executor import TierTime
    from braid.sim.platform import Platform

PROGRAMS = Group("Programs", sort_key=1)
RUNS = Group("Runs", sort_key=3)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramFlags:
    """What is taken of the trace."""

    trace: Annotated[
        Path, Parameter(group=PROGRAMS, help="A trace with programs: a file, plain or .gz, or a folder.")
    ]
    format: Annotated[Format, Parameter(group=PROGRAMS)] = "auto"
    lengths: Annotated[
        Path | None,
        Parameter(
            group=PROGRAMS,
            help="Another trace whose prompts' lengths are used where this one has none.",
            show_default="none",
        ),
    ] = None
    rate: Annotated[float, Parameter(group=PROGRAMS, help="Programs that start per second, on average.")]
    programs: Annotated[int, Parameter(group=PROGRAMS, help="How many start; drawn by the seed.")] = 100
    ctx_scale: Annotated[float, Parameter(group=PROGRAMS, help="Multiplies all lengths.")] = 1.0
    max_turns: Annotated[
        int | None, Parameter(group=PROGRAMS, help="Turns of each program at most.", show_default="all")
    ] = None
    max_gap_s: Annotated[
        float | None,
        Parameter(group=PROGRAMS, help="Cap on the recorded gaps, seconds.", show_default="none"),
    ] = None
    say_final: Annotated[
        bool, Parameter(group=PROGRAMS, help="Clients say which turn is a program's last.", negative=())
    ] = False

    def options(self, max_model_len: int) -> FamilyOptions:
        from braid.lab.programs.families import FamilyOptions

        return FamilyOptions(
            ctx_scale=self.ctx_scale,
            max_turns=self.max_turns,
            max_gap_s=self.max_gap_s,
            max_model_len=max_model_len,
        )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class EngineFlags(MachineFlags):
    """How much fits there, and how it is simulated."""

    kv_tokens: Annotated[
        int | None,
        Parameter(group=ENGINE, help="Tokens whose KV the device holds.", show_default="what fits"),
    ] = None
    host_kv_tokens: Annotated[
        int, Parameter(group=ENGINE, help="Tokens whose KV the host's memory holds; 0 for none.")
    ] = 0
    disk_kv_tokens: Annotated[
        int, Parameter(group=ENGINE, help="Tokens whose KV the disk holds; 0 for none.")
    ] = 0
    disk_gb_s: Annotated[
        float, Parameter(group=ENGINE, help="Gigabytes per second from and to the disk.")
    ] = 2.0
    max_model_len: Annotated[
        int | None,
        Parameter(group=ENGINE, help="Tokens of one request.", show_default="the model's, if that fits"),
    ] = None
    block_size: Annotated[int, Parameter(group=ENGINE, help="Tokens per KV block.")] = 256
    grain: Annotated[
        int,
        Parameter(
            group=ENGINE,
            help="Steps that are simulated as one; 1 is exact, more is faster.",
        ),
    ] = 8

    settings: Annotated[
        str | None,
        Parameter(
            name="--set",
            group=ENGINE,
            metavar="NAME=VALUE[,...]",
            help="Numbers of the policies, such as gate_share=0.8; the result holds them all.",
            show_default="the engine's",
        ),
    ] = None

    def agent_settings(self) -> AgentSettings:
        """
        Raises:
            InvalidParameterError: a name is not known, or its value cannot be.
        """
        from braid.policy.agents.catalog import AgentSettings

        usual = AgentSettings()
        known = {each.name: type(getattr(usual, each.name)) for each in fields(AgentSettings)}
        values = {}
        for pair in (self.settings or "").split(",") if self.settings else ():
            name, _, value = (word.strip() for word in pair.partition("="))
            if name not in known:
                raise InvalidParameterError(
                    f"{name!r} is no number of a policy; choices: {', '.join(known)}", param="set"
                )
            try:
                values[name] = known[name](value)
            except ValueError:
                raise InvalidParameterError(f"{name} must be a number, got {value!r}", param="set") from None
        return AgentSettings(**values)

    def setup(self, platform: Platform, flags: ProgramFlags) -> AgentSetup:
        """
        Raises:
            InvalidParameterError, CapacityError: naming the value that cannot be.
        """
        from braid.sim.agents import AgentSetup
        from braid.sim.clients import Clients

        kv_tokens = platform.kv_tokens if self.kv_tokens is None else self.kv_tokens
        return AgentSetup(
            cost=platform.cost,
            machine=platform.words,
            rate=flags.rate,
            num_programs=flags.programs,
            kv_tokens=kv_tokens,
            host_kv_tokens=self.host_kv_tokens,
            disk_kv_tokens=self.disk_kv_tokens,
            tiers=self._tiers(platform),
            max_model_len=self.max_model_len or min(platform.context, kv_tokens),
            block_size=self.block_size,
            max_num_seqs=self.max_num_seqs or platform.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens or platform.max_num_batched_tokens,
            grain=self.grain,
            clients=Clients(say_final=flags.say_final),
            settings=self.agent_settings(),
        )

    def _tiers(self, platform: Platform) -> TierTime | None:
        if not (self.host_kv_tokens or self.disk_kv_tokens):
            return None
        if self.host_kv_tokens and platform.link is None:
            raise InvalidParameterError(
                "on a machine without a GPU the host's memory is where the KV lies; use --disk-kv-tokens",
                param="host_kv_tokens",
            )
        return platform.tiers(self.block_size, self.disk_gb_s * 1e9)


def agents(
    *,
    programs: ProgramFlags,
    engine: EngineFlags,
    policy: Annotated[
        str,
        Parameter(
            group=RUNS, help="Agent policies by name, with commas between; the first is compared with."
        ),
    ] = "lru,braid",
    seed: Annotated[int, Parameter(group=RUNS, help="The first seed.")] = 0,
    seeds: Annotated[int, Parameter(group=RUNS, help="How many seeds, one after another.")] = 1,
    jobs: Annotated[int, Parameter(group=RUNS, help="Processes.")] = 1,
    json: Annotated[
        Path | None, Parameter(group=RUNS, help="Write everything here, as JSON.", show_default="none")
    ] = None,
    agent_log: Annotated[
        Path | None,
        Parameter(
            group=RUNS,
            help="Write every turn's blocks here, for braid sim regret; of one policy and one seed.",
            show_default="none",
        ),
    ] = None,
) -> None:
    """Play agents' programs in virtual time under several policies, on a named machine and model.

    Every turn comes when what it waited for in the trace has ended here, and its recorded gap has passed. Times of
    named GPUs are roofline estimates from data sheets: nobody has checked them on the GPU.
    """
    from braid.cli.sim.agents_run import run

    names = _names(policy)
    for name, value in (("seeds", seeds), ("jobs", jobs)):
        if value < 1:
            raise InvalidParameterError(f"{name} must be at least 1, got {value}", param=name)
    if agent_log is not None and (len(names), seeds) != (1, 1):
        raise InvalidParameterError(
            f"an agent log is of one policy and one seed, not of {len(names)} and {seeds}", param="agent_log"
        )
    run(programs, engine, names, range(seed, seed + seeds), jobs, json, agent_log)


def _names(policy: str) -> Sequence[str]:
    names = tuple(dict.fromkeys(name.strip() for name in policy.split(",") if name.strip()))
    if not names:
        raise InvalidParameterError("--policy names no policy", param="policy")
    return names
