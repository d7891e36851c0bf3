"""What counts and measures: plain numbers of one thread, turned into Prometheus families when somebody looks.

Every instrument belongs to the event loop's thread, so none takes a lock: a histogram costs a bisection per value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from braid.core.metrics import Histogram, HistogramCounter

Labels = tuple[str, ...]

LABELS: Labels = ("model_name", "engine")
"""On every metric; vLLM's spelling."""
OTHER = "other"
"""Stands for every label value beyond the most that a family keeps."""
_MOST_VALUES = 64


class Counter:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def inc(self, amount: float = 1) -> None:
        self.value += amount


class CounterFamily:
    """Counters by label values. Values beyond the first few dozen count as ``other``: cardinality is bounded."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.counters: dict[Labels, Counter] = {}

    def of(self, *values: str) -> Counter:
        """The counter of these label values, made on first use."""
        assert len(values) == len(self.labels), values
        counter = self.counters.get(values)
        if counter is None:
            if len(self.counters) >= _MOST_VALUES:
                values = (OTHER,) * len(values)
            counter = self.counters.setdefault(values, Counter())
        return counter


Instrument = Counter | HistogramCounter | CounterFamily
_I = TypeVar("_I", Counter, HistogramCounter, CounterFamily)


class Instruments:
    """The instruments of one process, by name, with their help."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[str, Instrument]] = {}

    def counter(self, name: str, help: str) -> Counter:
        return self._add(name, help, Counter())

    def counters(self, name: str, help: str, *labels: str) -> CounterFamily:
        return self._add(name, help, CounterFamily(labels))

    def histogram(self, name: str, help: str, bounds: Sequence[float]) -> HistogramCounter:
        return self._add(name, help, HistogramCounter(bounds))

    def families(self, common: Labels) -> Iterator[Metric]:
        """Everything as it stands; ``common`` has the values of ``LABELS``."""
        for name, (help, instrument) in self._entries.items():
            if isinstance(instrument, Counter):
                yield total(name, help, instrument.value, common)
            elif isinstance(instrument, CounterFamily):
                values = {key: counter.value for key, counter in instrument.counters.items()}
                yield totals(name, help, instrument.labels, values, common)
            else:
                yield histogram(name, help, instrument.read(), common)

    def _add(self, name: str, help: str, instrument: _I) -> _I:
        assert name not in self._entries, name
        self._entries[name] = (help, instrument)
        return instrument


def bounded(values: Mapping[str, float]) -> dict[str, float]:
    """The first few dozen values: names come from another process, and cardinality is bounded here."""
    return dict(islice(values.items(), _MOST_VALUES))


def gauge(name: str, help: str, value: float, common: Labels) -> Metric:
    family = GaugeMetricFamily(f"braid_{name}", help, labels=LABELS)
    family.add_metric(common, value)
    return family


def gauges(name: str, help: str, label: str, values: dict[str, float], common: Labels) -> Metric:
    """One gauge per value of ``label``."""
    family = GaugeMetricFamily(f"braid_{name}", help, labels=(*LABELS, label))
    for key, value in values.items():
        family.add_metric((*common, key), value)
    return family


def total(name: str, help: str, value: float, common: Labels) -> Metric:
    family = CounterMetricFamily(f"braid_{name}", help, labels=LABELS)
    family.add_metric(common, value)
    return family


def totals(name: str, help: str, labels: Labels, values: dict[Labels, float], common: Labels) -> Metric:
    """One counter per tuple of values of ``labels``."""
    family = CounterMetricFamily(f"braid_{name}", help, labels=(*LABELS, *labels))
    for key, value in values.items():
        family.add_metric((*common, *key), value)
    return family


def histogram(name: str, help: str, value: Histogram, common: Labels) -> Metric:
    family = HistogramMetricFamily(f"braid_{name}", help, labels=LABELS)
    buckets, seen = [], 0
    for bound, count in zip((*value.bounds, float("inf")), value.counts, strict=True):
        seen += count
        buckets.append((repr(bound), float(seen)))
    buckets[-1] = ("+Inf", buckets[-1][1])
    family.add_metric(common, buckets, value.total)
    return family


def info(name: str, help: str, values: dict[str, str], common: Labels) -> Metric:
    family = InfoMetricFamily(f"braid_{name}", help, labels=LABELS)
    family.add_metric(common, values)
    return family
