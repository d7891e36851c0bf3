"""Divisions by name."""

from __future__ import annotations

import re

from braid.core.errors import InvalidParameterError
from braid.core.request import Slo
from braid.policy.phases.fixed import Mixed, PrefillFirst, Static
from braid.policy.phases.policy import Phases

NAMES = ("mixed", "prefill-first", "static:P/D")
_STATIC = re.compile(r"static:(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)")


def phases_policy(name: str, slo: Slo) -> Phases:
    """A new policy.

    Args:
        slo: what holds for requests that wish nothing of their own.

    Raises:
        InvalidParameterError: there is none of that name.
    """
    if name == "mixed":
        return Mixed()
    if name == "prefill-first":
        return PrefillFirst()
    if (shares := _STATIC.fullmatch(name)) is not None:
        return Static(float(shares[1]), float(shares[2]))
    raise InvalidParameterError(
        f"unknown phases {name!r}; choose one of {', '.join(NAMES)} (static:50/50 gives each lane half)",
        param="phases",
    )
