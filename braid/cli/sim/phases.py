"""``braid sim phases``: a trace, or a burst, under ways to share a machine between prefill and decode."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from braid.cli.sim.machine import ENGINE, MachineFlags
from braid.cli.trace.load import Format
from braid.cli.trace.replay_options import PlanFlags
from braid.core.errors import InvalidParameterError
from braid.policy.phases.catalog import NAMES as PHASES

LOAD = Group("Load", sort_key=0)
RUNS = Group("Runs", sort_key=3)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class LoadFlags:
    """What is asked of the machine: a trace, or streams and long prompts."""

    trace: Annotated[
        Path | None,
        Parameter(group=LOAD, help="A trace: a file, plain or .gz, or a folder.", show_default="none"),
    ] = None
    format: Annotated[Format, Parameter(group=LOAD)] = "auto"
    burst: Annotated[
        str | None,
        Parameter(
            group=LOAD,
            metavar="STREAMS,TOKENS,PROMPTS,LENGTH,SECONDS",
            help="Instead: so many streams that answer so many tokens, and so many prompts of a length, one every so "
            "many seconds.",
            show_default="none",
        ),
    ] = None


def phases(
    *,
    load: LoadFlags = LoadFlags(),
    machine: MachineFlags,
    units: Annotated[
        int | None,
        Parameter(
            group=ENGINE,
            help="Cores, or groups of SMs, that lanes share.",
            show_default="the cores that were measured; 16 groups",
        ),
    ] = None,
    plan: PlanFlags = PlanFlags(),  # noqa: B008
    phases: Annotated[
        str,
        Parameter(
            group=RUNS,
            help=f"Ways to share, by commas: {', '.join(PHASES)}.",
        ),
    ] = "mixed,prefill-first,static:50/50,split,auto",
    slo_ttft_ms: Annotated[
        float | None,
        Parameter(group=RUNS, help="Wished time to the first token.", show_default="none"),
    ] = None,
    slo_tbt_ms: Annotated[
        str,
        Parameter(group=RUNS, help="Wished time between tokens; several by commas.", show_default="none"),
    ] = "",
    json: Annotated[
        Path | None, Parameter(group=RUNS, help="Write everything here, as JSON.", show_default="none")
    ] = None,
) -> None:
    """Share one machine between prefill and decode in virtual time, in several ways, on a named machine and model.

    A request counts for goodput if its first token and 99 % of the times between its tokens are as wished. Times of
    named GPUs are roofline estimates from data sheets, and so are the curves of their parts: nobody has checked them.
    """
    from braid.cli.sim.phases_run import run

    if (load.trace is None) == (load.burst is None):
        raise InvalidParameterError("say what to play: either --trace or --burst", param="trace")
    run(load, machine, units, plan, _names(phases), _milliseconds(slo_ttft_ms, slo_tbt_ms), json)


def _names(phases: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in phases.split(",") if name.strip()))
    if not names:
        raise InvalidParameterError("--phases names nothing", param="phases")
    return names


def _milliseconds(ttft: float | None, tbts: str) -> list[tuple[float, float]]:
    """Every pair of wishes; infinite where there is none."""
    try:
        values = [float(word) for word in tbts.split(",") if word.strip()] or [inf]
    except ValueError:
        raise InvalidParameterError(
            f"slo_tbt_ms must be numbers separated by commas, got {tbts!r}", param="slo_tbt_ms"
        ) from None
    first = inf if ttft is None else ttft
    for name, value in (("slo_ttft_ms", first), *(("slo_tbt_ms", value) for value in values)):
        if not value > 0:
            raise InvalidParameterError(f"{name} must be above 0, got {value:g}", param=name)
    return [(first, value) for value in values]
