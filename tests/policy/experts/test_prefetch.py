"""What is fetched early: only what pays, only on an idle link, one at a time."""

from __future__ import annotations

from math import inf

import pytest

from braid.core.experts import ExpertShape
from braid.policy.experts.catalog import expert_cache
from braid.policy.experts.policy import ExpertTimes, Routed
from braid.policy.experts.prefetch import ASKED, REST, Prefetch, Prefetcher
from braid.policy.experts.slots import SlotTable

SHAPE = ExpertShape(layers=4, per_layer=8, top_k=2)
DISK = ExpertTimes(link_s=0.002, link_busy_s=0.002, fast_s=0.001, fast_row_s=0, slow_s=inf, slow_row_s=0)


def table_of(num_slots: int, name: str = "mrs") -> SlotTable:
    return SlotTable(SHAPE, num_slots, expert_cache(name, SHAPE), floor=0)


def hold(table: SlotTable, layer: int, *experts: int) -> None:
    """Used once, and there since."""
    demand = table.use(Routed(layer, dict.fromkeys(experts, 1), dict.fromkeys(experts, 0.5)))
    for load in demand.loads:
        table.loaded(load.expert)
    table.release(experts)


def quiet(prefetcher: Prefetcher, step_s: float = 0.4) -> None:
    """Steps without a miss: nobody is delayed."""
    for _ in range(100):
        for layer in range(SHAPE.layers):
            prefetcher.routed(layer, {}, 0)
        prefetcher.step_took(step_s, 1)


def test_a_missing_expert_of_a_later_layer_is_fetched_and_only_one_at_a_time() -> None:
    prefetcher = Prefetcher(table_of(4), mode="on")
    quiet(prefetcher)
    prefetcher.routed(0, {0: 1, 1: 1}, 0)
    prefetcher.predicted(1, 1, {8: 1, 9: 1}, {8: 0.3, 9: 0.6})
    assert prefetcher.next(DISK, link_idle=False) is None
    found = prefetcher.next(DISK, link_idle=True)
    assert found is not None
    assert (found.expert, found.victim) == (9, None), "both gain as much; the router prefers it"
    assert found.value_s == pytest.approx(0.8 * 0.002, rel=1e-3)
    assert prefetcher.next(DISK, link_idle=True) is None
    prefetcher.landed(found.expert)
    prefetcher.residency.prefetch(9)  # type: ignore[attr-defined]
    after = prefetcher.next(DISK, link_idle=True)
    assert after is not None
    assert after.expert == 8


def test_nothing_is_fetched_for_a_layer_that_is_over_or_that_gains_nothing() -> None:
    table = table_of(8)
    prefetcher = Prefetcher(table, mode="on")
    quiet(prefetcher)
    prefetcher.routed(1, {}, 0)
    prefetcher.predicted(1, 1, {8: 1})
    assert prefetcher.next(DISK, link_idle=True) is None
    prefetcher.predicted(2, 1, {16: 1})
    slow_side = DISK._replace(slow_s=0.0005)
    assert prefetcher.next(slow_side, link_idle=True) is None, "the slow side is faster than memory here"
    assert prefetcher.next(DISK, link_idle=True) is not None
    prefetcher.landed(16)
    prefetcher.step_took(0.1, 1)
    assert prefetcher.next(DISK, link_idle=True) is None, "predictions end with their step"


def test_a_fetch_that_would_delay_demanded_experts_does_not_begin() -> None:
    """Every layer misses something, and layers are shorter than a transfer."""
    prefetcher = Prefetcher(table_of(4), mode="on")
    for _ in range(100):
        for layer in range(SHAPE.layers):
            prefetcher.routed(layer, {layer * 8: 1}, 1)
        prefetcher.step_took(0.0004, 1)
    prefetcher.predicted(1, 1, {8: 1})
    assert prefetcher.next(DISK, link_idle=True) is None


