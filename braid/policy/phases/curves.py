"""How much longer a step of one phase takes on a part of the machine, before it was measured there.

Share 1 is the whole machine and takes factor 1. What is measured replaces all of this (``latency``).
"""

from __future__ import annotations

from bisect import bisect_left
from math import exp, log
from typing import NamedTuple, Protocol


class Curve(Protocol):
    def factor(self, units: float, num_units: float) -> float:
        """Seconds on ``units`` per second on all ``num_units``; at least 1, for any part of a unit above 0."""
        ...


class Amdahl(NamedTuple):
    """Cores: the ``parallel`` part of the time on one core is divided among them."""

    parallel: float

    def factor(self, units: float, num_units: float) -> float:
        if units < 1:
            return self.factor(1, num_units) / units
        return max(1.0, self._time(units) / self._time(num_units))

    def _time(self, units: float) -> float:
        return 1 - self.parallel + self.parallel / units


class Points(NamedTuple):
    """Groups of SMs: factors over shares, straight in logarithms between them and beyond the first."""

    shares: tuple[float, ...]
    factors: tuple[float, ...]

    def factor(self, units: float, num_units: float) -> float:
        share = min(1.0, units / num_units)
        high = min(max(bisect_left(self.shares, share), 1), len(self.shares) - 1)
        (x0, x1), (y0, y1) = self.shares[high - 1 : high + 1], self.factors[high - 1 : high + 1]
        weight = log(share / x0) / log(x1 / x0)
        return max(1.0, exp(log(y0) + weight * log(y1 / y0)))


class Curves(NamedTuple):
    """Args:
    prefill_shared, decode_shared: how much longer a step takes while the other lane computes, on units of its own.
    """

    prefill: Curve
    decode: Curve
    prefill_shared: float
    decode_shared: float


CORES = Curves(Amdahl(0.919), Amdahl(0.667), 1.07, 1.02)
"""Prefill 1.85 times as fast on two cores as on one, decode 1.5 times, and hardly any contention: measured with a toy
model on two cores."""
SMS = Curves(
    Points((16 / 132, 32 / 132, 64 / 132, 1.0), (7.5, 3.8, 1.92, 1.0)),
    Points(
        (8 / 132, 16 / 132, 24 / 132, 32 / 132, 48 / 132, 64 / 132, 1.0),
        (2.99, 1.76, 1.42, 1.24, 1.13, 1.06, 1.0),
    ),
    1.1,
    1.1,
)
"""Of a GPU with 132 SMs: what SGLang's ``srt/multiplex/predictor.py`` (commit 56f74d2) assumed; the contention is a
guess."""
