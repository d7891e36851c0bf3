"""``braid trace``: the workload lab on the command line, one thin module per verb.

A verb's module imports ``braid.lab`` inside its function only, so that ``braid --help`` needs neither polars nor scipy.
"""

from __future__ import annotations

from cyclopts import App

from braid.cli.trace.audit import audit
from braid.cli.trace.compare import compare
from braid.cli.trace.describe import describe
from braid.cli.trace.fit import fit
from braid.cli.trace.generate import generate
from braid.cli.trace.load import load
from braid.cli.trace.pair import pair
from braid.cli.trace.replay import replay
from braid.cli.trace.report import report
from braid.cli.trace.scale import scale
from braid.cli.trace.simulate import simulate
from braid.cli.trace.split import split
from braid.cli.trace.stub import stub
from braid.cli.trace.sweep import sweep
from braid.cli.trace.synthesize import synthesize
from braid.cli.trace.versus import versus

trace = App(
    name="trace",
    help="Load, audit, describe, fit, generate, compare, scale, replay and simulate traces of real traffic.",
)
trace.command(load)
trace.command(audit)
trace.command(compare)
trace.command(describe)
trace.command(fit)
trace.command(generate)
trace.command(synthesize)
trace.command(pair)
trace.command(replay)
trace.command(scale)
trace.command(simulate)
trace.command(stub)
trace.command(split)
trace.command(report)
trace.command(versus)
trace.command(sweep)
