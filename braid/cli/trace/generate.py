"""``braid trace generate``: requests from a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from braid.cli.trace.load import JsonOut


def generate(
    profile: Annotated[
        Path, Parameter(help="A profile that braid trace fit wrote, or a folder of ServeGen's clients.")
    ],
    *,
    out: Annotated[Path, Parameter(help="Write the trace here, as parquet.")],
    span: Annotated[float | None, Parameter(help="Seconds of traffic.", show_default="none")] = None,
    requests: Annotated[int | None, Parameter(help="Stop after so many.", show_default="none")] = None,
    rate: Annotated[
        float | None,
        Parameter(
            help="Requests per second, reached by whole programs: copies and thinning.",
            show_default="the profile's",
        ),
    ] = None,
    arrivals: Annotated[
        Literal["chosen", "poisson", "gamma"], Parameter(help="The chosen model, or a baseline.")
    ] = "chosen",
    failures: Annotated[bool, Parameter(help="Let requests fail and be cancelled as in the data.")] = True,
    blocks: Annotated[
        bool, Parameter(help="Write block ids where the profile knows how prefixes are shared.")
    ] = True,
    seed: Annotated[int, Parameter(help="Same seed, same requests.")] = 0,
    json: JsonOut = None,
) -> None:
    """Write a synthetic trace of any length and rate."""
    from rich.console import Console

    from braid.cli.trace.console import ConsoleProgress
    from braid.cli.trace.reading import write_json
    from braid.lab.fit.profile import load_profile
    from braid.lab.generate import Plan, info, write

    plan = Plan(
        seed=seed,
        span_s=span,
        num_requests=requests,
        rate=rate,
        arrivals=arrivals,
        keep_failures=failures,
        blocks=blocks,
    )
    source = load_profile(profile)
    with ConsoleProgress() as progress:
        rows = write(source, plan, out, progress)
    console = Console()
    notes = info(source, plan).notes
    for line in (f"{rows:,} requests, kept as {out}", *notes):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if json is not None:
        write_json({"rows": rows, "out": str(out), "seed": seed, "notes": notes}, json)
