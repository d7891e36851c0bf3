"""A token that could not be chosen in time is asked again in the next step, and nobody else notices."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from braid.core.constraint import Constraint, ConstraintKind
from braid.core.request import FinishReason
from braid.core.step import SampledToken, StepPlan, StepResult

CONSTRAINT = Constraint(kind=ConstraintKind.REGEX, source="a*")


def finish(crank, plan: StepPlan, deferred: set[str], token: int = 7) -> None:
    crank.now += 1.0
    tokens = {
        work.request_id: SampledToken(token)
        for work in plan.works
        if work.sample is not None and work.request_id not in deferred
    }
    late = frozenset(work.request_id for work in plan.works if work.sample is not None) & deferred
    result = StepResult(plan.step_id, plan.lane, crank.now - 1, 1.0, tokens, deferred=late)
    crank.deltas += crank.scheduler.update(result, crank.now)
    crank.scheduler.check_integrity()


def spans(plan: StepPlan) -> list[tuple[str, int, int]]:
    return [(work.request_id, work.start, len(work.token_ids)) for work in plan.works]


@pytest.mark.parametrize("length", [1, 3, 4, 5, 8, 9])
def test_the_last_token_is_computed_again(crank, length: int) -> None:
    crank.add("a", length, max_tokens=2)
    for _ in range(3):
        plan = crank.plan()
        finish(crank, plan, {"a"})
        assert crank.output("a") == []
    assert spans(plan) == [("a", length - 1, 1)]
    crank.run()
    assert crank.output("a") == [7, 7]


def test_others_go_on(crank) -> None:
    crank.add("a", 4, max_tokens=4)
    crank.add("b", 4, max_tokens=4)
    for _ in range(4):
        finish(crank, crank.plan(), {"a"})
    assert crank.output("a") == []
    assert crank.output("b") == [7] * 4
    crank.run()
    assert crank.output("a") == [7] * 4


def test_a_deferred_request_can_be_aborted(crank) -> None:
    crank.add("a", 5)
    finish(crank, crank.plan(), {"a"})
    plan = crank.plan()
    crank.scheduler.abort("a", crank.now)
    finish(crank, plan, {"a"})
    assert crank.scheduler.stats().num_free_blocks == 16


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 13), min_size=1, max_size=4),
    late=st.lists(st.sets(st.integers(0, 3)), max_size=30),
    num_blocks=st.integers(8, 16),
)
def test_any_deferrals_change_no_output(
    make_crank, lengths: list[int], late: list[set[int]], num_blocks: int
) -> None:
    crank = make_crank(num_blocks=num_blocks, max_model_len=24)
    for index, length in enumerate(lengths):
        crank.add(str(index), length, max_tokens=6)
    for step in range(500):
        plan = crank.plan()
        if plan is None:
            break
        finish(crank, plan, {str(index) for index in (late[step] if step < len(late) else ())})
    assert not crank.scheduler.has_unfinished
    assert all(crank.output(str(index)) == [7] * 6 for index in range(len(lengths)))
    assert crank.scheduler.stats().num_free_blocks == num_blocks


# -- when a constrained request ends -----------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"ignore_eos": True}, {"min_tokens": 3}])
def test_an_end_token_ends_a_constrained_request_always(crank, options: dict[str, object]) -> None:
    crank.add("a", 3, constraint=CONSTRAINT, eos_token_ids=frozenset({9}), **options)
    finish(crank, crank.plan(), set(), token=9)
    assert crank.deltas[-1].finish_reason is FinishReason.STOP


def test_what_is_banned_under_a_constraint(crank) -> None:
    ends = frozenset({9, 8})
    for name, options, banned in (
        ("plain", {}, ()),
        ("early", {"min_tokens": 3}, (8, 9)),
        ("long", {"ignore_eos": True}, (8, 9)),
        ("both", {"ignore_eos": True, "min_tokens": 3, "stop_token_ids": (5,)}, (5, 8, 9)),
    ):
        crank.add(name, 2, constraint=CONSTRAINT, eos_token_ids=ends, **options)
        (work,) = [work for work in crank.plan().works if work.request_id == name]
        assert work.sample.banned_token_ids == banned
        crank.scheduler.abort(name, crank.now)
        crank.scheduler.update(StepResult(work_step(crank), "mixed", 0, 0, {}), crank.now)


def work_step(crank) -> int:
    (flight,) = crank.scheduler._lanes.flights.values()
    return flight.plan.step_id
