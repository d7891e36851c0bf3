"""Steps in virtual time, by hand where that can be done, and in order where it cannot."""

from __future__ import annotations

from math import inf

import pytest

from braid.core.experts import ExpertShape
from braid.policy.experts.policy import ExpertTimes, Routed
from braid.sim.experts.machines import LayerCosts
from braid.sim.experts.steps import Step
from braid.sim.experts.study import VARIANTS, Load, simulate, summary
from braid.sim.experts.synthetic import Habits, Synthetic, popular
from braid.sim.experts.timeline import Parts, Timeline

SHAPE = ExpertShape(layers=3, per_layer=4, top_k=2)
TIMES = ExpertTimes(link_s=3, link_busy_s=3, fast_s=1, fast_row_s=0, slow_s=2, slow_row_s=2)
PLAIN = Parts(schedule=False, prefetch="off", policy="static", scope="layer")


def costs_of(times: ExpertTimes = TIMES, *, dense_s: float = 10.0) -> LayerCosts:
    return LayerCosts(
        times=times, dense_s=dense_s, dense_row_s=0.5, predict_s=0.0, expert_bytes=100.0, words="made up"
    )


def step(*layers: tuple[int, ...], is_prefill: bool = False, rows: int = 1) -> Step:
    """Every layer's experts by their place in it, all with as many rows."""
    return Step(
        rows,
        tuple(
            Routed(layer, {SHAPE.id_of(layer, place): rows for place in places}, {}, is_prefill)
            for layer, places in enumerate(layers)
        ),
    )


def test_without_anything_misses_are_computed_below() -> None:
    """Held: 0 and 1 of each layer. Dense 10.5; two held take 2, one below 4, two below 8."""
    held = [SHAPE.id_of(layer, place) for layer in range(3) for place in (0, 1)]
    timeline = Timeline(SHAPE, costs_of(), 6, PLAIN, held)
    timeline.run([step((0, 1), (0, 2), (2, 3))])
    assert timeline.now == 3 * 10.5 + 2 + 4 + 8
    sums = timeline.sums["decode"]
    assert (sums.wanted, sums.hits, sums.slow, sums.fetched, sums.early) == (6, 3, 3, 0, 0)
    assert (sums.fast_busy_s, sums.slow_busy_s) == (3, 12)
    assert timeline.sums["prefill"].steps == 0


def test_with_a_schedule_the_link_helps() -> None:
    """Of two missing ones one is computed below until 4, the other lands at 3 and is done at 4, too."""
    parts = Parts(schedule=True, prefetch="off", policy="static", scope="layer")
    timeline = Timeline(SHAPE, costs_of(), 6, parts, [0, 1, 4, 5, 8, 9])
    timeline.run([step((0, 1), (0, 2), (2, 3))])
    assert timeline.now == 3 * 10.5 + 2 + 4 + 4
    assert timeline.sums["decode"].fetched == 1
    timeline.run([step((0, 1), (0, 2), (2, 3))])
    assert timeline.sums["decode"].fetched == 2, "what was fetched has no slot"


def test_what_was_fetched_stays_where_the_cache_changes() -> None:
    times = TIMES._replace(slow_s=inf)
    timeline = Timeline(SHAPE, costs_of(times), 6, Parts(prefetch="off", policy="lru", scope="layer"))
    for _ in range(2):
        timeline.run([step((0, 1), (0, 2), (2, 3))])
    first, second = timeline.sums["decode"].by_step
    assert first == 3 * 10.5 + 3 * (3 + 3 + 1)
    assert second == 3 * 10.5 + 3 * 2
    timeline.table.check_integrity()


def test_without_overlap_everything_is_fetched_before_anything_is_computed() -> None:
    times = TIMES._replace(slow_s=inf)
    parts = Parts(schedule=False, prefetch="off", policy="lru", scope="layer")
    timeline = Timeline(SHAPE, costs_of(times), 6, parts, [0])
    timeline.run([step((0, 1), (0, 2), (2, 3))])
    assert timeline.now == 3 * 10.5 + (3 + 2) + 2 * (6 + 2)


