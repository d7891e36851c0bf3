"""``braid trace simulate``: the plan of a replay on a virtual clock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from braid.cli.trace.load import Format, JsonOut, TraceFile
from braid.cli.trace.replay_options import PlanFlags, SloFlags


def simulate(
    file: TraceFile,
    *,
    machine: Annotated[Path, Parameter(help="Step times, as `braid calibrate --out` wrote them.")],
    plan: PlanFlags = PlanFlags(),  # noqa: B008  (frozen)
    slo: SloFlags = SloFlags(),  # noqa: B008
    format: Format = "auto",
    out: Annotated[
        Path | None,
        Parameter(help="A folder for the run, like that of replay.", show_default="none"),
    ] = None,
    html: Annotated[
        Path | None, Parameter(help="Write the report here, as one page.", show_default="none")
    ] = None,
    json: JsonOut = None,
    label: Annotated[str, Parameter(help="What to call the run.", show_default="the folder's name")] = "",
) -> int:
    """Play a trace through Braid's scheduler in virtual time, on a machine that was calibrated; no server is asked."""
    from braid.cli.trace.console import ConsoleProgress
    from braid.cli.trace.opening import open_trace
    from braid.cli.trace.replay import tell_run
    from braid.lab.replay.planning.plan import build_plan
    from braid.lab.replay.simulated import simulate_plan
    from braid.sim.machine import load_machine

    known = load_machine(machine)
    with ConsoleProgress() as progress:
        trace = open_trace(file, format, progress)
        options = plan.plan(trace)
        if options.max_tokens is None:
            options = replace(options, max_tokens=known.config.max_model_len)
        made = build_plan(trace, options)
        progress.update("simulating", 0, None)
        run = simulate_plan(made, known, label=label or (out.name if out else file.stem))
    return tell_run(run, slo.slo(), out, html, json)
