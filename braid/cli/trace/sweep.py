"""``braid trace sweep``: the highest load that keeps the limits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal  # noqa: F401  (annotations that PointFlags inherits)

from cyclopts import Group, Parameter

from braid.cli.trace.load import Format, JsonOut, TraceFile
from braid.cli.trace.replay_options import RUN, PlanFlags, RunFlags, SloFlags, TargetFlags
from braid.cli.trace.report import INVALID
from braid.core.errors import InvalidParameterError

if TYPE_CHECKING:
    from braid.lab.replay.live import Live
    from braid.lab.replay.planning.plan import PlanOptions, ReplayPlan
    from braid.lab.replay.record import Run
    from braid.lab.replay.supervise import Stop
    from braid.lab.sweep.search import Probe, SearchOptions
    from braid.lab.sweep.sweep import Sweep, SweepOptions
    from braid.lab.table import Trace

SEARCH = Group("Search", sort_key=0)
INTERRUPTED = 130


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class SearchFlags:
    """The fields of ``SearchOptions``."""

    attainment: Annotated[
        float, Parameter(group=SEARCH, help="Share of the requests that must keep the limits.")
    ] = 0.9
    first: Annotated[
        float | None,
        Parameter(group=SEARCH, help="The first load.", show_default="1, or --rate with --arrivals rate"),
    ] = None
    lowest: Annotated[float, Parameter(group=SEARCH, help="No load below is tried.")] = 1 / 64
    highest: Annotated[float, Parameter(group=SEARCH, help="No load above is tried.")] = 64.0
    growth: Annotated[float, Parameter(group=SEARCH, help="Factor between the first loads.")] = 2.0
    resolution: Annotated[
        float, Parameter(group=SEARCH, help="The answer's ends are no further apart, as a share.")
    ] = 0.1
    ends: Annotated[int, Parameter(group=SEARCH, help="Replays of each of its ends, at least.")] = 2
    repeats: Annotated[int, Parameter(group=SEARCH, help="Replays of one load, at most.")] = 4

    def search(self, first: float) -> SearchOptions:
        """With the first load.

        Raises:
            InvalidParameterError: a value that makes no search.
        """
        from braid.lab.sweep.search import SearchOptions

        return SearchOptions(
            target=self.attainment,
            start=first,
            lowest=self.lowest,
            highest=self.highest,
            growth=self.growth,
            resolution=self.resolution,
            ends=self.ends,
            max_repeats=self.repeats,
        )


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True, slots=True)
class PointFlags(RunFlags):
    """How each point is played: as a run is, but never for long."""

    warmup: Annotated[float, Parameter(group=RUN, help="First seconds that are not measured.")] = 10.0
    measure: Annotated[float, Parameter(group=RUN, help="Seconds that are measured, from then on.")] = 60.0
    drain: Annotated[float, Parameter(group=RUN, help="Seconds for open requests after the last start.")] = (
        60.0
    )


def sweep(
    file: TraceFile,
    *,
    search: SearchFlags = SearchFlags(),
    target: TargetFlags = TargetFlags(),  # noqa: B008
    plan: PlanFlags = PlanFlags(),  # noqa: B008
    run: PointFlags = PointFlags(),
    slo: SloFlags = SloFlags(),  # noqa: B008
    format: Format = "auto",
    out: Annotated[
        Path | None,
        Parameter(help="A folder for sweep.json, page.html and every run.", show_default="none"),
    ] = None,
    html: Annotated[Path | None, Parameter(help="Write the page here.", show_default="none")] = None,
    json: JsonOut = None,
) -> int:
    """Find the highest load at which a server keeps the limits: a factor on the trace by whole programs, or programs
    per second with --arrivals rate. Exit status 3 where replays were invalid, so that the server's limit is unknown."""
    from functools import partial

    from braid.cli.trace.console import ConsoleProgress
    from braid.cli.trace.opening import open_trace
    from braid.cli.trace.sweep_view import SweepView, show
    from braid.lab.replay.asking.target import probe
    from braid.lab.replay.run import replay
    from braid.lab.replay.supervise import Stop
    from braid.lab.sweep.sweep import sweep as find

    options, run_options, server = _options(search, plan, run, slo), run.run(), target.target()
    with ConsoleProgress() as progress:
        trace = open_trace(file, format, progress)
        planned = _plan_options(plan, trace, options)
        progress.update("asking the server", 0, None)
        facts = probe(server, run_options.form)
    planned = replace(planned, max_tokens=planned.max_tokens or facts.max_tokens)
    with Stop.on_interrupt() as stop, SweepView(options, target.url, out) as view:

        def play(made: ReplayPlan, at: Probe, live: Live, stop: Stop) -> Run:
            label = f"load {at.load:.3g}, repeat {at.repeat + 1}"
            return replay(made, server, options=run_options, label=label, facts=facts, live=live, stop=stop)

        found = find(trace, planned, options, play, view, partial(_released, stop))
    show(found)
    _keep(found, trace.info.source, target.url, out, html, json)
    if found.answer.kind == "stopped":
        return INTERRUPTED
    return INVALID if found.answer.kind in ("client_limited", "unmeasured") else 0


def _released(stop: Stop) -> Stop:
    """The one switch that Ctrl-C presses, for the next replay."""
    stop.presses = 0
    return stop


def _options(search: SearchFlags, plan: PlanFlags, run: PointFlags, slo: SloFlags) -> SweepOptions:
    from braid.lab.sweep.sweep import SweepOptions

    if plan.arrivals == "concurrency":
        raise InvalidParameterError("--arrivals concurrency has no load to sweep: trace or rate")
    if plan.span is not None or plan.programs is not None:
        raise InvalidParameterError("--span and --programs: a point's length is --warmup and --measure")
    by_rate = plan.arrivals == "rate"
    first = search.first or (plan.rate if by_rate else None) or 1.0
    return SweepOptions(
        search=search.search(first),
        slo=slo.slo(),
        by="rate" if by_rate else "factor",
        warmup_s=run.warmup,
        measure_s=run.measure,
        seed=plan.seed,
    )


def _plan_options(plan: PlanFlags, trace: Trace, options: SweepOptions) -> PlanOptions:
    """Where a window is drawn, it is as long as a point. Arrivals and rates are set for each point."""
    if plan.window == "given":
        return replace(plan, arrivals="trace", rate=None).plan(trace)
    drawn = replace(plan, arrivals="trace", rate=None, span=options.span_s).plan(trace)
    return replace(drawn, span_s=None)


def _keep(
    found: Sweep, source: str, url: str, out: Path | None, html: Path | None, json: Path | None
) -> None:
    from braid.cli.trace.reading import write_json
    from braid.core.errors import BraidError
    from braid.lab.sweep.figures import draw
    from braid.lab.sweep.page import page
    from braid.lab.sweep.words import as_json

    pages = [path for path in (html, out / "page.html" if out else None) if path is not None]
    text = page(found, source, url, draw(found)) if pages else ""
    try:
        for path in pages:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BraidError(f"cannot write {path}: {error.strerror}") from None
    for file in (json, out / "sweep.json" if out else None):
        if file is not None:
            write_json(as_json(found), file)
    for path in pages:
        print(f"page: {path}")
