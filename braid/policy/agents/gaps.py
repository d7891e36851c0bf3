"""What was seen of programs so far: gaps between turns, waits after evictions, and how long programs are.

All of it is bounded; the windows are those that the papers do not print, so they are arguments.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Sequence

MAX_SAMPLES = 4096
MAX_TOOLS = 1024
MAX_WAITS = 256
MAX_LENGTHS = 256


class Samples:
    """The latest ``limit`` values, in order of size."""

    __slots__ = ("_by_age", "_limit", "sorted")

    def __init__(self, limit: int = MAX_SAMPLES) -> None:
        self._limit = limit
        self._by_age: deque[float] = deque()
        self.sorted: list[float] = []

    def __len__(self) -> int:
        return len(self.sorted)

    def add(self, value: float) -> None:
        if len(self.sorted) == self._limit:
            del self.sorted[bisect_left(self.sorted, self._by_age.popleft())]
        self._by_age.append(value)
        insort(self.sorted, value)

    @property
    def mean(self) -> float:
        """0 without values."""
        return sum(self.sorted) / len(self.sorted) if self.sorted else 0.0


class ToolGaps:
    """Seconds from the end of a turn to the arrival of the next, by tool and pooled; tools least recently seen go."""

    def __init__(self, max_samples: int = MAX_SAMPLES, max_tools: int = MAX_TOOLS) -> None:
        self._max_samples, self._max_tools = max_samples, max_tools
        self.all = Samples(max_samples)
        self._tools: OrderedDict[str, Samples] = OrderedDict()

    def add(self, tool: str, seconds: float) -> None:
        self.all.add(seconds)
        samples = self._tools.setdefault(tool, Samples(self._max_samples))
        self._tools.move_to_end(tool)
        samples.add(seconds)
        while len(self._tools) > self._max_tools:
            self._tools.popitem(last=False)

    def of(self, tool: str) -> Sequence[float]:
        """Sorted; empty for a tool that was not seen."""
        samples = self._tools.get(tool)
        return samples.sorted if samples is not None else ()


class SlidingMean:
    """Of the last ``limit`` values; 0 without any."""

    __slots__ = ("_total", "_values", "limit")

    def __init__(self, limit: int = MAX_WAITS) -> None:
        self.limit = limit
        self._values: deque[float] = deque()
        self._total = 0.0

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: float) -> None:
        if len(self._values) == self.limit:
            self._total -= self._values.popleft()
        self._values.append(value)
        self._total += value

    @property
    def value(self) -> float:
        return self._total / len(self._values) if self._values else 0.0


class Memoryfulness:
    """eta = -Corr(k, N - k) over all k = 1 .. N - 1 of the latest programs that ended with N turns (Continuum, arXiv
    2511.02230): how much the turns done say about those to come.

    1 where all programs have one length, 0 for geometric ones; 0 where it is not defined.
    """

    def __init__(self, limit: int = MAX_LENGTHS) -> None:
        self._limit = limit
        self._lengths: deque[int] = deque()
        self._pairs = self._sum = self._squares = self._products = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def add(self, num_turns: int) -> None:
        """A program has ended after ``num_turns`` turns."""
        if len(self._lengths) == self._limit:
            self._count(self._lengths.popleft(), -1)
        self._lengths.append(num_turns)
        self._count(num_turns, 1)

    def _count(self, n: int, sign: int) -> None:
        # Over k = 1 .. n - 1, where n - k takes the same values as k: sum, sum of squares, sum of k * (n - k).
        total = n * (n - 1) // 2
        squares = (n - 1) * n * (2 * n - 1) // 6
        self._pairs += sign * max(0, n - 1)
        self._sum += sign * total
        self._squares += sign * squares
        self._products += sign * (n * total - squares)

    @property
    def value(self) -> float:
        if self._pairs == 0:
            return 0.0
        variance = self._squares * self._pairs - self._sum**2
        covariance = self._products * self._pairs - self._sum**2
        return -covariance / variance if variance > 0 else 0.0
