"""``braid trace synthesize``: programs like those that papers describe and do not publish."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from braid.cli.trace.load import JsonOut


def synthesize(
    kind: Annotated[Literal["swe-bench", "bfcl"], Parameter(help="What the programs are like.")],
    *,
    programs: Annotated[int, Parameter(help="How many.")],
    out: Annotated[Path, Parameter(help="Write the trace here, as parquet.")],
    seed: Annotated[int, Parameter(help="Same seed, same programs; fewer are the first of more.")] = 0,
    eta: Annotated[
        float | None,
        Parameter(
            help="What the turns done tell of the turns left: 1 for equally many turns, 0 for a geometric law, below "
            "0 where long programs grow ever longer; the mean stays.",
            show_default="by the published deviation of turns",
        ),
    ] = None,
    gap_mean: Annotated[
        float | None, Parameter(help="Mean time of a tool, seconds.", show_default="the published one")
    ] = None,
    gap_sd: Annotated[
        float | None,
        Parameter(help="Deviation of these times: the tail's weight.", show_default="the published one"),
    ] = None,
    json: JsonOut = None,
) -> None:
    """Write SWE-bench-like or BFCL-like programs: turns, gaps and tokens of the published mean and deviation."""
    from rich.console import Console

    from braid.cli.trace.reading import write_json
    from braid.lab.synthetic.programs import kind_named, synthesize
    from braid.lab.synthetic.summary import figures, report, wanted
    from braid.lab.table import save

    trace = synthesize(kind, programs, seed, eta=eta, gap_mean_s=gap_mean, gap_sd_s=gap_sd)
    save(trace, out)
    asked, made = wanted(kind_named(kind, gap_mean, gap_sd), eta), figures(trace)
    console = Console()
    lines = [f"{made.programs:,} programs, {made.requests:,} requests, kept as {out}"]
    for name, spread in asked.items():
        got = getattr(made, name)
        lines.append(
            f"{name}: {got.mean:,.4g} +- {got.sd:,.4g} (wanted {spread.mean:,.4g} +- {spread.sd:,.4g})"
        )
    for line in (*lines, f"eta: {made.eta:.2f}", *trace.info.notes):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if json is not None:
        write_json({"out": str(out), "kind": kind, "seed": seed, **report(made, asked)}, json)
