"""How long a step will take, on all of the machine or on a part of it, learnt from the steps that happen anyway.

A step takes ``base x factor``. The base is that of the whole machine: a constant, one more with prompts, and so much
per prompt token, pair of tokens weighed, token of KV that a prompt reads, decode, and token of KV that decodes read.
The factor belongs to a lane, its units, and whether the other lane computes: it begins with a curve (``curves``) and
follows the ratio of what was seen, within a dozen steps; so it also follows a machine that others slow down.

The base is fitted to relative errors: a step that took a hundred times too long then weighs a hundredth.
"""

from __future__ import annotations

from math import exp, inf, log, sqrt
from typing import NamedTuple

from braid.policy.agents.costs import attended_pairs
from braid.policy.agents.least_squares import LeastSquares
from braid.policy.phases.curves import CORES, Curves
from braid.policy.phases.policy import StepSeen

PRIOR = (10e-3, 2e-3, 2e-3, 5e-7, 5e-6, 2e-3, 5e-6)
"""A small model on two cores: seconds per step, more with prompts, per prompt token, pair, token before a prompt's
(that a chunk reads however small it is), decode, token before a decode's.
Only the proportions matter; the first step gives the size."""
SMALLEST_S = 1e-6
LARGEST_LOG = log(3)
"""No step moves a factor as if it had taken more than three times what was expected, or less than a third."""
MEMORY = 8
"""Steps that a factor remembers."""
OVERRUN = 1.25
"""Times what was foreseen, that nearly every step takes at most: believed before anything was seen."""
KEPT = 0.98
"""Nearly every."""
OVERRUN_STEP = 0.1
"""By which a step that takes longer raises it, in logarithms."""
ALONE = 8
"""Steps of a phase on the whole machine after which others no longer teach the base."""


class Load(NamedTuple):
    """What a step computes; see ``StepSeen``."""

    num_prefill: int = 0
    num_pairs: float = 0.0
    num_decodes: int = 0
    num_context: int = 0

    @property
    def features(self) -> tuple[float, ...]:
        return (
            1.0,
            float(self.num_prefill > 0),
            float(self.num_prefill),
            self.num_pairs,
            self.num_pairs / max(1, self.num_prefill),
            float(self.num_decodes),
            float(self.num_context),
        )


class Prompts(NamedTuple):
    """What there is to compute: ``num`` tokens; of the next prompt ``length``, on top of ``start``. The others are
    taken to be like it, but new."""

    num: int
    start: int
    length: int

    def pairs(self, num: int) -> float:
        """That ``num`` tokens have to weigh."""
        first = min(num, self.length)
        total = self.start + self.length
        return attended_pairs(first, self.start) + (num - first) * total / 2


class _Factor:
    """A ratio, in logarithms, and how often it was seen."""

    __slots__ = ("begin", "log", "num")

    def __init__(self, begin: float) -> None:
        self.begin = self.log = begin
        self.num = 0

    def add(self, seen: float) -> None:
        off = max(-LARGEST_LOG, min(LARGEST_LOG, seen - self.log))
        self.num += 1
        self.log += off / min(self.num + 1, MEMORY)


