"""``braid trace fit``: a trace to a profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from braid.cli.trace.load import Format, JsonOut, TraceFile

if TYPE_CHECKING:
    from braid.lab.fit.profile import Profile


def fit(
    file: TraceFile,
    *,
    out: Annotated[Path, Parameter(help="Write the profile (JSON) here.")],
    format: Format = "auto",
    held_out: Annotated[
        Path | None,
        Parameter(
            help="A part that was kept out (braid trace split): generate, and compare with it.",
            show_default="none",
        ),
    ] = None,
    idc_slack: Annotated[float, Parameter(help="How far the index of dispersion may be off.")] = 0.25,
    models: Annotated[tuple[str, ...], Parameter(help="Arrival models to try.", show_default="all")] = (),
    json: JsonOut = None,
) -> None:
    """Fit arrivals, lengths, turns, gaps and failures; arrival models compete on held-out time.

    With --held-out the profile is proved: the chosen arrivals, Poisson and one Gamma law are generated and
    compared with data that the fit did not see. A folder of ServeGen's clients is no trace but laws already: it becomes
    a profile as it is.
    """
    from msgspec.structs import replace

    from braid.cli.trace.console import ConsoleProgress
    from braid.cli.trace.opening import open_trace
    from braid.core.errors import InvalidParameterError
    from braid.lab.compare import Part
    from braid.lab.fidelity import prove
    from braid.lab.fit.arrivals import CANDIDATES
    from braid.lab.fit.profile import servegen_profile
    from braid.lab.fit.trace import fit_trace
    from braid.lab.readers.servegen import is_profile

    wrong = [name for name in models if name not in CANDIDATES]
    if wrong:
        raise InvalidParameterError(f"--models {wrong[0]}: must be one of {', '.join(CANDIDATES)}")
    if file.is_dir() and is_profile(file):
        with ConsoleProgress() as progress:
            profile = servegen_profile(file, progress)
        _keep(profile, out, json)
        return
    with ConsoleProgress() as progress:
        trace = open_trace(file, format, progress)
        rest = open_trace(held_out, format, progress) if held_out is not None else None
        profile = fit_trace(trace, candidates=models or tuple(CANDIDATES), progress=progress)
        if rest is not None:
            parts = Part(trace=rest), Part(trace=trace)
            proof = prove(profile, *parts, idc_slack=idc_slack, progress=progress)
            profile = replace(profile, held_out=dict(proof))
    _keep(profile, out, json)


def _keep(profile: Profile, out: Path, json: Path | None) -> None:
    from braid.cli.trace.lab_tables import show_profile, show_proof
    from braid.lab.fit.profile import save_profile

    for path in (out, json):
        if path is not None:
            save_profile(profile, path)
    show_profile(profile, out)
    if profile.held_out:
        show_proof(profile.held_out)
