"""A trace and its findings, as JSON and for people."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from braid.core.errors import BraidError
from braid.lab.table import Trace

STYLES = {"info": "dim", "warning": "yellow", "error": "red"}


def report(trace: Trace, out: Path | None) -> dict[str, Any]:
    """What ``--json`` writes."""
    info = asdict(trace.info)
    return {
        "rows": trace.num_requests,
        "programs": trace.num_programs,
        "span_s": trace.span_s,
        "audit": [asdict(finding) for finding in trace.findings],
        **info,
        "out": None if out is None else str(out),
    }


def write_json(result: Any, path: Path) -> None:
    """Indented, with a line end.

    Raises:
        BraidError: ``path`` cannot be written.
    """
    try:
        path.write_text(json.dumps(result, indent=2, default=str) + "\n")
    except OSError as error:
        raise BraidError(f"cannot write {path}: {error.strerror}") from None


def show(trace: Trace, out: Path | None) -> None:
    """Rows, programs, span, where it is kept, the findings, whose data it is."""
    console = Console()
    programs = f", {trace.num_programs:,} programs" if trace.num_programs else ""
    span = f", {_span(trace.span_s)}" if trace.span_s else ", no arrival times"
    _line(
        console, f"{trace.info.source}: {trace.num_requests:,} requests{programs}{span} ({trace.info.format})"
    )
    if out is not None:
        _line(console, f"kept as {out}")
    show_findings(trace, console)
    for note in trace.info.notes:
        _line(console, f"note: {note}")
    if trace.info.licence:
        _line(console, f"licence of the data: {trace.info.licence}")
    if trace.info.citation:
        _line(console, f"cite: {trace.info.citation}")


def show_findings(trace: Trace, console: Console | None = None) -> None:
    """The audit as a table."""
    console = console or Console()
    table = Table()
    table.add_column("finding")
    table.add_column("level")
    table.add_column("count", justify="right")
    table.add_column("what", overflow="fold")
    for finding in trace.findings:
        style = STYLES[finding.level]
        level = f"[{style}]{finding.level}[/{style}]"
        table.add_row(finding.name, level, f"{finding.count:,}", finding.text.replace("[", "\\["))
    if trace.findings:
        console.print(table)
    else:
        _line(console, "nothing odd found")


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _span(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