@pytest.mark.parametrize("policy", ["mrs", "static"])
def test_what_is_foretold_is_fetched_while_the_link_is_idle(policy: str) -> None:
    """With and without a cache that changes; what is fetched for a later layer does not delay this one."""
    routing = step((0, 1), (0, 2), (2, 3))
    seconds = {}
    for prefetch in ("off", "on"):
        parts = Parts(schedule=True, prefetch=prefetch, policy=policy, scope="layer")
        timeline = Timeline(SHAPE, costs_of(), 8, parts, [0, 1, 4, 5, 8, 9])
        timeline.run([routing] * 6)
        timeline.table.check_integrity()
        seconds[prefetch] = timeline.now
        assert (timeline.sums["decode"].early > 0) == (prefetch == "on")
    assert seconds["on"] <= seconds["off"]
    if policy == "static":
        assert seconds["on"] < seconds["off"]


def test_misses_that_are_never_fetched_enter_the_cache_while_the_link_is_idle() -> None:
    parts = Parts(schedule=False, prefetch="off", policy="lru")
    timeline = Timeline(SHAPE, costs_of(), 6, parts, [0, 1, 4, 5, 8, 9])
    timeline.run([step((2, 3), (2, 3), (2, 3))] * 4)
    sums = timeline.sums["decode"]
    assert sums.by_step[-1] == 3 * 10.5 + 3 * 2 < sums.by_step[0] == 3 * 10.5 + 3 * 8
    assert (sums.early, sums.fetched) == (6, 0)


def test_a_busy_link_delays_whoever_is_demanded_next() -> None:
    """A transfer that has begun is not given up: three seconds from the first layer's routing, one from the next's."""
    times = TIMES._replace(link_s=30, link_busy_s=30, slow_s=inf)
    timeline = Timeline(SHAPE, costs_of(times, dense_s=0.5), 6, Parts(prefetch="off", policy="lru"), [0, 1])
    timeline.run([step((0, 1), (0, 1), (0, 1))])
    assert timeline.now == 3 * 1.0 + 2 + 2 * (60 + 1)


SIZE = ExpertShape(layers=6, per_layer=16, top_k=4)


@pytest.fixture(scope="module")
def load() -> Load:
    habits = Habits(popularity=0.1, text=0.3, persistence=0.95)
    text = Synthetic(SIZE, habits, text=0)
    return Load(
        shape=SIZE,
        prompts=[text.prompt(12)],
        warm=(),
        decodes=list(text.decodes(24)),
        profile=list(Synthetic(SIZE, habits, text=1).decodes(24)),
        words="synthetic",
    )


def test_every_part_makes_decodes_shorter_and_all_of_them_most(load: Load) -> None:
    """The proportions of the machine that the paper used: a link three times as slow as the CPU."""
    times = ExpertTimes(
        link_s=6e-4, link_busy_s=6e-4, fast_s=4e-5, fast_row_s=1e-6, slow_s=2e-4, slow_row_s=8e-5,
        slow_first_s=3e-5,
    )  # fmt: skip
    costs = costs_of(times)
    costs = LayerCosts(
        times=times, dense_s=4e-4, dense_row_s=1e-6, predict_s=1e-5, expert_bytes=1e7, words="made up"
    )
    seconds = {}
    for name, parts in VARIANTS.items():
        timeline = simulate(load, costs, 0.25, parts)
        timeline.table.check_integrity()
        numbers = summary(timeline, costs)
        seconds[name] = {phase: numbers[phase]["seconds_per_step"] for phase in ("prefill", "decode")}
        assert 0 <= numbers["decode"]["link_busy_share"] <= 1.01
        assert 0 < numbers["decode"]["hit_rate"] < 1
    for name in ("+ scheduling", "+ prefetch", "+ caching"):
        assert seconds["all"]["decode"] < seconds[name]["decode"] < seconds["baseline"]["decode"], name
    assert seconds["+ scheduling"]["prefill"] < seconds["baseline"]["prefill"]
    again = simulate(load, costs, 0.25, VARIANTS["all"])
    assert summary(again, costs)["decode"]["seconds_per_step"] == seconds["all"]["decode"]


def test_a_placement_is_the_most_used_of_every_layer(load: Load) -> None:
    chosen = popular(load.profile, SIZE, 25)
    assert len(set(chosen)) == 25
    assert [sum(SIZE.layer_of(expert) == layer for expert in chosen) for layer in range(6)] == [
        5,
        4,
        4,
        4,
        4,
        4,
    ]
    rows = [0] * SIZE.total
    for each in load.profile:
        for routed in each.layers:
            for expert, count in routed.loads.items():
                rows[expert] += count
    assert min(rows[expert] for expert in chosen if expert < 16) >= max(
        rows[expert] for expert in range(16) if expert not in chosen
    )
