from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from braid.server.observe.instruments import OTHER, Instruments
from braid.server.observe.metrics import _Families

COMMON = ("tiny", "0")


def exposed(made: Instruments) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(made.families(COMMON)))
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (
            sample.name,
            *(value for key, value in sorted(sample.labels.items()) if key not in ("engine", "model_name")),
        ): sample.value
        for family in families
        for sample in family.samples
    }


def test_a_counter() -> None:
    made = Instruments()
    made.counter("things", "Things").inc(2)
    assert exposed(made) == {("braid_things_total",): 2}


def test_a_histogram_counts_up_to_its_bounds() -> None:
    made = Instruments()
    histogram = made.histogram("seconds", "Seconds", (0.5, 1.0))
    for value in (0.5, 0.6, 1.0, 7.0):
        histogram.observe(value)
    assert exposed(made) == {
        ("braid_seconds_bucket", "0.5"): 1,
        ("braid_seconds_bucket", "1.0"): 3,
        ("braid_seconds_bucket", "+Inf"): 4,
        ("braid_seconds_count",): 4,
        ("braid_seconds_sum",): pytest.approx(9.1),
    }


def test_label_values_are_bounded() -> None:
    made = Instruments()
    family = made.counters("answers", "Answers", "path", "status")
    for number in range(1000):
        family.of(f"/{number}", "200").inc()
    values = exposed(made)
    assert len(values) < 100
    assert sum(values.values()) == 1000
    assert values[("braid_answers_total", OTHER, OTHER)] > 900


def test_a_known_value_is_counted_when_the_family_is_full() -> None:
    family = Instruments().counters("answers", "Answers", "path")
    for number in range(1000):
        family.of(f"/{number}").inc()
    family.of("/0").inc()
    assert family.counters[("/0",)].value == 2
