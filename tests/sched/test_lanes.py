"""Lanes for prefill and decode: who may start when, on how much of the machine, and what neither may touch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.core.step import SampledToken, StepPlan, StepResult
from braid.policy.phases.fixed import PrefillFirst, Static
from braid.policy.phases.policy import Decided, Demand, Division, Phases, StepSeen
from braid.sched.config import COMPUTING, DECODE, MIXED, PREFILL, Policies


class Told:
    """Divides as it is told, and remembers what it saw."""

    name = "told"
    is_split = True

    def __init__(self, division: Division) -> None:
        self.division = division
        self.steps: list[StepSeen] = []
        self.demands: list[Demand] = []
        self.answers: list[tuple[float, bool]] = []

    def divide(self, demand: Demand) -> Division:
        self.demands.append(demand)
        return self.division

    def stepped(self, step: StepSeen, now: float) -> None:
        self.steps.append(step)

    def answered(self, seconds: float, limit: float, now: float, *, is_first: bool) -> None:
        self.answers.append((seconds, is_first))

    def describe(self) -> Mapping[str, float]:
        return {}


SPLIT = Division(False, 1, 3, 4)
MIX = Division(True, 2, 2, 100)


class Lanes:
    """A crank with all lanes."""

    def __init__(self, make_crank: Any, phases: Phases, **config: Any) -> None:
        self.decided: list[Decided] = []
        self.crank = make_crank(
            Policies(phases=phases),
            decided=self.decided.append,
            **({"num_units": 4, "num_layers": 4, "max_num_batched_tokens": 16} | config),
        )
        self.scheduler = self.crank.scheduler
        self.flights: dict[str, StepPlan] = {}

    def plan(self) -> dict[str, StepPlan]:
        """Plan on all free lanes, as the loop does; what has started now."""
        self.scheduler.tick(self.crank.now)
        fresh = {}
        for lane in COMPUTING:
            if lane not in self.flights:
                plan = self.scheduler.schedule(lane, self.crank.now)
                self.scheduler.check_integrity()
                if plan is not None:
                    fresh[lane] = self.flights[lane] = plan
        return fresh

    def finish(self, lane: str) -> None:
        plan = self.flights.pop(lane)
        self.crank.now += 1.0
        tokens = {work.request_id: SampledToken(7) for work in plan.works if work.sample is not None}
        carried = {w.request_id: w.layers.end for w in plan.works if w.layers and not w.layers.is_last}
        result = StepResult(plan.step_id, lane, self.crank.now - 1, 1.0, tokens, carried=carried)
        self.crank.deltas += self.scheduler.update(result, self.crank.now)
        self.scheduler.check_integrity()


def units(plans: Mapping[str, StepPlan]) -> dict[str, int]:
    return {lane: plan.units for lane, plan in plans.items()}


def test_a_phase_that_is_alone_has_everything(make_crank: Any) -> None:
    lanes = Lanes(make_crank, Told(SPLIT))
    lanes.crank.add("a", 3)
    assert units(lanes.plan()) == {PREFILL: 4}
    lanes.finish(PREFILL)
    assert units(lanes.plan()) == {DECODE: 4}


def test_both_phases_have_their_parts_from_the_next_boundary_on(make_crank: Any) -> None:
    told = Told(SPLIT)
    lanes = Lanes(make_crank, told)
    lanes.crank.add("a", 3, max_tokens=8)
    lanes.plan()
    lanes.finish(PREFILL)
    lanes.plan()
    lanes.crank.add("b", 9)
    assert units(lanes.plan()) == {}, "decodes have all units until their step ends"
    lanes.finish(DECODE)
    assert units(lanes.plan()) == {PREFILL: 1, DECODE: 3}
    assert [len(work.token_ids) for work in lanes.flights[PREFILL].works] == [4], (
        "a step has max_prefill tokens"
    )
    lanes.finish(DECODE)
    assert units(lanes.plan()) == {DECODE: 3}
    assert [step.is_shared for step in told.steps] == [False, False, True]
    lanes.finish(PREFILL)
    lanes.finish(DECODE)
    assert [step.is_shared for step in told.steps[-2:]] == [True, True]


def test_units_move_within_a_step_where_they_can(make_crank: Any) -> None:
    told = Told(SPLIT)
    lanes = Lanes(make_crank, told, can_reshare=True)
    reshare = lanes.scheduler.reshare
    lanes.crank.add("a", 3, max_tokens=3)
    lanes.plan()
    lanes.finish(PREFILL)
    assert units(lanes.plan()) == {DECODE: 4}
    lanes.crank.add("b", 9)
    assert units(lanes.plan()) == {PREFILL: 1}, "it need not wait for those who have everything"
    assert reshare() == [(DECODE, 3)]
    assert reshare() == [], "told once"
    lanes.finish(DECODE)
    told.division = SPLIT._replace(prefill_units=2, decode_units=2)
    assert units(lanes.plan()) == {DECODE: 2}
    assert reshare() == [(PREFILL, 2)]
    lanes.finish(DECODE)
    assert lanes.plan() == {}
    assert reshare() == [(PREFILL, 4)], "nobody decodes any more"
    lanes.finish(PREFILL)
    assert [step.is_reshared for step in told.steps] == [False, True, False, True]


def test_lanes_that_were_given_up_end_on_what_they_have(make_crank: Any) -> None:
    told = Told(SPLIT)
    lanes = Lanes(make_crank, told, can_reshare=True)
    lanes.crank.add("a", 3, max_tokens=8)
    lanes.plan()
    lanes.finish(PREFILL)
    lanes.crank.add("b", 9)
    assert units(lanes.plan()) == {PREFILL: 1, DECODE: 3}
    told.division = MIX
    lanes.finish(DECODE)
    lanes.plan()
    assert lanes.scheduler.reshare() == []


def test_units_stay_within_a_step_where_they_cannot_move(make_crank: Any) -> None:
    lanes = Lanes(make_crank, Told(SPLIT))
    lanes.crank.add("a", 3, max_tokens=2)
    lanes.plan()
    lanes.finish(PREFILL)
    lanes.crank.add("b", 9)
    assert units(lanes.plan()) == {PREFILL: 1, DECODE: 3}
    lanes.finish(DECODE)
    lanes.plan()
    assert lanes.scheduler.reshare() == []


def test_lanes_that_share_overlap(make_crank: Any) -> None:
    lanes = Lanes(make_crank, Static(100, 100))
    lanes.crank.add("a", 3, max_tokens=8)
    lanes.plan()
    lanes.finish(PREFILL)
    lanes.plan()
    lanes.crank.add("b", 9)
    assert units(lanes.plan()) == {PREFILL: 4}


def test_one_step_for_both_waits_for_the_lanes(make_crank: Any) -> None:
    told = Told(SPLIT)
    lanes = Lanes(make_crank, told)
    lanes.crank.add("a", 3, max_tokens=8)
    lanes.plan()
    lanes.finish(PREFILL)
    lanes.crank.add("b", 12)
    assert units(lanes.plan()) == {PREFILL: 1, DECODE: 3}
    told.division = MIX
    lanes.finish(DECODE)
    assert units(lanes.plan()) == {DECODE: 2}, "decodes go on while a last step of prompts is awaited"
    lanes.finish(PREFILL)
    assert units(lanes.plan()) == {}
    lanes.finish(DECODE)
    assert units(lanes.plan()) == {MIXED: 4}
    told.division = SPLIT
    assert units(lanes.plan()) == {}, "nothing runs beside a mixed step"
    assert [decided.division for decided in lanes.decided] == [SPLIT, MIX, SPLIT]
    assert [decided.demand.num_prefill for decided in lanes.decided] == [12, 12, 8]
    assert all(decided.demand.num_decodes == 1 for decided in lanes.decided), (
        "alone there is nothing to decide"
    )
    assert all(decided.demand.max_num_batched_tokens == 16 for decided in lanes.decided)


def test_decodes_wait_where_prompts_come_first(make_crank: Any) -> None:
    lanes = Lanes(make_crank, PrefillFirst(), max_num_batched_tokens=8)
    lanes.crank.add("a", 3, max_tokens=8)
    lanes.plan()
    lanes.finish(MIXED)
    lanes.crank.add("b", 12)
    sizes = []
    for _ in range(3):
        sizes.append([(work.request_id, len(work.token_ids)) for work in lanes.plan()[MIXED].works])
        lanes.finish(MIXED)
    assert sizes == [[("b", 8)], [("b", 4)], [("a", 1), ("b", 1)]]


def layers_of(plan: StepPlan) -> dict[str, tuple[int, int]]:
    return {work.request_id: work.layers[:2] for work in plan.works if work.layers is not None}


def begun(make_crank: Any, division: Division, **config: Any) -> tuple[Lanes, Told]:
    """A request decodes, and the first layers of another one's prompt are computed."""
    told = Told(division)
    lanes = Lanes(make_crank, told, **config)
    lanes.crank.add("a", 3, max_tokens=8)
    lanes.plan()
    assert layers_of(lanes.flights[MIXED]) == {}, "nobody waits, so all layers at once"
    lanes.finish(MIXED)
    lanes.crank.add("b", 12, max_tokens=3)
    lanes.plan()
    return lanes, told


