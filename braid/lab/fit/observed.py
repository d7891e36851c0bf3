"""Arrivals as a fit sees them: times within the spans of time that were looked at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from braid.lab.distance import Floats, idc, window_counts

Spans = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Observed:
    """Rising ``times`` (s) that lie in ``spans``, half-open intervals in order; ``quantum_s`` of the clock, 0 for none.

    Spans and not one span, because held-out time may be cut out of the middle.
    """

    times: Floats
    spans: Spans
    quantum_s: float = 0.0

    @property
    def covered_s(self) -> float:
        return sum(stop - start for start, stop in self.spans)

    @property
    def rate(self) -> float:
        return self.times.size / self.covered_s if self.covered_s else 0.0

    def gaps(self) -> Floats:
        """Gaps between arrivals of the same span, in seconds."""
        gaps: Floats = np.diff(self.times)
        if len(self.spans) < 2:
            return gaps
        owner = np.searchsorted([start for start, _ in self.spans], self.times, "right")
        return np.asarray(gaps[np.diff(owner) == 0])

    def counts(self, window_s: float) -> Floats:
        return window_counts(self.times, window_s, self.spans).astype(float)

    def idc(self, window_s: float) -> float:
        return idc(self.times, window_s, self.spans)

    def within(self, spans: Spans) -> Observed:
        """The part in other spans, which lie within these."""
        keep = np.zeros(self.times.size, bool)
        for start, stop in spans:
            low, high = np.searchsorted(self.times, [start, stop])
            keep[low:high] = True
        return Observed(self.times[keep], spans, self.quantum_s)


def observed(times: Floats, quantum_s: float = 0.0) -> Observed:
    """Everything from the first arrival to just after the last (one quantum, or one mean gap).

    Raises:
        ValueError: fewer than two arrivals, or all at one time.
    """
    times = np.sort(times)
    if times.size < 2 or times[-1] <= times[0]:
        raise ValueError(f"arrivals cannot be fitted to {times.size} request(s) at fewer than two times")
    end = float(times[-1]) + (quantum_s or (times[-1] - times[0]) / (times.size - 1))
    return Observed(times, ((float(times[0]), end),), quantum_s)


def alternate(spans: Spans, block_s: float, part: int) -> Spans:
    """Every second block of ``block_s`` seconds of these spans: the even ones (``part`` 0) or the odd ones (1)."""
    origin = spans[0][0]
    kept = []
    for start, stop in spans:
        first, last = int((start - origin) // block_s), int(np.ceil((stop - origin) / block_s))
        for block in range(first, last):
            low, high = max(start, origin + block * block_s), min(stop, origin + (block + 1) * block_s)
            if block % 2 == part and high > low:
                kept.append((low, high))
    return tuple(kept)


def halves(spans: Spans, part: int) -> Spans:
    """The first (0) or the second (1) half of the time from the first start to the last stop."""
    middle = (spans[0][0] + spans[-1][1]) / 2
    if part == 0:
        return tuple((a, min(b, middle)) for a, b in spans if a < middle)
    return tuple((max(a, middle), b) for a, b in spans if b > middle)


def dequantise(times: Floats, quantum_s: float, rng: np.random.Generator) -> Floats:
    """Times moved by a uniform shift inside their quantum, the order kept: rank i gets the i-th smallest shift.

    Times within half a quantum of a grid point belong to it (clocks jitter by milliseconds); the shift spans
    ``[0, quantum)`` from that point.
    """
    if quantum_s <= 0:
        return times
    cell = np.round(times / quantum_s)
    moved: Floats = (cell + rng.random(times.size)) * quantum_s
    order = np.lexsort((moved, cell))
    result = np.empty_like(moved)
    result[np.argsort(cell, kind="stable")] = moved[order]
    return result
