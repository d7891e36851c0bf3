"""Plans for the experts of a layer: against every other plan there is, and against what the note on experts says."""

from __future__ import annotations

import random
from itertools import combinations, permutations
from math import inf

import pytest

from braid.policy.experts.dispatch import gain, makespan, plan
from braid.policy.experts.policy import Activated, DispatchPlan, ExpertTimes

PAPER = ExpertTimes(link_s=3, link_busy_s=3, fast_s=1, fast_row_s=0, slow_s=0, slow_row_s=1)
"""The paper's example: one unit on the GPU, as many as rows on the CPU, three over the link."""


def times_of(rng: random.Random, *, is_wide: bool = False) -> ExpertTimes:
    """The note's instances; ``is_wide`` with everything that it leaves at zero."""
    link_s = rng.uniform(0.3, 4)
    return ExpertTimes(
        link_s=link_s,
        link_busy_s=link_s * rng.uniform(1, 1.5) if is_wide else link_s,
        fast_s=rng.uniform(0.1, 1),
        fast_row_s=rng.uniform(0, 0.1) if is_wide else 0,
        slow_s=rng.uniform(0, 0.8),
        slow_row_s=rng.uniform(0.2, 1.5),
        slow_first_s=rng.uniform(0, 0.5),
    )


def layer_of(rng: random.Random, num: int, max_load: int, *, backlog_s: float = 0.0) -> list[Activated]:
    """Half of them missing; with a backlog some on their way."""
    found = []
    for expert in range(num):
        ready = rng.choice((None, 0.0, rng.uniform(0, backlog_s)) if backlog_s else (None, 0.0))
        found.append(Activated(expert, rng.randint(1, max_load), ready))
    return found


def arranged(
    activated: list[Activated], times: ExpertTimes, slow: tuple[int, ...], backlog_s: float = 0.0
) -> float:
    """The best makespan for these on the slow side: the heaviest is fetched first, who comes first computed first."""
    loads = {one.expert: one.load for one in activated}
    missing = [one.expert for one in activated if one.ready_s is None]
    fetch = sorted((expert for expert in missing if expert not in slow), key=lambda expert: -loads[expert])
    there = sorted((one.ready_s, one.expert) for one in activated if one.ready_s is not None)
    best = inf
    fast = [expert for _, expert in there if expert not in slow]
    for place in range(len(fast) + 1):  # one on its way may come between two that are fetched
        mixed = [*fast[:place], *fetch, *fast[place:]]
        best = min(best, makespan(activated, times, fast=mixed, slow=slow, fetch=fetch, backlog_s=backlog_s))
    return best


def optimum(activated: list[Activated], times: ExpertTimes, backlog_s: float = 0.0) -> float:
    ids = [one.expert for one in activated]
    return min(
        arranged(activated, times, slow, backlog_s)
        for num in range(len(ids) + 1)
        for slow in combinations(ids, num)
    )


def best_static(activated: list[Activated], times: ExpertTimes, backlog_s: float = 0.0) -> float:
    missing = tuple(one.expert for one in activated if one.ready_s is None)
    return min(arranged(activated, times, slow, backlog_s) for slow in (missing, ()))


def check_is_a_plan(found: DispatchPlan, activated: list[Activated]) -> None:
    missing = {one.expert for one in activated if one.ready_s is None}
    assert sorted(found.fast + found.slow) == sorted(one.expert for one in activated)
    assert set(found.fetch) == missing & set(found.fast)
    assert len(set(found.fetch)) == len(found.fetch)


@pytest.mark.parametrize(("max_load", "num"), [(1, 7), (13, 7)])
def test_plans_are_near_the_best_there_is_and_never_worse_than_a_static_one(max_load: int, num: int) -> None:
    rng = random.Random(max_load)
    ratios = []
    for _ in range(60):
        times, activated = times_of(rng), layer_of(rng, num, max_load)
        found = plan(activated, times)
        check_is_a_plan(found, activated)
        assert found.makespan_s <= best_static(activated, times) * (1 + 1e-9)
        ratios.append(found.makespan_s / optimum(activated, times))
    assert sum(ratios) / len(ratios) <= 1.015
    assert max(ratios) <= (1 + 1e-9 if max_load == 1 else 1.3)


def test_the_optimum_that_plans_are_held_to_is_that_of_every_order() -> None:
    """The brute force above tries every division; here every order, too."""
    rng = random.Random(5)
    for _ in range(12):
        times, activated = times_of(rng, is_wide=True), layer_of(rng, 4, 9)
        missing = [one.expert for one in activated if one.ready_s is None]
        best = inf
        for num in range(5):
            for slow in combinations(range(4), num):
                fast = [expert for expert in range(4) if expert not in slow]
                fetched = [expert for expert in missing if expert not in slow]
                for order in permutations(fast):
                    for fetch in permutations(fetched):
                        best = min(best, makespan(activated, times, fast=order, slow=slow, fetch=fetch))
        assert optimum(activated, times) == pytest.approx(best)