LAYERED = Division(True, 4, 4, 100, num_layers=2)


def test_layers_of_a_chunk_are_computed_between_decodes(make_crank: Any) -> None:
    lanes, told = begun(make_crank, LAYERED._replace(num_layers=3))
    request = lanes.scheduler._entries["b"].request
    seen = []
    for _ in range(2):
        plan = lanes.flights.pop(MIXED) if MIXED in lanes.flights else lanes.plan()[MIXED]
        lanes.flights[MIXED] = plan
        part = plan.works[-1]
        seen.append((layers_of(plan), part.layers and part.layers.carry, part.sample is not None))
        assert [work.request_id for work in plan.works] == ["a", "b"], "every step has the decode"
        assert request.num_computed_tokens == 0
        assert all(lanes.scheduler._pool.state(block).name == "FILLING" for block in request.block_ids)
        lanes.finish(MIXED)
    assert seen == [({"b": (0, 3)}, None, False), ({"b": (3, 4)}, 3, True)]
    assert request.num_computed_tokens == 12
    assert lanes.crank.output("b") == [7]
    assert len(lanes.crank.output("a")) == 3
    assert sum(step.num_prefill for step in told.steps) == 15
    assert told.steps[1].num_pairs == pytest.approx(3 * told.steps[2].num_pairs)