class Latency:
    """Args:
    curves: believed of numbers of units that no step has had yet.
    """

    def __init__(self, curves: Curves = CORES) -> None:
        self._curves = curves
        self._base = LeastSquares(PRIOR)
        self._factors: dict[tuple[str, bool], dict[int, _Factor]] = {}
        self._num_alone = {"prefill": 0, "decode": 0}
        self.residual = 0.0
        """How far predictions usually are from what was seen, as a share of it."""
        self._overruns: dict[bool, float] = {}
        """Logarithms, of steps with prompts and without."""

    def step_s(self, lane: str, units: int, num_units: int, load: Load, *, is_shared: bool = False) -> float:
        """Seconds of a step of ``lane`` (``mixed``, ``prefill`` or ``decode``); always above 0."""
        base = max(SMALLEST_S, self._base.predict(load.features))
        return base * exp(self._log_factor(lane, units, num_units, is_shared))

    def chunk(
        self,
        lane: str,
        units: int,
        num_units: int,
        prompts: Prompts,
        decodes: Load,
        limit_s: float,
        *,
        is_shared: bool = False,
    ) -> int:
        """The most prompt tokens beside ``decodes`` with which a step ends by ``limit_s``; 0 if none can."""
        step, first, token, pair, before, decode, context = self._base.coefficients
        left = limit_s / exp(self._log_factor(lane, units, num_units, is_shared))
        left -= step + first + decode * decodes.num_decodes + context * decodes.num_context
        left -= before * (prompts.start + 0.5)
        if left <= 0:
            return 0
        linear, square = token + pair * (prompts.start + 0.5) + before / 2, pair / 2
        if linear + square <= 0:
            return prompts.num
        num = 2 * left / (linear + sqrt(linear * linear + 4 * square * left))
        if num > prompts.length:
            left -= prompts.length * (linear + square * prompts.length)
            each = token + square * (prompts.start + prompts.length)
            num = prompts.length + (left / each if each > 0 else inf)
        return int(min(num, prompts.num))

    def seen(self, step: StepSeen, num_units: int) -> None:
        """Learn from a step on ``step.units`` of ``num_units``; one whose units changed meanwhile tells nothing."""
        if step.is_reshared:
            return
        units = min(step.units, num_units) or num_units
        load = Load(step.num_prefill, step.num_pairs, step.num_decodes, step.num_context)
        seconds = max(SMALLEST_S, step.seconds)
        expected = self.step_s(step.lane, units, num_units, load, is_shared=step.is_shared)
        error = min(1.0, abs(expected - seconds) / seconds)
        self.residual += 0.05 * (error - self.residual)
        if load.num_decodes:
            self._overran(load.num_prefill > 0, log(seconds / expected))
        is_alone = units == num_units and not step.is_shared
        phases = ("prefill",) * (step.num_prefill > 0) + ("decode",) * (step.num_decodes > 0)
        if is_alone:
            for phase in phases:
                self._num_alone[phase] += 1
        if is_alone or any(self._num_alone[phase] < ALONE for phase in phases):
            whole = seconds / exp(self._prior_log(step.lane, units, num_units, step.is_shared))
            self._base.add([value / whole for value in load.features], 1.0)
        base = max(SMALLEST_S, self._base.predict(load.features))
        self._factor(step.lane, units, num_units, step.is_shared).add(log(seconds / base))

    def overrun(self, *, with_prompts: bool) -> float:
        """Times what is foreseen, that nearly every step with decodes takes at most; at least 1. A quantile that is
        followed step by step."""
        return exp(self._overruns.get(with_prompts, log(OVERRUN)))

    def _overran(self, with_prompts: bool, seen: float) -> None:
        now = self._overruns.get(with_prompts, log(OVERRUN))
        now += OVERRUN_STEP * (KEPT if seen > now else KEPT - 1)
        self._overruns[with_prompts] = max(0.0, min(LARGEST_LOG, now))

    def factor(self, lane: str, units: int, num_units: int, *, is_shared: bool) -> float:
        """Seconds per second on the whole machine without another lane."""
        return exp(self._log_factor(lane, units, num_units, is_shared))

    def _log_factor(self, lane: str, units: int, num_units: int, is_shared: bool) -> float:
        """As seen; else the curve, corrected as the nearest number of units that was seen."""
        known = self._factors.get((lane, is_shared))
        if known is None:
            return self._prior_log(lane, units, num_units, is_shared)
        if units in known:
            return known[units].log
        nearest = known[min(known, key=lambda seen: (abs(log(seen / units)), seen))]
        return self._prior_log(lane, units, num_units, is_shared) + nearest.log - nearest.begin

    def _factor(self, lane: str, units: int, num_units: int, is_shared: bool) -> _Factor:
        known = self._factors.setdefault((lane, is_shared), {})
        if units not in known:
            known[units] = _Factor(self._prior_log(lane, units, num_units, is_shared))
        return known[units]

    def _prior_log(self, lane: str, units: int, num_units: int, is_shared: bool) -> float:
        if lane == "mixed":
            return 0.0
        curves = self._curves
        curve, shared = (
            (curves.prefill, curves.prefill_shared)
            if lane == "prefill"
            else (curves.decode, curves.decode_shared)
        )
        return log(curve.factor(units, num_units) * (shared if is_shared else 1.0))
