"""Divisions that never change: the baselines."""

from __future__ import annotations

from collections.abc import Mapping

from braid.core.errors import InvalidParameterError
from braid.policy.phases.policy import Demand, Division, StepSeen


class Fixed:
    """Learns nothing."""

    def stepped(self, step: StepSeen, now: float) -> None:
        pass

    def answered(self, seconds: float, limit: float, now: float, *, is_first: bool) -> None:
        pass

    def describe(self) -> Mapping[str, float]:
        return {}


class Mixed(Fixed):
    """Decodes never wait; a chunk of a prompt takes what is left of the step (Sarathi-Serve's stall-free batching,
    arXiv 2403.02310, section 4).

    Args:
        max_prefill: tokens of a chunk; 0 for what the step's budget leaves.
    """

    is_split = False

    def __init__(self, max_prefill: int = 0) -> None:
        self.name = f"mixed:{max_prefill}" if max_prefill else "mixed"
        self._max_prefill = max_prefill or 1 << 30

    def divide(self, demand: Demand) -> Division:
        return Division(True, demand.num_units, demand.num_units, self._max_prefill)


class Layered(Fixed):
    """Decodes never wait for more than some layers of a chunk, which is as long as the step's budget leaves (layered
    prefill, arXiv 2510.08055).

    Args:
        num_layers: of the model, in one step.
    """

    is_split = False

    def __init__(self, num_layers: int = 1) -> None:
        self.name = f"layered:{num_layers}"
        self._num_layers = num_layers

    def divide(self, demand: Demand) -> Division:
        units = demand.num_units
        return Division(True, units, units, 1 << 30, num_layers=self._num_layers)


class PrefillFirst(Fixed):
    """Whole prompts before any decode, as engines did before chunks."""

    name = "prefill-first"
    is_split = False

    def divide(self, demand: Demand) -> Division:
        return Division(True, demand.num_units, demand.num_units, 1 << 30, is_prefill_first=True)


class Static(Fixed):
    """Always lanes, of fixed shares (what semi-PD's repository does; its paper's static baseline is 100/100).

    Args:
        prefill, decode: percent of the units; each lane has at least one unit. They may overlap.
        max_prefill: tokens of a step of the lane of prompts.

    Raises:
        InvalidParameterError: a share is not in (0, 100].
    """

    is_split = True

    def __init__(self, prefill: float, decode: float, max_prefill: int = 512) -> None:
        for name, value in (("prefill", prefill), ("decode", decode)):
            if not 0 < value <= 100:
                raise InvalidParameterError(
                    f"the share of {name} must be in (0, 100] percent, got {value:g}", param="phases"
                )
        self.name = f"static:{prefill:g}/{decode:g}"
        self._prefill, self._decode, self._max_prefill = prefill / 100, decode / 100, max_prefill

    def divide(self, demand: Demand) -> Division:
        prefill, decode = (max(1, round(share * demand.num_units)) for share in (self._prefill, self._decode))
        return Division(False, prefill, decode, self._max_prefill)