def test_nobody_joins_a_chunk_that_is_begun(make_crank: Any) -> None:
    lanes, _ = begun(make_crank, LAYERED)
    lanes.crank.add("c", 2)
    lanes.finish(MIXED)
    assert layers_of(lanes.plan()[MIXED]) == {"b": (2, 4)}
    lanes.finish(MIXED)
    plan = lanes.plan()[MIXED]
    assert layers_of(plan) == {"c": (0, 2)}
    assert [work.request_id for work in plan.works] == ["a", "b", "c"]


def test_all_layers_that_are_left_where_nobody_decodes(make_crank: Any) -> None:
    """SGLang #30884: one layer at a time with nobody to wait for it took minutes."""
    lanes, _ = begun(make_crank, LAYERED._replace(num_layers=1))
    lanes.finish(MIXED)
    lanes.scheduler.abort("a", lanes.crank.now)
    assert layers_of(lanes.plan()[MIXED]) == {"b": (1, 4)}


@pytest.mark.parametrize("is_in_flight", [True, False])
def test_who_ends_between_its_layers_leaves_nothing(make_crank: Any, is_in_flight: bool) -> None:
    lanes, _ = begun(make_crank, LAYERED)
    entry = lanes.scheduler._entries["b"]
    if not is_in_flight:
        lanes.finish(MIXED)
        assert entry.begun is not None
        assert entry.begun.carry == 2
    lanes.scheduler.abort("b", lanes.crank.now)
    if is_in_flight:
        lanes.finish(MIXED)
    assert entry.begun is None
    lanes.scheduler.check_integrity()
    assert lanes.scheduler.stats().num_free_blocks == lanes.scheduler.config.num_blocks - 1
    assert layers_of(lanes.plan()[MIXED]) == {}


