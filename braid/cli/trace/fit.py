"""``braid trace fit``: a trace to a profile."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from braid.cli.trace.load import Format, JsonOut, TraceFile


def fit(
    file: TraceFile,
    *,
    out: Annotated[Path, Parameter(help="Write the profile (JSON) here.")],
    format: Format = "auto",
    models: Annotated[tuple[str, ...], Parameter(help="Arrival models to try.", show_default="all")] = (),
    json: JsonOut = None,
) -> None:
    """Fit arrivals, lengths, turns, gaps and failures; arrival models compete on held-out time."""
    from braid.cli.trace.console import ConsoleProgress
    from braid.cli.trace.lab_tables import show_profile
    from braid.cli.trace.opening import open_trace
    from braid.core.errors import InvalidParameterError
    from braid.lab.fit.arrivals import CANDIDATES
    from braid.lab.fit.profile import save_profile
    from braid.lab.fit.trace import fit_trace

    wrong = [name for name in models if name not in CANDIDATES]
    if wrong:
        raise InvalidParameterError(f"--models {wrong[0]}: must be one of {', '.join(CANDIDATES)}")
    with ConsoleProgress() as progress:
        trace = open_trace(file, format, progress)
        profile = fit_trace(trace, candidates=models or tuple(CANDIDATES), progress=progress)
    save_profile(profile, out)
    show_profile(profile, out)
    if json is not None:
        save_profile(profile, json)
