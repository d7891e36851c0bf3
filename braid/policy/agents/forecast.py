"""When a program is expected back, for whoever watches: a policy that learns gaps may say so."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from braid.policy.agents.program import Program


@runtime_checkable
class Forecasts(Protocol):
    """A retention that expects programs back."""

    def returns_in(self, program: Program, now: float) -> float | None:
        """Median of the seconds until its next turn comes, from now; None where it is not likelier to come than not."""
        ...


def returns_in(retention: object, program: Program, now: float) -> float | None:
    """What a retention expects of an idle program; without that, what its client said; None where neither helps."""
    if not program.is_idle or program.num_working:
        return None
    if isinstance(retention, Forecasts):
        return retention.returns_in(program, now)
    said = None if program.intent is None else program.intent.return_s
    return None if said is None else max(0.0, said - (now - program.last_active))
