"""Which load to try next: the search behind a sweep, without a server, a clock or a trace.

First by growth, then by halving the stretch between the highest load that met the target and the lowest above it that
did not (geometrically), until they are close enough. One replay is one draw of a noisy server: a load whose interval
holds the target is repeated, and so are the two ends of the answer, which may turn a verdict and send the search on. A
replay that is invalid says nothing about the server and decides nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from braid.core.errors import InvalidParameterError

Verdict = Literal["met", "missed", "unmeasured"]
Kind = Literal["bracketed", "all_met", "none_met", "client_limited", "unmeasured", "stopped"]
"""
    bracketed       met at ``Answer.met``, missed at ``Answer.missed``
    all_met         met up to the highest load that was allowed
    none_met        missed down to the lowest
    client_limited  met at ``Answer.met``; every replay at the next load tried was invalid
    unmeasured      no replay was valid
    stopped         ended from outside before it was done
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchOptions:
    """What to look for.

    Args:
        target: share of the planned requests that must keep the limits.
        start: the first load; ``lowest`` and ``highest``: none outside is tried.
        growth: factor between loads while only one side of the answer is known.
        resolution: the ends of the answer lie no further apart than this share of the lower one.
        ends: replays of each end of the answer, at least.
        max_repeats: valid replays of one load, at most; then the mean decides, and the load is called close.
        max_invalid: invalid replays of one load, at most.

    Raises:
        InvalidParameterError: a value that makes no search.
    """

    target: float = 0.9
    start: float = 1.0
    lowest: float = 1 / 64
    highest: float = 64.0
    growth: float = 2.0
    resolution: float = 0.1
    ends: int = 2
    max_repeats: int = 4
    max_invalid: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.target <= 1:
            raise InvalidParameterError(
                f"the attainment to reach must be above 0 and at most 1, got {self.target}"
            )
        if not 0 < self.lowest <= self.start <= self.highest < math.inf:
            loads = f"{self.lowest:g} <= {self.start:g} <= {self.highest:g}"
            raise InvalidParameterError(
                f"loads must be positive, with lowest <= start <= highest, got {loads}"
            )
        if self.growth <= 1 or self.resolution <= 0:
            got = f"{self.growth:g} and {self.resolution:g}"
            raise InvalidParameterError(f"growth must be above 1 and the resolution above 0, got {got}")
        if not 1 <= self.ends <= self.max_repeats or self.max_invalid < 1:
            got = f"{self.ends}, {self.max_repeats} and {self.max_invalid}"
            raise InvalidParameterError(
                f"repeats must be 1 <= ends <= most, invalid ones at least 1, got {got}"
            )


class Probe(NamedTuple):
    """A replay to make. ``repeat`` counts the replays of this load, from 0; ``number`` all of them."""

    load: float
    repeat: int
    number: int


class Reading(NamedTuple):
    """What a replay said: attainment with its 95 % interval, or why it says nothing (``invalid``)."""

    attainment: float = math.nan
    low: float = math.nan
    high: float = math.nan
    invalid: str = ""


class Level(NamedTuple):
    """What is known of one load. ``verdict`` is None while it is open; ``close``: the repeats ran out, the mean
    decided."""

    load: float
    verdict: Verdict | None
    close: bool
    attainment: float
    low: float
    high: float
    valid: int
    invalid: int


class Answer(NamedTuple):
    """The result: the target is met at ``met`` and missed (or not measured) at ``missed``, the next load tried."""

    kind: Kind
    met: float | None
    missed: float | None


@dataclass(slots=True)
class Search:
    """``probe()`` says what to play; ``tell()`` what came of it; ``answer()`` what is known by now."""

    options: SearchOptions
    _readings: dict[float, list[Reading]] = field(default_factory=dict)
    _number: int = 0

    def probe(self) -> Probe | None:
        """The replay that is wanted now; None when the search is over."""
        load = self._next_load()
        return None if load is None else Probe(load, len(self._readings.get(load, [])), self._number)

    def tell(self, load: float, reading: Reading) -> None:
        """What a replay at ``load`` said."""
        self._readings.setdefault(load, []).append(reading)
        self._number += 1

    def levels(self) -> list[Level]:
        """Every load that was tried, rising."""
        return [self._level(load) for load in sorted(self._readings)]

    def answer(self) -> Answer:
        met, missed = self._ends()
        if self.probe() is not None:
            kind: Kind = "stopped"
        elif met is None:
            kind = "none_met" if any(level.verdict == "missed" for level in self.levels()) else "unmeasured"
        elif missed is None:
            kind = "all_met"
        else:
            kind = "bracketed" if self._level(missed).verdict == "missed" else "client_limited"
        return Answer(kind, met, missed)

    def _next_load(self) -> float | None:
        for load, readings in self._readings.items():
            if readings and self._level(load).verdict is None:
                return load
        met, missed = self._ends()
        options = self.options
        if met is None and missed is None:
            return options.start
        if missed is None and met is not None:
            grown = min(options.highest, met * options.growth)
            return self._unsure(met) if met >= options.highest else grown
        if met is None and missed is not None:
            shrunk = max(options.lowest, missed / options.growth)
            return self._unsure(missed) if missed <= options.lowest else shrunk
        assert met is not None
        assert missed is not None
        if missed / met > 1 + options.resolution:
            return math.sqrt(met * missed)
        return self._unsure(met, missed)

    def _ends(self) -> tuple[float | None, float | None]:
        """The lowest load that was not met, and the highest met one below it."""
        levels = self.levels()
        missed = next((level.load for level in levels if level.verdict in ("missed", "unmeasured")), None)
        below = [
            level.load
            for level in levels
            if level.verdict == "met" and (missed is None or level.load < missed)
        ]
        return (below[-1] if below else None), missed

    def _unsure(self, *ends: float) -> float | None:
        """An end of the answer that was not played often enough."""
        for load in ends:
            level = self._level(load)
            if level.verdict != "unmeasured" and level.valid < self.options.ends and self._may_repeat(level):
                return load
        return None

    def _may_repeat(self, level: Level) -> bool:
        return level.valid < self.options.max_repeats and level.invalid < self.options.max_invalid

    def _level(self, load: float) -> Level:
        readings = self._readings[load]
        valid = [reading for reading in readings if not reading.invalid]
        invalid = len(readings) - len(valid)
        if not valid:
            open_ = invalid < self.options.max_invalid
            nan = math.nan
            return Level(load, None if open_ else "unmeasured", False, nan, nan, nan, 0, invalid)
        mean, low, high = combined(valid)
        level = Level(load, None, False, mean, low, high, len(valid), invalid)
        if low >= self.options.target:
            return level._replace(verdict="met")
        if high < self.options.target:
            return level._replace(verdict="missed")
        if self._may_repeat(level):
            return level
        return level._replace(verdict="met" if mean >= self.options.target else "missed", close=True)


def combined(readings: list[Reading]) -> tuple[float, float, float]:
    """Mean attainment of several replays with an interval: their own intervals' width over the root of their number,
    or twice the standard error of their spread, whichever is wider."""
    num = len(readings)
    mean = math.fsum(reading.attainment for reading in readings) / num
    below = math.fsum(reading.attainment - reading.low for reading in readings) / num / math.sqrt(num)
    above = math.fsum(reading.high - reading.attainment for reading in readings) / num / math.sqrt(num)
    spread = 0.0
    if num > 1:
        squares = math.fsum((reading.attainment - mean) ** 2 for reading in readings)
        spread = 2 * math.sqrt(squares / (num - 1) / num)
    return mean, max(0.0, mean - max(below, spread)), min(1.0, mean + max(above, spread))
