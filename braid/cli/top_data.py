"""What ``braid top`` knows: scrapes of ``/metrics``, and what lies between two of them."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_SAMPLE = re.compile(r"(braid_\w+)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Scrape:
    """The samples of one answer of ``/metrics``; ``at`` is monotonic, in seconds."""

    at: float
    samples: Mapping[str, Mapping[Labels, float]]

    def value(self, name: str) -> float:
        """The sum over all labels; 0 where the metric is missing."""
        return sum(self.samples.get(f"braid_{name}", {}).values())

    def has(self, name: str) -> bool:
        return f"braid_{name}" in self.samples

    def by(self, name: str, label: str) -> dict[str, float]:
        """The values of a metric by one of its labels."""
        found: dict[str, float] = {}
        for labels, value in self.samples.get(f"braid_{name}", {}).items():
            key = dict(labels).get(label, "")
            found[key] = found.get(key, 0.0) + value
        return found

    def label(self, label: str) -> str:
        """The first value of a label that any metric has."""
        for series in self.samples.values():
            for labels in series:
                for name, value in labels:
                    if name == label:
                        return value
        return ""


def parse(text: str, at: float) -> Scrape:
    """Braid's own samples of a Prometheus text; the rest is passed over."""
    samples: dict[str, dict[Labels, float]] = {}
    for line in text.splitlines():
        found = _SAMPLE.fullmatch(line)
        if found is not None:
            labels = tuple(sorted(_LABEL.findall(found[2] or "")))
            samples.setdefault(found[1], {})[labels] = float(found[3])
    return Scrape(at, samples)


class Buckets(NamedTuple):
    """A histogram: rising upper bounds (the last infinite), and how many values fell into each."""

    bounds: tuple[float, ...]
    counts: tuple[float, ...]

    @property
    def num(self) -> float:
        return sum(self.counts)

    def since(self, earlier: Buckets) -> Buckets:
        """What was added; all of it if the counts began anew in between."""
        if earlier.bounds != self.bounds or earlier.num > self.num:
            return self
        pairs = zip(self.counts, earlier.counts, strict=True)
        return Buckets(self.bounds, tuple(max(0.0, now - then) for now, then in pairs))

    def quantile(self, q: float) -> float | None:
        """Linear within a bucket, as Prometheus does; above the last finite bound that bound. None without values."""
        rank = self.num * q
        below, lower = 0.0, 0.0
        if not self.num:
            return None
        for bound, count in zip(self.bounds, self.counts, strict=True):
            if count and below + count >= rank:
                return lower if bound == float("inf") else lower + (bound - lower) * (rank - below) / count
            below += count
            lower = bound if bound != float("inf") else lower
        return lower


def buckets(scrape: Scrape, name: str) -> Buckets:
    """The histogram ``name``; empty where it is missing."""
    series = scrape.by(f"{name}_bucket", "le")
    cumulative = sorted((float(bound), count) for bound, count in series.items())
    counts = [count - before for (_, count), before in zip(cumulative, _before(cumulative), strict=True)]
    return Buckets(tuple(bound for bound, _ in cumulative), tuple(counts))


def _before(cumulative: list[tuple[float, float]]) -> Iterator[float]:
    yield from [0.0, *(count for _, count in cumulative)][: len(cumulative)]


@dataclass(slots=True)
class History:
    """Scrapes of the last ``seconds``, and what the rates were."""

    seconds: float = 10.0
    scrapes: deque[Scrape] = field(default_factory=deque)
    sessions: list[dict[str, Any]] | None = None
    """What ``/v1/sessions`` said; None where the server has no such list."""
    rates_in: deque[float] = field(default_factory=lambda: deque(maxlen=200))
    rates_out: deque[float] = field(default_factory=lambda: deque(maxlen=200))

    @property
    def now(self) -> Scrape:
        return self.scrapes[-1]

    @property
    def span(self) -> float:
        """Seconds between the oldest and the newest scrape."""
        return self.now.at - self.scrapes[0].at

    def add(self, scrape: Scrape) -> None:
        if self.scrapes:
            last = self.scrapes[-1]
            self.rates_in.append(_rate(last, scrape, "prompt_tokens_total"))
            self.rates_out.append(_rate(last, scrape, "generation_tokens_total"))
        self.scrapes.append(scrape)
        while len(self.scrapes) > 2 and self.scrapes[1].at <= scrape.at - self.seconds:
            self.scrapes.popleft()

    def rate(self, name: str) -> float:
        """What a counter gained per second over the window."""
        return _rate(self.scrapes[0], self.now, name)

    def added(self, name: str) -> float:
        """What a counter gained over the window."""
        return _gain(self.scrapes[0], self.now, name)

    def window(self, name: str) -> Buckets:
        """The values that a histogram gained over the window."""
        return buckets(self.now, name).since(buckets(self.scrapes[0], name))


def _gain(earlier: Scrape, later: Scrape, name: str) -> float:
    """A counter that fell has begun anew: all that it shows is new."""
    before, after = earlier.value(name), later.value(name)
    return after - before if after >= before else after


def _rate(earlier: Scrape, later: Scrape, name: str) -> float:
    seconds = later.at - earlier.at
    return _gain(earlier, later, name) / seconds if seconds > 0 else 0.0
