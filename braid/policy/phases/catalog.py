"""Divisions by name."""

from __future__ import annotations

import re

from braid.core.errors import InvalidParameterError
from braid.core.request import Slo
from braid.policy.phases.auto import Auto
from braid.policy.phases.curves import CORES, Curves
from braid.policy.phases.fixed import Layered, Mixed, PrefillFirst, Static
from braid.policy.phases.policy import Phases

NAMES = ("auto", "mixed", "mixed:CHUNK", "split", "layered:LAYERS", "prefill-first", "static:P/D")
_MIXED = re.compile(r"mixed:([1-9]\d{0,6})")
_LAYERED = re.compile(r"layered(?::([1-9]\d{0,3}))?")
_STATIC = re.compile(r"static:(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)")


def phases_policy(name: str, slo: Slo, curves: Curves = CORES, *, has_lanes: bool = True) -> Phases:
    """A new policy.

    Args:
        slo: what holds for requests that wish nothing of their own.
        curves: of the machine's units, before they are measured.
        has_lanes: whether each phase can have one; ``auto`` does without.

    Raises:
        InvalidParameterError: there is none of that name.
    """
    if name in ("auto", "split"):
        return Auto(slo, can_mix=name == "auto", curves=curves, has_lanes=has_lanes)
    if name == "mixed":
        return Mixed()
    if (chunk := _MIXED.fullmatch(name)) is not None:
        return Mixed(int(chunk[1]))
    if (layers := _LAYERED.fullmatch(name)) is not None:
        return Layered(int(layers[1] or 1))
    if name == "prefill-first":
        return PrefillFirst()
    if (shares := _STATIC.fullmatch(name)) is not None:
        return Static(float(shares[1]), float(shares[2]))
    raise InvalidParameterError(
        f"unknown phases {name!r}; choose one of {', '.join(NAMES)} (mixed:64 has chunks of 64 tokens, "
        "static:50/50 gives each lane half)",
        param="phases",
    )
