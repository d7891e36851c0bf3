"""``braid trace``: the workload lab on the command line, one thin module per verb.

A verb's module imports ``braid.lab`` inside its function only, so that ``braid --help`` needs neither polars nor scipy.
"""

from __future__ import annotations

from cyclopts import App

from braid.cli.trace.audit import audit
from braid.cli.trace.load import load

trace = App(
    name="trace",
    help="Load, audit, describe, fit, generate, compare, scale and replay traces of real traffic.",
)
trace.command(load)
trace.command(audit)
