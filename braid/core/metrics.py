"""Formulas of serving metrics, written once: the server, the simulator and the benchmarks all use these.

All times are seconds on one clock. Definitions: TTFT from arrival to the first token; TBT between
consecutive tokens; TPOT the mean TBT of one request (no value for a single token); E2E from arrival to the
end; queueing delay from arrival to the first scheduling; JCT of a program from the first arrival of its requests to
the last end.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestTimes:
    """The times of one finished request; ``token_times`` holds when each output token was known (at least
    one). ``end`` is for those who see an answer end after its last token: a client.
    """

    request_id: str
    arrival: float
    first_scheduled: float
    token_times: Sequence[float]
    end: float | None = None

    @property
    def finished(self) -> float:
        return self.token_times[-1] if self.end is None else self.end

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_times)

    @property
    def queueing_delay(self) -> float:
        return self.first_scheduled - self.arrival

    @property
    def ttft(self) -> float:
        return self.token_times[0] - self.arrival

    @property
    def e2e(self) -> float:
        return self.finished - self.arrival

    @property
    def tpot(self) -> float | None:
        if len(self.token_times) < 2:
            return None
        return (self.token_times[-1] - self.token_times[0]) / (len(self.token_times) - 1)

    @property
    def tbts(self) -> list[float]:
        """One value fewer than there are tokens."""
        return [later - earlier for earlier, later in pairwise(self.token_times)]


def jct(requests: Sequence[RequestTimes]) -> float:
    """Job completion time of a program, given all its requests.

    Raises:
        ValueError: no requests.
    """
    if not requests:
        raise ValueError("a program has at least one request")
    return max(times.finished for times in requests) - min(times.arrival for times in requests)


def percentile(values: Iterable[float], q: float) -> float:
    """The ``q``-th percentile, linear between the closest ranks (Hyndman and Fan's type 7, numpy's
    default).

    Raises:
        ValueError: no values, or ``q`` outside [0, 100].
    """
    ordered = sorted(values)
    if not ordered:
        raise ValueError("a percentile needs at least one value")
    if not 0 <= q <= 100:
        raise ValueError(f"q must be in [0, 100], got {q!r}")
    rank = (len(ordered) - 1) * q / 100
    low = int(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (rank - low)


class Summary(NamedTuple):
    num: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


def summary(values: Iterable[float]) -> Summary:
    """Mean and percentiles together: one number alone misleads.

    Raises:
        ValueError: no values.
    """
    ordered = sorted(values)
    p50, p90, p99 = (percentile(ordered, q) for q in (50, 90, 99))
    return Summary(len(ordered), sum(ordered) / len(ordered), p50, p90, p99, ordered[-1])


@dataclass(frozen=True, kw_only=True, slots=True)
class SLO:
    """Limits that a request must keep, all of them; None for no limit. A single token keeps every TPOT
    limit. ``jct`` is a limit of programs; no request is judged by it.
    """

    ttft: float | None = None
    tpot: float | None = None
    e2e: float | None = None
    jct: float | None = None

    def is_met(self, times: RequestTimes) -> bool:
        pairs = ((self.ttft, times.ttft), (self.tpot, times.tpot), (self.e2e, times.e2e))
        return all(limit is None or value is None or value <= limit for limit, value in pairs)

    def is_met_by_program(self, requests: Sequence[RequestTimes]) -> bool:
        return self.jct is None or jct(requests) <= self.jct


def slo_attainment(requests: Sequence[RequestTimes], slo: SLO, num_refused: int = 0) -> float:
    """Fraction of the requests that kept the limits; refused ones count as missed.

    Raises:
        ValueError: no requests.
    """
    total = len(requests) + num_refused
    if total == 0:
        raise ValueError("attainment needs at least one request")
    return sum(slo.is_met(times) for times in requests) / total


def goodput(requests: Sequence[RequestTimes], slo: SLO, duration: float | None = None) -> float:
    """Requests per second that kept the limits (DistServe, arXiv 2401.09670), over ``duration`` seconds: the window
    that the requests were planned for. Without it from the first arrival to the last end.

    Raises:
        ValueError: no requests and no duration, or no time passed.
    """
    if duration is None:
        if not requests:
            raise ValueError("goodput needs at least one request")
        duration = max(times.finished for times in requests) - min(times.arrival for times in requests)
    if duration <= 0:
        raise ValueError("goodput needs time to pass")
    return sum(slo.is_met(times) for times in requests) / duration


class Histogram(NamedTuple):
    """How often values fell between fixed bounds: ``counts[i]`` of them in ``(bounds[i - 1], bounds[i]]``, the last
    count above all bounds. ``total`` is the sum of the values."""

    bounds: tuple[float, ...] = ()
    counts: tuple[int, ...] = (0,)
    total: float = 0.0


EMPTY_HISTOGRAM = Histogram()


class HistogramCounter:
    """A histogram that grows. ``bounds`` rise."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def read(self) -> Histogram:
        """As it is now."""
        return Histogram(self._bounds, tuple(self._counts), self._total)
