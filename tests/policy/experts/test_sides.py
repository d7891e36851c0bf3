"""Who computes what: the plan's numbers, the cache's choice, free slots first, and no side forgotten."""

from __future__ import annotations

import random

import pytest

from braid.core.experts import ExpertShape
from braid.policy.experts.catalog import expert_cache
from braid.policy.experts.dispatch import plan
from braid.policy.experts.policy import Activated, ExpertTimes, Routed
from braid.policy.experts.sides import PROBE, PlannedSides
from braid.policy.experts.slots import SlotTable
from braid.policy.experts.times import BELIEVED, WARMING, LearntTimes

SHAPE = ExpertShape(2, 16, 4)
EVEN = ExpertTimes(link_s=1.0, link_busy_s=1.0, fast_s=0.1, fast_row_s=0.0, slow_s=1.0, slow_row_s=0.0)
QUICK_CPU = EVEN._replace(slow_s=0.05)
SLOW_CPU = EVEN._replace(slow_s=100.0)


def full_table(*experts: int, cache: str = "lfu") -> SlotTable:
    """No free slot, and these are in."""
    table = SlotTable(SHAPE, len(experts), expert_cache(cache, SHAPE))
    for expert in experts:
        table.use(Routed(SHAPE.layer_of(expert), {expert: 1}))
        table.loaded(expert)
        table.release([expert])
    return table


def sides(table: SlotTable, times: ExpertTimes, below: range = range(32)) -> PlannedSides:
    return PlannedSides(table, LearntTimes(times), lambda expert: expert in below)


def test_every_number_on_either_side_is_the_plans() -> None:
    rng = random.Random(4)
    for _ in range(200):
        held = rng.sample(range(16), rng.randint(1, 8))
        loads = {expert: rng.choice((1, 1, 2, 9)) for expert in rng.sample(range(16), 6)}
        times = EVEN._replace(slow_s=rng.uniform(0.1, 2), slow_row_s=rng.uniform(0, 0.5))
        found = sides(full_table(*held), times).slow(Routed(0, loads), ())
        needed = [Activated(expert, load, 0.0 if expert in held else None) for expert, load in loads.items()]
        made = plan(needed, times)
        assert sorted(loads[expert] for expert in found) == sorted(loads[expert] for expert in made.slow)
        assert found & set(held) == set(made.slow) & set(held)


def test_of_equals_the_most_useful_are_fetched() -> None:
    table = full_table(8, 9)
    for expert in (3, 3, 3, 1, 1):
        table.use(Routed(0, {expert: 1}), ())
        table.release([expert])
    made = plan([Activated(expert, 1, None) for expert in range(4)], EVEN)
    assert len(made.fetch) == 2
    assert sides(table, EVEN).slow(Routed(0, dict.fromkeys(range(4), 1)), ()) == {0, 2}


@pytest.mark.parametrize("num_free", [0, 1, 3, 8])
def test_free_slots_are_filled(num_free: int) -> None:
    table = SlotTable(SHAPE, num_free, expert_cache("mrs", SHAPE))
    slow = sides(table, QUICK_CPU).slow(Routed(1, dict.fromkeys(range(16, 21), 1)), ())
    assert len(slow) == max(0, 5 - num_free)


def test_one_that_has_a_slot_goes_to_the_cpu_only_if_it_is_at_hand_there() -> None:
    loads = dict.fromkeys(range(4), 1)
    table = full_table(0, 1, 2, 3)
    assert sides(table, QUICK_CPU).slow(Routed(0, loads), ())
    assert not sides(table, QUICK_CPU, below=range(0)).slow(Routed(0, loads), ())
    assert not sides(table, SLOW_CPU).slow(Routed(0, loads), ())


def test_one_that_is_on_its_way_is_waited_for() -> None:
    table = full_table(8, 9)
    table.use(Routed(0, {1: 1}))
    assert not sides(table, SLOW_CPU).slow(Routed(0, {1: 1, 8: 1}), (1,))
    assert 1 not in sides(table, EVEN).slow(Routed(0, {1: 1, 8: 1}), (1,))


def test_a_side_that_seemed_slow_is_tried_again() -> None:
    learnt = LearntTimes(EVEN)
    for _ in range(10 * (BELIEVED + WARMING)):
        learnt.slow(100.0, 1, 1)
    made = PlannedSides(full_table(8, 9), learnt, lambda expert: True)
    needs = Routed(0, dict.fromkeys(range(4), 1))
    tried = [bool(made.slow(needs, ())) for _ in range(2 * PROBE)]
    assert [place for place, was in enumerate(tried, 1) if was] == [PROBE, 2 * PROBE]
