"""What ``braid sim agents`` does: read, simulate, show, write."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from braid.cli.sim.agents import EngineFlags, ProgramFlags
from braid.cli.sim.agents_view import show
from braid.cli.trace.console import ConsoleProgress
from braid.cli.trace.opening import open_trace
from braid.core.errors import BraidError
from braid.lab.programs.families import Families, families_of
from braid.lab.synthetic.pair import with_lengths
from braid.policy.agents.catalog import ORACLES, agent_policy
from braid.sched.event_log import Recorder
from braid.sim.agents import AgentRun, AgentSetup, plain_setup, run_agents
from braid.sim.compare import ratio_of, run_all, summary_of
from braid.sim.programs import Family

VERSION = 1


def run(
    programs: ProgramFlags,
    engine: EngineFlags,
    policies: Sequence[str],
    seeds: Sequence[int],
    jobs: int,
    out: Path | None,
    log: Path | None = None,
) -> None:
    """
    Args:
        log: where every turn's blocks are written; then there is one policy and one seed.

    Raises:
        BraidError: the trace, the machine, the model or a policy cannot be used; the text says why.
    """
    setup = engine.setup(engine.platform(), programs)
    _check(policies, setup)
    with ConsoleProgress() as progress:
        trace = open_trace(programs.trace, programs.format, progress)
        if programs.lengths is not None:
            trace = with_lengths(trace, open_trace(programs.lengths, "auto", progress), seeds[0])
        found = families_of(trace, programs.options(setup.max_model_len), progress)
        total = len(policies) * len(seeds)
        ended: list[AgentRun] = []

        def done(run: AgentRun) -> None:
            ended.append(run)
            progress.update("simulating", len(ended), total)

        progress.update("simulating", 0, total)
        if log is None:
            runs = run_all(found.families, setup, policies, seeds, jobs=jobs, done=done)
        else:
            runs = {policies[0]: [_logged(found.families, setup, policies[0], seeds[0], log)]}
    report = report_of(runs, setup, programs, engine, found, seeds)
    if out is not None:
        write(report, out)
    show(report)


def _logged(families: Sequence[Family], setup: AgentSetup, policy: str, seed: int, log: Path) -> AgentRun:
    config = setup.scheduler
    recorder = Recorder(config.block_size, config.num_blocks, policy, setup.grain)
    ended = run_agents(families, setup, policy, seed, observer=recorder)
    try:
        with log.open("w", encoding="utf-8") as file:
            file.writelines(jsonlib.dumps(line) + "\n" for line in recorder.lines)
    except OSError as error:
        raise BraidError(f"cannot write {log}: {error.strerror}") from None
    return ended


def _check(policies: Sequence[str], setup: AgentSetup) -> None:
    """A wrong name is said before anything is read."""
    for name in policies:
        if name not in ORACLES:
            agent_policy(name, setup.costs(), setup.settings)


def report_of(
    runs: Mapping[str, Sequence[AgentRun]],
    setup: AgentSetup,
    programs: ProgramFlags,
    engine: EngineFlags,
    found: Families,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """All of it as plain data: per policy the means of all seeds, intervals and every seed's numbers."""
    base = next(iter(runs.values()))
    return {
        "version": VERSION,
        "simulated": True,
        "machine": setup.machine,
        "policies": {
            name: summary_of(each) | {"versus": ratio_of(each, base), "config": plain_setup(setup)}
            for name, each in runs.items()
        },
        "config": {
            **_plain(asdict(programs)),
            **_plain(asdict(engine)),
            "seeds": list(seeds),
            "setup": plain_setup(setup),
        },
        "programs_available": len(found.families),
        "notes": list(found.notes),
    }


def _plain(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in flags.items()}


def write(report: Mapping[str, Any], out: Path) -> None:
    try:
        out.write_text(jsonlib.dumps(report, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise BraidError(f"cannot write {out}: {error.strerror}") from None
