"""What ``braid sim phases`` does: read, simulate, show, write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from math import isfinite
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from braid.cli.sim.agents_run import write
from braid.cli.sim.machine import MachineFlags
from braid.cli.sim.phases import LoadFlags
from braid.cli.trace.console import ConsoleProgress, print_table
from braid.cli.trace.opening import open_trace
from braid.cli.trace.replay_options import PlanFlags
from braid.core.errors import InvalidParameterError
from braid.core.request import Slo
from braid.lab.replay.planning.plan import build_plan
from braid.lab.replay.simulated import arrivals_of
from braid.policy.phases.catalog import phases_policy
from braid.sched.config import SchedulerConfig
from braid.sim.phases import PhasesSetup, burst, run_phases, summary_of
from braid.sim.platform import Platform
from braid.sim.run import Arrival

VERSION = 1
BLOCK_SIZE = 16
BURST = ("streams", "tokens", "prompts", "length", "seconds")


def run(
    load: LoadFlags,
    machine: MachineFlags,
    units: int | None,
    plan: PlanFlags,
    names: Sequence[str],
    wishes: Sequence[tuple[float, float]],
    out: Path | None,
) -> None:
    """
    Args:
        wishes: milliseconds to the first token and between two, one pair after the other.

    Raises:
        BraidError: the trace, the machine, the model or a policy cannot be used; the text says why.
    """
    for name in names:
        phases_policy(name, Slo())  # a wrong name is said before anything is read
    setup = setup_of(machine, units)
    with ConsoleProgress() as progress:
        arrivals, source = _arrivals(load, plan, setup.config.max_model_len, progress)
        results = []
        for number, (slo, name) in enumerate((slo, name) for slo in wishes for name in names):
            progress.update("simulating", number, len(names) * len(wishes))
            found = run_phases(arrivals, setup, name, Slo(slo[0] / 1000, slo[1] / 1000))
            results.append(
                {"phases": name, "slo_ttft_ms": _finite(slo[0]), "slo_tbt_ms": _finite(slo[1])}
                | summary_of(found)
            )
    report = {
        "version": VERSION,
        "simulated": True,
        "machine": setup.machine,
        "units": setup.config.num_units,
        "load": source,
        "scheduler": asdict(setup.config),
        "runs": results,
    }
    if out is not None:
        write(report, out)
    show(report)


def setup_of(flags: MachineFlags, units: int | None) -> PhasesSetup:
    """
    Raises:
        InvalidParameterError, CapacityError: naming the value that cannot be.
    """
    platform = flags.platform()
    return PhasesSetup(
        cost=platform.cost,
        config=_config(flags, platform, units),
        curves=platform.curves,
        machine=platform.words,
        prefill_part=platform.prefill_part,
    )


def _config(flags: MachineFlags, platform: Platform, units: int | None) -> SchedulerConfig:
    return SchedulerConfig(
        num_blocks=platform.kv_tokens // BLOCK_SIZE,
        block_size=BLOCK_SIZE,
        max_num_seqs=flags.max_num_seqs or platform.max_num_seqs,
        max_num_batched_tokens=flags.max_num_batched_tokens or platform.max_num_batched_tokens,
        max_model_len=min(platform.context, platform.kv_tokens // BLOCK_SIZE * BLOCK_SIZE),
        num_units=platform.num_units if units is None else units,
        can_reshare=platform.can_reshare,
        num_layers=platform.num_layers,
    )


def _arrivals(
    load: LoadFlags, flags: PlanFlags, max_model_len: int, progress: ConsoleProgress
) -> tuple[list[Arrival], str]:
    """What is played, and in words."""
    if load.burst is not None:
        return burst(*_burst(load.burst)), f"burst {load.burst}"
    assert load.trace is not None, "either a trace or a burst"
    trace = open_trace(load.trace, load.format, progress)
    options = flags.plan(trace)
    if options.max_tokens is None:
        options = replace(options, max_tokens=max_model_len)
    made = build_plan(trace, options)
    if not made.num_requests or options.arrivals == "concurrency":
        raise InvalidParameterError(
            f"no request of {load.trace} has a start time; use --arrivals trace or --arrivals rate with --rate",
            param="trace",
        )
    return arrivals_of(made), made.source


def _burst(text: str) -> tuple[int, int, int, int, float]:
    words = text.split(",")
    try:
        *counts, seconds = *map(int, words[:-1]), float(words[-1])
    except ValueError:
        counts, seconds = [], 0.0
    if len(counts) != len(BURST) - 1 or min(*counts, seconds) <= 0 or not isfinite(seconds):
        raise InvalidParameterError(
            f"burst must be {','.join(BURST)}, all above 0, such as 4,2000,3,4000,20; got {text!r}",
            param="burst",
        )
    streams, tokens, prompts, length = counts
    return streams, tokens, length, prompts, seconds


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def show(report: dict[str, Any], console: Console | None = None) -> None:
    """One table per wish, then what the numbers rest on."""
    console = console or Console()
    for wish in dict.fromkeys((each["slo_ttft_ms"], each["slo_tbt_ms"]) for each in report["runs"]):
        chosen = [each for each in report["runs"] if (each["slo_ttft_ms"], each["slo_tbt_ms"]) == wish]
        first, between = ("any" if value is None else f"{value:g} ms" for value in wish)
        print_table(console, _table(f"first token: {first}, between tokens: {between}; simulated", chosen))
    for line in (f"load: {report['load']}", f"units: {report['units']}", f"times: {report['machine']}"):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _table(title: str, runs: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("phases", no_wrap=True)
    names = ("TTFT p50", "p99", "TBT p50", "p90", "p99", "max", "beside prompts p50", "p99")
    for name in (*names, "prefill tok/s", "decode tok/s", "goodput/s", "switches"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in runs:
        ttft, tbt, beside = (each[name] for name in ("ttft_ms", "tbt_ms", "tbt_beside_prompts_ms"))
        cells = [ttft.get("p50"), ttft.get("p99"), *(tbt.get(name) for name in ("p50", "p90", "p99", "max"))]
        cells += [beside.get("p50"), beside.get("p99")]
        rates = [f"{each['prefill_tok_s']:.0f}", f"{each['decode_tok_s']:.1f}", f"{each['goodput']:.3g}"]
        table.add_row(each["phases"], *map(_ms, cells), *rates, str(each["switches"]))
    return table


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"