def test_the_next_layers_gain_is_less_if_the_transfer_comes_late() -> None:
    prefetcher = Prefetcher(table_of(4), mode="on")
    quiet(prefetcher, step_s=0.004)
    prefetcher.routed(0, {}, 0)
    prefetcher.predicted(1, 1, {8: 1})
    found = prefetcher.next(DISK, link_idle=True)
    assert found is not None
    assert found.value_s == pytest.approx(0.8 * 0.001, rel=1e-3), (
        "one of its two milliseconds is left to wait"
    )


def test_whoever_goes_counts_and_more_the_likelier_predictions_are_wrong() -> None:
    table = table_of(2)
    hold(table, 3, 30, 31)
    values = []
    for precise in (True, False):
        prefetcher = Prefetcher(table, mode="on")
        for step in range(400):
            prefetcher.predicted(1, 1, {8: 1})
            prefetcher.routed(1, {8: 1} if precise or step % 2 else {9: 1}, 0)
            prefetcher.step_took(0.4, 1)
        assert prefetcher.precision(1) == pytest.approx(1.0 if precise else 0.5, abs=0.1)
        prefetcher.predicted(1, 1, {8: 1})
        found = prefetcher.next(DISK, link_idle=True)
        assert found is not None
        assert found.victim in (30, 31)
        values.append(found.value_s / (prefetcher.precision(1) * DISK.link_s))
    assert values[1] < values[0] < 1


def test_nobody_goes_who_is_foretold_himself() -> None:
    table = table_of(1)
    hold(table, 2, 16)
    prefetcher = Prefetcher(table, mode="on")
    quiet(prefetcher)
    prefetcher.predicted(1, 1, {8: 1})
    prefetcher.predicted(2, 2, {16: 1})
    assert prefetcher.next(DISK, link_idle=True) is None
    prefetcher.predicted(2, 2, {17: 1})
    found = prefetcher.next(DISK, link_idle=True)
    assert found == Prefetch(8, 16, found.value_s if found else 0)


def test_precision_is_measured_for_every_distance_over_what_was_missing() -> None:
    table = table_of(4)
    hold(table, 3, 24)
    prefetcher = Prefetcher(table, mode="on")
    for _ in range(300):
        prefetcher.predicted(3, 3, {24: 1, 25: 1})
        prefetcher.predicted(3, 1, {24: 1, 26: 1})
        prefetcher.routed(3, {24: 1, 26: 1}, 1)
        prefetcher.step_took(0.1, 1)
    assert prefetcher.precision(1) > 0.95
    assert prefetcher.precision(2) == 0.75, "never checked"
    assert prefetcher.precision(3) < 0.1, "the one that was held does not count"
    assert prefetcher.describe()["precision_1"] == prefetcher.precision(1)


def test_off_is_off() -> None:
    prefetcher = Prefetcher(table_of(4), mode="off")
    prefetcher.predicted(1, 1, {8: 1})
    assert not prefetcher.is_on
    assert prefetcher.next(DISK, link_idle=True) is None


def test_predictions_that_cost_more_than_they_win_are_left_out_for_a_while() -> None:
    """A prediction that takes 3 ms may lead to a fetch that saves 1.6 ms at most; one that takes 0.1 ms is worth it."""
    for seconds in (0.003, 0.0001):
        prefetcher = Prefetcher(table_of(4), mode="on")
        asked = []
        for step in range(ASKED + REST + 1):
            asked.append(prefetcher.is_on)
            for layer in range(SHAPE.layers):
                prefetcher.routed(layer, {8: 1} if layer == 1 else {}, 0)
                if layer == 0 and prefetcher.is_on:
                    prefetcher.predicted(1, 1, {8: 1, 9: 1, 10: 1, 11: 1}, seconds=seconds)
                    found = prefetcher.next(DISK, link_idle=True)
                    if found is not None:
                        prefetcher.landed(found.expert)
            prefetcher.step_took(0.4, 1)
            if seconds > 0.001 and step == ASKED:
                assert prefetcher.describe()["resting_steps"] == REST - 1
        assert sum(asked) == (ASKED + 1 if seconds > 0.001 else len(asked))
        assert asked[-1], "it is tried again"