@pytest.mark.parametrize("max_load", [1, 9])
def test_a_plan_takes_what_it_says_it_takes(max_load: int) -> None:
    """With a backlog, experts on their way, and a link that slows down beside the slow side."""
    rng = random.Random(max_load)
    for _ in range(150):
        backlog_s = rng.uniform(0, 2)
        times = times_of(rng, is_wide=True)
        if rng.random() < 0.2:
            times = times._replace(slow_s=inf)
        activated = layer_of(rng, rng.randint(1, 8), max_load, backlog_s=backlog_s)
        found = plan(activated, times, backlog_s=backlog_s)
        check_is_a_plan(found, activated)
        assert found.makespan_s == pytest.approx(
            makespan(
                activated, times, fast=found.fast, slow=found.slow, fetch=found.fetch, backlog_s=backlog_s
            )
        )
        if times.slow_s < inf:
            assert found.makespan_s <= best_static(activated, times, backlog_s) * (1 + 1e-9)


def test_the_papers_example() -> None:
    """The CPU ends up computing an expert that the GPU holds, and the GPU one that it does not hold."""
    held, missing = (1, 3, 4, 4, 4), (1, 1, 6)
    activated = [
        Activated(expert, load, 0.0 if expert < len(held) else None)
        for expert, load in enumerate(held + missing)
    ]
    found = plan(activated, PAPER)
    assert found == DispatchPlan((2, 3, 4, 1, 7), (5, 6, 0), (7,), 5.0, "greedy")
    assert found.makespan_s == optimum(activated, PAPER) < best_static(activated, PAPER)


def test_a_transfer_counts_with_what_is_computed_afterwards() -> None:
    """It would end first (1.9 against 2.0), but not be done first (2.9)."""
    times = ExpertTimes(link_s=1.9, link_busy_s=1.9, fast_s=1, fast_row_s=0, slow_s=0, slow_row_s=2)
    assert plan([Activated(7, 1, None)], times) == DispatchPlan((), (7,), (), 2.0, "all-slow")


def test_uneven_loads_are_divided_where_that_pays() -> None:
    """The heavy missing one is fetched, the light ones stay where they are; all of them fetched would take longer."""
    activated = [*(Activated(expert, 1, None) for expert in range(4)), Activated(4, 40, None)]
    found = plan(activated, PAPER)
    assert (found.fast, sorted(found.slow)) == ((4,), [0, 1, 2, 3])
    all_fast = makespan(activated, PAPER, fast=(4, 0, 1, 2, 3), slow=(), fetch=(4, 0, 1, 2, 3))
    assert found.makespan_s == 4.0 < all_fast


@pytest.mark.parametrize(
    ("change", "num_slow"),
    [({}, 3), ({"link_s": 0.5, "link_busy_s": 0.5}, 2), ({"slow_row_s": 4.0}, 1), ({"slow_row_s": 0.2}, 6),
     ({"fast_s": 8.0}, 6), ({"slow_s": inf}, 0)],
)  # fmt: skip
def test_the_split_follows_the_costs(change: dict[str, float], num_slow: int) -> None:
    times = ExpertTimes(link_s=1, link_busy_s=1, fast_s=0.5, fast_row_s=0, slow_s=0, slow_row_s=1)
    activated = [Activated(expert, 1, None) for expert in range(6)]
    assert len(plan(activated, times._replace(**change)).slow) == num_slow


def test_a_busy_link_leaves_more_to_the_slow_side() -> None:
    activated = [Activated(expert, 1, None) for expert in range(6)]
    assert len(plan(activated, PAPER).slow) == 5
    assert len(plan(activated, PAPER, backlog_s=5).slow) == 6


def test_without_a_slow_side_a_plan_is_an_order() -> None:
    """Reads begin with the heaviest; what is there is computed meanwhile, and what lands afterwards."""
    times = ExpertTimes(link_s=2, link_busy_s=3, fast_s=1, fast_row_s=0.5, slow_s=inf, slow_row_s=0)
    activated = [
        Activated(0, 1, 0.0),
        Activated(1, 4, 0.0),
        Activated(2, 2, None),
        Activated(3, 8, None),
        Activated(4, 3, 0.5),
    ]
    found = plan(activated, times)
    assert found.fetch == (3, 2)
    assert found.fast == (1, 0, 4, 3, 2)
    # Both reads begin while the processor computes: until 4.5 what is there, until 7.0 the one on its way.
    assert found.makespan_s == 7.0 + 5.0 + 2.0


def test_ties_are_broken_by_load_then_id_and_nothing_is_fetched_for_nothing() -> None:
    times = ExpertTimes(link_s=1, link_busy_s=1, fast_s=1, fast_row_s=0, slow_s=0, slow_row_s=2)
    assert plan([Activated(3, 1, None)], times).slow == (3,)
    activated = [Activated(expert, 1, None) for expert in (5, 3, 9)]
    assert plan(activated, times) == plan(activated[::-1], times)
    assert plan([], times).makespan_s == 0


def test_what_is_gained_by_holding_one_more() -> None:
    activated = [Activated(0, 1, 0.0), Activated(1, 4, None)]
    assert plan(activated, PAPER).makespan_s == 4
    assert gain(activated, 1, PAPER) == 3.0, "the CPU then computes the other"
    assert gain(activated, 1, PAPER, ready_s=2.0) == 1.0
    assert gain(activated, 1, PAPER, ready_s=9.0) == 0
