from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence

import pytest

from braid.core.errors import InvalidParameterError
from braid.core.experts import ExpertShape
from braid.policy.experts.cache import RankedCache
from braid.policy.experts.catalog import ALL_NAMES, NAMES, ORACLE, expert_cache
from braid.policy.experts.mrs import RecentScores
from braid.policy.experts.policy import Routed
from braid.policy.experts.slots import SlotTable

SHAPE = ExpertShape(layers=2, per_layer=8, top_k=2)


def route(cache: RankedCache, *experts: int, scores: Mapping[int, float] = {}) -> None:
    cache.routed(Routed(experts[0] // 8, dict.fromkeys(experts, 1), scores))


def order(cache: RankedCache, layers: Sequence[int] = (0, 1)) -> list[int]:
    """Everybody who is admitted, in the order in which they go."""
    gone: list[int] = []
    while (victim := cache.victim(gone, layers)) is not None:
        gone.append(victim)
    return gone


def full(name: str) -> RankedCache:
    cache = expert_cache(name, SHAPE)
    for expert in (0, 1, 2, 8):
        cache.admitted(expert)
    return cache


def test_lru_is_by_the_latest_use_over_all_layers() -> None:
    cache = full("lru")
    for experts in ((0, 1), (8, 9), (2, 0)):
        route(cache, *experts)
    assert order(cache) == [1, 8, 0, 2]
    assert order(cache, [0]) == [1, 0, 2]
    cache.evicted(1)
    assert order(cache) == [8, 0, 2]


def test_lfu_is_by_all_uses_ever_and_remembers_those_that_went() -> None:
    cache = full("lfu")
    for experts in ((0, 1), (0, 1), (8, 9), (2, 0)):
        route(cache, *experts)
    assert order(cache) == [8, 2, 1, 0]
    cache.evicted(0)
    cache.admitted(0)
    assert order(cache)[-1] == 0
    assert [cache.worth(expert) for expert in (0, 1, 9, 15)] == [3, 2, 1, 0]


def test_ewma_forgets_by_its_layers_steps() -> None:
    cache = full("ewma")
    route(cache, 0, 1)
    route(cache, 0, 2)
    for _ in range(3):
        route(cache, 8)
    assert cache.worth(0) == pytest.approx(1.9)
    assert cache.worth(1) == pytest.approx(0.9)
    assert cache.worth(8) == pytest.approx(2.71)
    assert order(cache) == [1, 2, 0, 8]
    for _ in range(8):
        route(cache, 9)
    assert order(cache)[:2] == [1, 2]
    assert cache.worth(8) == pytest.approx(2.71 * 0.9**8)
    assert order(cache) == [1, 2, 8, 0], "only the other layer has moved on"


def test_lfru_is_uses_fading_with_age() -> None:
    cache = full("lfru")
    for _ in range(4):
        route(cache, 0)
    for _ in range(2):
        route(cache, 1)
    assert cache.worth(0) == pytest.approx(4 * 0.81)
    assert cache.worth(1) == pytest.approx(2)
    for _ in range(20):
        route(cache, 2)
    assert order(cache, [0]) == [1, 0, 2]


def reference(
    steps: Sequence[Mapping[int, float]], alpha: float, top_p: int, needed: Collection[int] = ()
) -> dict[int, float]:
    """The published rule, one layer, every expert on every step."""
    sums = dict.fromkeys(range(SHAPE.per_layer), 0.0)
    for scores in steps:
        best = {*sorted(scores, key=lambda expert: -scores[expert])[:top_p], *needed}
        for expert in sums:
            sums[expert] = alpha * (scores[expert] if expert in best else 0.0) + (1 - alpha) * sums[expert]
    return sums


def random_scores(seed: int, steps: int) -> list[dict[int, float]]:
    numbers = random.Random(seed)
    return [{expert: numbers.random() for expert in range(SHAPE.per_layer)} for _ in range(steps)]


def chosen(scores: Mapping[int, float]) -> dict[int, int]:
    return dict.fromkeys(sorted(scores, key=lambda expert: -scores[expert])[: SHAPE.top_k], 1)


@pytest.mark.parametrize(("name", "alpha"), [("mrs", 0.1), ("mrs-paper", 0.5)])
def test_mrs_equals_the_plain_rule_after_a_thousand_updates(name: str, alpha: float) -> None:
    cache = expert_cache(name, SHAPE)
    for expert in range(SHAPE.per_layer):
        cache.admitted(expert)
    steps = random_scores(1, 1000)
    for count, scores in enumerate(steps, 1):
        cache.routed(Routed(0, chosen(scores), scores))
        if count in (1, 10, 1000):
            sums = reference(steps[:count], alpha, 2 * SHAPE.top_k)
            assert [cache.worth(expert) for expert in sums] == pytest.approx(list(sums.values()), abs=1e-12)
    assert order(cache, [0]) == sorted(sums, key=sums.__getitem__)


def test_other_labels_are_other_labels_of_the_same_scores() -> None:
    labels = [5, 2, 7, 0, 3, 6, 1, 4]
    plain, other = RecentScores(SHAPE), RecentScores(SHAPE)
    for scores in random_scores(2, 50):
        plain.told(Routed(0, chosen(scores), scores))
        moved = {labels[expert]: score for expert, score in scores.items()}
        other.told(Routed(0, chosen(moved), moved))
    assert [plain.worth(expert) for expert in range(8)] == pytest.approx(
        [other.worth(each) for each in labels]
    )


def test_rows_count_as_their_mean() -> None:
    rows = random_scores(3, 4)
    mean = {expert: sum(row[expert] for row in rows) / 4 for expert in range(8)}
    loads: dict[int, int] = {}
    for row in rows:
        for expert in chosen(row):
            loads[expert] = loads.get(expert, 0) + 1
    batch = RecentScores(SHAPE)
    batch.told(Routed(0, loads, mean))
    wanted = reference([mean], 0.1, 2 * SHAPE.top_k, loads)
    assert [batch.worth(expert) for expert in range(8)] == pytest.approx(list(wanted.values()))
    assert len(loads) > 2 * SHAPE.top_k
    assert all(batch.worth(expert) > 0 for expert in loads), "nobody who is needed counts as nothing"


def test_without_scores_shares_of_the_rows_stand_for_them() -> None:
    cache = RecentScores(SHAPE)
    cache.told(Routed(0, {0: 3, 1: 1}))
    assert [cache.worth(expert) for expert in (0, 1, 2)] == pytest.approx([0.075, 0.025, 0])


def test_scores_outlast_any_number_of_steps() -> None:
    cache = full("mrs-paper")
    route(cache, 1, 2, scores={1: 0.5, 2: 0.25})
    for _ in range(3000):
        route(cache, 0, scores={0: 1.0})
    assert order(cache, [0]) == [2, 1, 0], "though both are smaller than any number"


@pytest.mark.parametrize("name", NAMES)
def test_who_is_kept_is_passed_over(name: str) -> None:
    cache = full(name)
    for _ in range(100):
        route(cache, 0, 1)
        route(cache, 8, 9)
    first = order(cache)[0]
    assert cache.victim({first}, [0, 1]) == order(cache)[1]
    assert cache.victim({0, 1, 2}, [0]) is None
    assert cache.victim((), ()) is None
    assert cache.victim((), [0, 1]) == first, "asking changes nothing"


def table(name: str, num_slots: int, **options: object) -> SlotTable:
    cache = expert_cache(name, SHAPE, **options)  # type: ignore[arg-type]
    return SlotTable(SHAPE, num_slots, cache, floor=0)


def step(slots: SlotTable, *experts: int) -> tuple[int, ...]:
    """What was bypassed."""
    demand = slots.use(Routed(experts[0] // 8, dict.fromkeys(experts, 1)))
    for load in demand.loads:
        slots.loaded(load.expert)
    slots.release(experts)
    return demand.bypasses


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_static_learns_then_never_changes(scope: str) -> None:
    slots = table("static", 4, scope=scope, learning_steps=3)
    for experts in ((0, 1), (2, 3), (2, 3), (8, 9), (8, 9), (8, 9)):
        step(slots, *experts)
    if scope == "layer":
        assert sorted(slots.ready()) == [2, 3, 8, 9]
    held = sorted(slots.ready())
    for _ in range(5):
        assert step(slots, 4, 5) == (4, 5)
        assert step(slots, 10, 11) == (10, 11)
    assert sorted(slots.ready()) == held


def test_static_keeps_those_it_is_given() -> None:
    slots = table("static", 2, experts=[4, 12])
    step(slots, 0, 1)
    step(slots, 4, 5)
    step(slots, 12, 13)
    for _ in range(3):
        step(slots, 0, 1)
    assert sorted(slots.ready()) == [4, 12]


def test_belady_evicts_who_is_wanted_last() -> None:
    future = [(0,), (1,), (2,), (0,), (1,)]
    cache = expert_cache(ORACLE, SHAPE, future=future)
    slots = SlotTable(SHAPE, 2, cache, bypass=False)
    assert [step(slots, *experts) for experts in future] == [()] * 5
    assert slots.counts["decode"][0].hits == 1, "0 stays for 2, and 1 for nobody"
    with pytest.raises(ValueError, match="expert 3 was not foretold"):
        slots.use(Routed(0, {3: 1}))


def test_a_name_that_is_not_known() -> None:
    with pytest.raises(InvalidParameterError, match="'lrv' is not known; choices: lru, lfu"):
        expert_cache("lrv", SHAPE)
    with pytest.raises(InvalidParameterError, match="'all' is not known; choices: global, layer"):
        expert_cache("lru", SHAPE, scope="all")
    with pytest.raises(InvalidParameterError, match="belady is told the future"):
        expert_cache(ORACLE, SHAPE)
    assert all(expert_cache(name, SHAPE, future=()).name == name for name in ALL_NAMES)
