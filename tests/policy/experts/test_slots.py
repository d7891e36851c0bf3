from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.core.errors import InvalidParameterError
from braid.core.experts import ExpertShape
from braid.policy.experts.catalog import NAMES, SCOPES, expert_cache
from braid.policy.experts.policy import Routed
from braid.policy.experts.slots import ABSENT, Counts, Demand, Load, SlotTable, State

SHAPE = ExpertShape(layers=2, per_layer=6, top_k=2)


def table(
    num_slots: int,
    cache: str = "lru",
    *,
    scope: str = "global",
    floor: int | None = 0,
    bypass: bool | None = False,
) -> SlotTable:
    return SlotTable(SHAPE, num_slots, expert_cache(cache, SHAPE, scope=scope), floor=floor, bypass=bypass)


def use(slots: SlotTable, *experts: int) -> Demand:
    """One step: experts are wanted, read and computed."""
    demand = slots.use(Routed(experts[0] // 6, dict.fromkeys(experts, 1)))
    for load in demand.loads:
        slots.loaded(load.expert)
    slots.release(experts)
    slots.check_integrity()
    return demand


def test_a_miss_is_read_and_then_a_hit() -> None:
    slots = table(2)
    first = slots.use(Routed(0, {3: 1, 1: 5}))
    assert [load.expert for load in first.loads] == [1, 3], "the heaviest is read first"
    assert slots.state(1) is State.LOADING
    assert slots.slots[1] == ABSENT, "nobody computes with a slot before it is read"
    slots.loaded(1)
    assert slots.state(1) is State.READY
    assert slots.slots[1] == slots.slot_of(1) == first.loads[0].slot
    slots.loaded(3)
    slots.release([1, 3])
    assert use(slots, 1, 3) == Demand((1, 3), (), (), ())
    assert slots.totals("decode") == Counts(hits=2, misses=2)
    assert slots.totals("prefill") == Counts()
    assert sorted(slots.ready()) == [1, 3]


def test_a_second_want_joins_the_read() -> None:
    slots = table(2)
    slots.use(Routed(0, {0: 1}))
    assert slots.use(Routed(0, {0: 1, 1: 1}, is_prefill=True)).joins == (0,)
    assert slots.counts["prefill"][0] == Counts(misses=1, joins=1)
    slots.loaded(0)
    slots.release([0])
    assert slots.is_in_use(0), "the other step computes with it still"
    slots.release([0, 1])
    assert not slots.is_in_use(0)
    slots.loaded(1)
    slots.check_integrity()


def test_experts_in_use_are_no_victims() -> None:
    slots = table(2)
    assert len(slots.use(Routed(0, {0: 1, 1: 1})).loads) == 2
    blocked = slots.use(Routed(1, {6: 1}))
    assert blocked.bypasses == (6,)
    slots.release([6])
    for expert in (0, 1):
        slots.loaded(expert)
    slots.release([0])
    load = slots.use(Routed(1, {7: 1})).loads[0]
    assert load.evicted == 0, "released, though 1 is as old"
    assert slots.state(0) is State.ABSENT
    slots.check_integrity()


def test_a_failed_read_gives_the_slot_back() -> None:
    slots = table(1)
    slots.use(Routed(0, {0: 1}))
    slots.failed(0)
    slots.release([0])
    assert slots.state(0) is State.ABSENT
    assert use(slots, 1).loads[0] == Load(1, 0), "nobody had to go"


def test_a_layer_keeps_its_floor() -> None:
    slots = table(4, floor=None)
    assert slots.floor == SHAPE.top_k
    use(slots, 0, 1)
    use(slots, 6, 7)
    use(slots, 8, 9)
    assert (slots.held(0), slots.held(1)) == (2, 2), "the other layer's experts are older, and stay"
    assert table(3, floor=None).floor == 0, "too few slots for all layers"


def test_a_layer_below_its_floor_is_admitted_whatever_it_is_worth() -> None:
    slots = table(4, "lfu", floor=None, bypass=True)
    for _ in range(3):
        use(slots, 0, 1)
        use(slots, 2, 3)
    assert [load.evicted for load in use(slots, 6, 7).loads] == [0, 1]
    use(slots, 6, 7)
    assert use(slots, 8, 9).bypasses == (8, 9), (
        "worth less than those that would go, and the layer has its floor"
    )


def test_a_miss_that_is_worth_less_is_bypassed() -> None:
    slots = table(2, "lfu", bypass=True)
    use(slots, 0, 1)
    use(slots, 0, 1)
    assert use(slots, 2).bypasses == (2,)
    assert use(slots, 2).loads[0].evicted == 0, "now it is worth as much"
    assert slots.counts["decode"][0] == Counts(hits=2, misses=3, bypasses=1)
    assert slots.counts["decode"][0].hit_rate == 2 / 6


def test_a_prompt_that_needs_most_of_a_layer_evicts_nobody_of_another() -> None:
    """It fills its share, its heaviest experts first; a narrower one takes whoever is worth less, as decodes do."""
    slots = table(6, "mrs", bypass=True)
    first = slots.use(
        Routed(0, {0: 1, 1: 1, 2: 9, 3: 8, 4: 7}, dict.fromkeys(range(5), 0.1), is_prefill=True)
    )
    assert [load.expert for load in first.loads] == [2, 3, 4]
    for load in first.loads:
        slots.loaded(load.expert)
    slots.release(range(5))
    use(slots, 6, 7, 8)
    scores = dict.fromkeys(range(6, 12), 0.9)
    wide = slots.use(Routed(1, dict.fromkeys(range(6, 12), 5), scores, is_prefill=True))
    assert (wide.hits, wide.loads, wide.bypasses) == ((6, 7, 8), (), (9, 10, 11))
    slots.release(range(6, 12))
    narrow = slots.use(Routed(1, {9: 1, 10: 1}, {9: 0.9, 10: 0.9}, is_prefill=True))
    assert [load.expert for load in narrow.loads] == [9, 10]
    assert {load.evicted for load in narrow.loads} <= {2, 3, 4}


def test_without_slots_everything_is_bypassed() -> None:
    assert use(table(0), 0, 1).bypasses == (0, 1)
    with pytest.raises(InvalidParameterError, match="at least 0, got -1"):
        table(-1)
    with pytest.raises(InvalidParameterError, match="floor must be at least 0, got -2"):
        table(1, floor=-2)


def test_each_layer_has_its_own_part() -> None:
    slots = table(5, scope="layer")
    use(slots, 0, 1)
    use(slots, 2)
    assert use(slots, 3).loads[0].evicted == 0, "three are its part, though two slots are free"
    use(slots, 6, 7)
    assert use(slots, 8).loads[0].evicted == 6
    assert (slots.held(0), slots.held(1)) == (3, 2)


def test_each_early_read_is_counted_once() -> None:
    slots = table(4)
    for expert in range(4):
        assert slots.prefetch(expert) is not None
    assert slots.prefetch(0) is None, "it has a slot"
    for expert in (0, 2):
        slots.loaded(expert)
    slots.failed(3)
    use(slots, 0)
    assert (slots.prefetches.useful, slots.prefetches.pending) == (1, 2)
    slots.use(Routed(0, {1: 1}))
    assert slots.prefetches.late == 1
    slots.loaded(1)
    slots.release([1])
    use(slots, 6, 7)
    use(slots, 8, 9)
    seen = slots.prefetches
    assert (seen.started, seen.useful, seen.late, seen.wasted, seen.failed, seen.pending) == (
        4,
        1,
        1,
        1,
        1,
        0,
    )
    use(slots, 0, 2)
    assert slots.prefetches == seen, "and never again"
    slots.check_integrity()


def test_what_was_fetched_early_stays_until_its_layer_is_routed() -> None:
    slots = table(2)
    early = slots.prefetch(6)
    assert early is not None
    slots.loaded(6)
    use(slots, 0)
    assert use(slots, 1).loads[0].evicted == 0, "though nobody has used 6 yet"
    assert use(slots, 7).loads[0].evicted == 6, "its layer has done without it"
    assert slots.prefetches.wasted == 1


def test_who_would_go_is_asked_without_any_change() -> None:
    slots = table(2)
    assert slots.has_room(0)
    use(slots, 0, 1)
    assert not slots.has_room(2)
    assert slots.victim_of(2) == slots.victim_of(2) == 0
    slots.check_integrity()


def test_what_more_slots_would_have_kept_is_counted() -> None:
    slots = table(1)
    slots.num_remembered = 1
    for expert in (0, 1, 0, 2, 3, 0):
        use(slots, expert)
    assert slots.num_missed == 1, "0 the first time; the second time two others had gone since"
    none = table(0)
    none.num_remembered = 2
    for expert in (0, 1, 0, 2, 3, 0):
        use(none, expert)
    assert none.num_missed == 1, "what finds no slot is remembered too"


def test_a_smaller_size_evicts_the_worst_and_those_in_use_later() -> None:
    slots = table(4)
    use(slots, 0, 1)
    slots.use(Routed(0, {2: 1, 3: 1}))
    for expert in (2, 3):
        slots.loaded(expert)
    assert slots.resize(3).evicted == (0,)
    resized = slots.resize(1)
    assert (resized.evicted, resized.still_over) == ((1,), 1)
    slots.check_integrity()
    slots.release([2, 3])
    assert sorted(slots.ready()) == [3]
    assert slots.evictions.by_resize == 3
    retired = slots.take_retired()
    assert len(retired) == 3
    assert slots.slot_of(3) not in retired
    assert slots.take_retired() == []
    slots.check_integrity()


def test_a_larger_size_takes_retired_slots_first() -> None:
    slots = table(3)
    slots.resize(1)
    assert slots.resize(2) == ((), 0)
    assert len(slots.take_retired()) == 1, "the other one is in use again before anybody gave it up"
    slots.resize(5)
    assert slots.arena_slots == 5
    use(slots, 0, 1)
    use(slots, 2, 3)
    use(slots, 4)
    assert sorted(slots.slot_of(expert) for expert in range(5)) == list(range(5))
    with pytest.raises(InvalidParameterError, match="at least 0"):
        slots.resize(-1)


def test_a_smaller_size_shrinks_every_layers_part() -> None:
    slots = table(6, scope="layer")
    for layer in (0, 6):
        use(slots, layer, layer + 1)
        use(slots, layer + 2)
    slots.resize(3)
    assert (slots.held(0), slots.held(1)) == (2, 1)
    slots.check_integrity()


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.sampled_from(SCOPES),
    st.integers(0, 12),
    st.lists(
        st.tuples(
            st.sampled_from(["use", "use", "use", "end", "read", "fail", "early", "size"]), st.integers(0, 35)
        ),
        max_size=40,
    ),
)
def test_nothing_is_lost_whatever_happens(
    name: str, scope: str, num: int, acts: list[tuple[str, int]]
) -> None:
    slots = table(num, name, scope=scope, floor=None, bypass=None)
    steps: list[tuple[int, int]] = []
    reading: list[int] = []
    for act, number in acts:
        if act == "use":
            layer = number // 6 % 2
            pair = layer * 6 + number % 6, layer * 6 + (number + 1) % 6
            demand = slots.use(Routed(layer, dict.fromkeys(pair, 1)))
            told = (*demand.hits, *demand.joins, *(load.expert for load in demand.loads), *demand.bypasses)
            assert sorted(told) == sorted(pair)
            steps.append(pair)
            reading += [load.expert for load in demand.loads]
        elif act == "early":
            reading += [number % 12] if slots.prefetch(number % 12) else []
        elif act == "end" and steps:
            slots.release(steps.pop(0))
        elif act in ("read", "fail") and reading:
            (slots.loaded if act == "read" else slots.failed)(reading.pop(number % len(reading)))
        elif act == "size":
            slots.resize(number % 14)
        slots.check_integrity()
    for expert in reading:
        slots.loaded(expert)
    for pair in steps:
        slots.release(pair)
    slots.check_integrity()
    assert slots.num_held <= slots.num_slots, "who is in use goes later, but goes"


def test_what_is_computed_elsewhere_is_neither_read_nor_waited_for() -> None:
    slots = table(3)
    use(slots, 0)
    slots.use(Routed(0, {1: 1}))
    demand = slots.use(Routed(0, {0: 1, 1: 1, 2: 1, 3: 1}), fetched=(2,))
    assert demand == Demand((0,), (1,), (Load(2, demand.loads[0].slot),), (3,))
    assert demand.without({0, 1, 3}) == Demand((), (), demand.loads, ())
    assert demand.without(()) == demand
    assert slots.counts["decode"][0].bypasses == 1


@pytest.mark.parametrize(("scope", "rooms"), [("global", (3, 3)), ("layer", (1, 2))])
def test_how_many_more_a_layer_can_have(scope: str, rooms: tuple[int, int]) -> None:
    slots = table(4, scope=scope)
    use(slots, 0)
    assert (slots.room(Routed(0, {1: 1})), slots.room(Routed(1, {6: 1}))) == rooms
    use(slots, 1, 2, 3)
    assert slots.room(Routed(0, {4: 1})) == 0


def test_a_long_prompt_has_room_in_its_layers_share() -> None:
    slots = table(8, "mrs", bypass=True)
    prompt = Routed(0, dict.fromkeys(range(5), 1), is_prefill=True)
    assert (slots.room(prompt), slots.room(prompt._replace(is_prefill=False))) == (4, 8)
    assert len(slots.use(prompt).loads) == 4


def test_a_cache_that_has_heard_of_a_step_is_not_told_again() -> None:
    slots = table(2, "lfu")
    slots.use(Routed(0, {0: 1}), is_told=True)
    assert slots.cache.worth(0) == 0
    slots.cache.routed(Routed(0, {0: 1}))
    assert slots.cache.worth(0) == 1
