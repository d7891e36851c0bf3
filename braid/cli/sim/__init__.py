"""``braid sim``: policies in virtual time.

A verb's module imports ``braid.lab`` inside its function only, as in ``braid.cli.trace``.
"""

from __future__ import annotations

from cyclopts import App

from braid.cli.sim.agents import agents
from braid.cli.sim.experts import experts
from braid.cli.sim.phases import phases
from braid.cli.sim.regret import regret

sim = App(name="sim", help="Simulate policies in virtual time, on the machine you have or on one you do not.")
sim.command(agents)
sim.command(experts)
sim.command(phases)
sim.command(regret)