def test_a_lane_and_a_preemption_begin_anew(make_crank: Any) -> None:
    lanes, told = begun(make_crank, LAYERED)
    lanes.finish(MIXED)
    told.division = SPLIT
    lanes.plan()
    assert [(work.start, work.layers) for work in lanes.flights[PREFILL].works] == [(0, None)]
    lanes, told = begun(make_crank, LAYERED, num_blocks=5, max_model_len=20)
    lanes.finish(MIXED)
    lanes.plan()
    while "b" not in (plan := lanes.flights[MIXED]).preempted:
        lanes.finish(MIXED)
        told.division = LAYERED._replace(num_layers=1)
        lanes.plan()
    assert lanes.scheduler._entries["b"].begun is None
    assert [work.request_id for work in plan.works] == ["a"]


def test_what_is_wanted_is_told(make_crank: Any) -> None:
    told = Told(SPLIT)
    lanes = Lanes(make_crank, told)
    lanes.crank.add("a", 3, max_tokens=8)
    lanes.plan()
    lanes.finish(PREFILL)
    assert told.answers == [(1.0, True)]
    lanes.crank.add("b", 9, arrival_time=1.0)
    lanes.plan()
    demand = told.demands[-1]
    assert (demand.num_units, demand.num_decodes, demand.num_context) == (4, 1, 3)
    assert (demand.num_prefill, demand.next_prefill, demand.next_start, demand.waited_s) == (9, 9, 0, 0.0)
    lanes.finish(PREFILL)
    lanes.plan()
    demand = told.demands[-1]
    assert (demand.num_prefill, demand.next_prefill, demand.next_start, demand.waited_s) == (5, 5, 4, 1.0)
    lanes.finish(DECODE)
    assert told.answers == [(1.0, True), (2.0, False)]


def test_who_is_preempted_by_decodes_does_not_come_back_at_once(make_crank: Any) -> None:
    """What a decode has just taken from somebody is not granted to a newcomer by the other lane."""
    lanes = Lanes(make_crank, Told(Division(False, 1, 3, 16)), num_blocks=6, max_model_len=20)
    for name in "abc":
        lanes.crank.add(name, 6, max_tokens=10)
    for _ in range(200):
        lanes.plan()
        if not lanes.flights:
            break
        lanes.finish(next(iter(lanes.flights)))
    assert not lanes.scheduler.has_unfinished
    assert all(len(lanes.crank.output(name)) == 10 for name in "abc")


DIVISIONS = st.builds(
    Division,
    is_mixed=st.booleans(),
    prefill_units=st.integers(1, 4),
    decode_units=st.integers(1, 4),
    max_prefill=st.integers(1, 20),
    is_prefill_first=st.booleans(),
    num_layers=st.integers(0, 4),
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_division_serves_everybody(make_crank_fn: Any, data: st.DataObject) -> None:
    """Divisions that change all the time, steps that end in any order, aborts, and little memory: all get their tokens,
    nobody is in two lanes, all blocks come back."""
    told = Told(SPLIT)
    lanes = Lanes(make_crank_fn, told, num_blocks=data.draw(st.integers(8, 14)), max_model_len=24)
    wanted = {}
    for number in range(data.draw(st.integers(1, 6))):
        prompt, count = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 8))
        lanes.crank.add(f"r{number}", prompt, max_tokens=count)
        wanted[f"r{number}"] = count
    for _ in range(600):
        told.division = data.draw(DIVISIONS) if data.draw(st.booleans()) else told.division
        lanes.plan()
        held = [work.request_id for plan in lanes.flights.values() for work in plan.works]
        assert len(held) == len(set(held))
        assert MIXED not in lanes.flights or len(lanes.flights) == 1
        if not lanes.flights:
            break
        if wanted and data.draw(st.integers(0, 30)) == 0:
            gone = data.draw(st.sampled_from(sorted(wanted)))
            lanes.scheduler.abort(gone, lanes.crank.now)
            lanes.scheduler.check_integrity()
            del wanted[gone]
        lanes.finish(data.draw(st.sampled_from(sorted(lanes.flights))))
    assert not lanes.scheduler.has_unfinished, lanes.scheduler.dump()
    assert {name: len(lanes.crank.output(name)) for name in wanted} == wanted
    assert lanes.scheduler.stats().num_free_blocks == lanes.scheduler.config.num_blocks


def test_an_unknown_lane_is_an_error(make_crank: Any) -> None:
    with pytest.raises(ValueError, match="unknown lane"):
        make_crank().scheduler.schedule("both", 0.0)
