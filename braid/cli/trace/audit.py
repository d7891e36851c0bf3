"""``braid trace audit``: what is odd in a trace."""

from __future__ import annotations

from braid.cli.trace.load import Format, JsonOut, TraceFile


def audit(file: TraceFile, *, format: Format = "auto", json: JsonOut = None) -> int:
    """Say what is odd in a trace. Exit status 2 where a finding is an error: rows were left out, or invented."""
    from braid.cli.trace.console import ConsoleProgress
    from braid.cli.trace.reading import report, show_findings, write_json
    from braid.lab.readers import read_trace

    with ConsoleProgress() as progress:
        trace = read_trace(file, format, progress)
    show_findings(trace)
    if json is not None:
        write_json(report(trace, None), json)
    return 2 if any(finding.level == "error" for finding in trace.findings) else 0
