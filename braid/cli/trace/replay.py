"""``braid trace replay``: send a trace to a server, and say what it took."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from braid.cli.trace.load import Format, JsonOut, TraceFile
from braid.cli.trace.replay_options import PlanFlags, RunFlags, SloFlags, TargetFlags
from braid.cli.trace.report import INVALID

if TYPE_CHECKING:
    from braid.core.metrics import SLO
    from braid.lab.measures.measure import Measures
    from braid.lab.replay.planning.plan import ReplayPlan
    from braid.lab.replay.record import Run

INTERRUPTED = 130
PAGE = "page.html"


def replay(
    file: TraceFile,
    *,
    target: TargetFlags = TargetFlags(),  # noqa: B008  (frozen)
    plan: PlanFlags = PlanFlags(),  # noqa: B008
    run: RunFlags = RunFlags(),  # noqa: B008
    slo: SloFlags = SloFlags(),  # noqa: B008
    format: Format = "auto",
    out: Annotated[
        Path | None,
        Parameter(
            help="A folder for the run: requests.parquet, run.json, measures.json, page.html, figures.",
            show_default="none",
        ),
    ] = None,
    html: Annotated[
        Path | None, Parameter(help="Write the report here, as one page.", show_default="none")
    ] = None,
    json: JsonOut = None,
    label: Annotated[str, Parameter(help="What to call the run.", show_default="the folder's name")] = "",
    plan_only: Annotated[bool, Parameter(help="Print the plan, and send nothing.", negative=())] = False,
) -> int:
    """Replay a trace against an OpenAI-compatible server, with honest times; exit status 3 for an invalid run.

    Ctrl-C stops it and keeps what there is (exit status 130); a second one does not wait for the senders.
    """
    from contextlib import ExitStack

    from braid.cli.trace.console import ConsoleProgress
    from braid.cli.trace.opening import open_trace
    from braid.cli.trace.replay_view import ReplayView
    from braid.lab.replay.planning.plan import build_plan
    from braid.lab.replay.run import Stop
    from braid.lab.replay.run import replay as play

    with ExitStack() as stack:
        stop = stack.enter_context(Stop.on_interrupt())
        bars = stack.enter_context(ExitStack())
        progress = bars.enter_context(ConsoleProgress())
        trace = open_trace(file, format, progress)
        if plan_only:
            made = build_plan(trace, plan.plan(trace))
        else:
            view = stack.enter_context(ReplayView(f"{file.name} -> {target.url}", on_start=bars.close))
            done = play(
                trace,
                target.target(),
                plan.plan(trace),
                run.run(),
                label=label or (out.name if out else file.stem),
                progress=progress,
                live=view,
                stop=stop,
            )
    if plan_only:
        return tell_plan(made, trace.info.block_size, json)
    return tell_run(done, slo.slo(), out, html, json)


def tell_plan(plan: ReplayPlan, block_size: int | None, json: Path | None) -> int:
    """The plan in numbers."""
    from rich.console import Console

    from braid.cli.trace.reading import write_json
    from braid.lab.replay.planning.facts import plan_facts

    facts = plan_facts(plan, block_size or 16)
    console = Console()
    for name, value in facts.items():
        if name == "notes":
            continue
        console.print(
            f"{name.replace('_', ' '):<16} {_cell(value)}", markup=False, highlight=False, soft_wrap=True
        )
    for note in plan.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    if json is not None:
        write_json(facts, json)
    return 0


def tell_run(run: Run, slo: SLO, out: Path | None, html: Path | None, json: Path | None) -> int:
    """Keep and show a run.

    Raises:
        BraidError: a file cannot be written.
    """
    from braid.cli.trace.reading import write_json
    from braid.cli.trace.report import show
    from braid.lab.measures.measure import measure
    from braid.lab.replay.record import save_run

    if out is not None:
        save_run(run, out)  # first of all: what comes after may fail
    measures = measure(run, slo)
    if out is not None or html is not None:
        draw(measures, out, html)
    show(measures)
    if json is not None:
        write_json(measures.as_json(), json)
    for what, path in (("run", out), ("page", html or (out / PAGE if out else None))):
        if path is not None:
            print(f"{what}: {path}")
    if run.head.stopped:
        return INTERRUPTED
    return 0 if measures.valid else INVALID


def draw(measures: Measures, out: Path | None, html: Path | None) -> None:
    """Figures and page, drawn once.

    Raises:
        BraidError: a file cannot be written.
    """
    from braid.cli.trace.console import ConsoleProgress
    from braid.core.errors import BraidError
    from braid.lab.measures.report import write_folder, write_page

    with ConsoleProgress() as progress:
        if out is not None:
            write_folder(measures, out, progress)
        elif html is not None:
            write_page(measures, html, progress)
    if out is not None and html is not None:
        try:
            html.write_bytes((out / PAGE).read_bytes())
        except OSError as error:
            raise BraidError(f"cannot write {html}: {error.strerror or error}") from None


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_cell(entry)}" for name, entry in value.items()) or "none"
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
