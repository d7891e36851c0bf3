"""The published orders: classes, keys and ties."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.core.request import Status
from braid.policy.agents import order as orders
from braid.policy.agents.aging import Aging
from braid.policy.agents.gate import Guests
from braid.policy.agents.order import LeastService
from braid.policy.agents.policy import Order
from braid.policy.agents.program import Program, ProgramId


def names(order: Any, turns: Any, now: float = 100.0) -> list[str]:
    """In which order they would start if none came: heads of lines, again and again."""
    lines: dict[int, list[Any]] = {}
    for turn in sorted(turns, key=order.key):
        lines.setdefault(order.line(turn), []).append(turn)
    started = []
    while any(lines.values()):
        turn = next(iter(order.ranked([line[0] for line in lines.values() if line], now)))
        next(line for line in lines.values() if line and line[0] is turn).pop(0)
        order.started(turn, now)
        started.append(turn.request.request_id)
    return started


def program(name: str, arrival: float, parent: Program | None = None) -> Program:
    return Program(ProgramId("", name), arrival, parent)


def test_older_programs_first_and_sub_agents_with_their_parents(make_turn: Any) -> None:
    old, new = program("old", 1.0), program("new", 5.0)
    child = program("child", 8.0, parent=old)
    turns = [make_turn("n", 5.0, new), make_turn("c", 8.0, child), make_turn("o", 9.0, old)]
    assert names(orders.program_first(), turns) == ["c", "o", "n"]
    # No paper knows families: there a sub-agent is a program of its own.
    assert names(orders.original_arrival(), turns) == ["o", "n", "c"]


def test_resident_first(make_turn: Any) -> None:
    old, new = program("old", 1.0), program("new", 5.0)
    turns = [make_turn("o", 6.0, old), make_turn("n", 7.0, new, is_resident=True)]
    assert names(orders.resident_first(), turns) == ["n", "o"]


def test_the_three_classes_of_continuum(make_turn: Any) -> None:
    a, b, c = program("a", 1.0), program("b", 2.0), program("c", 3.0)
    turns = [
        make_turn("other", 10.0, a),
        make_turn("held", 11.0, b, is_held=True),
        make_turn("preempted", 12.0, c),
        make_turn("held, newer", 9.0, c, is_held=True),
        make_turn("nobody's", 4.0),
    ]
    turns[2].request.status = Status.PREEMPTED
    assert names(orders.continuum(), turns) == ["preempted", "held", "held, newer", "other", "nobody's"]


def test_returning_without_a_hold_precedes_newer_programs(make_turn: Any) -> None:
    old, new = program("old", 1.0), program("new", 2.0)
    assert names(orders.continuum(), [make_turn("n", 2.0, new), make_turn("o", 50.0, old)]) == ["o", "n"]


def test_turns_of_one_program_by_their_own_arrival(make_turn: Any) -> None:
    same = program("same", 1.0)
    assert names(orders.continuum(), [make_turn("later", 4.0, same), make_turn("sooner", 3.0, same)]) == [
        "sooner",
        "later",
    ]


def test_the_released_code_has_no_preempted_class(make_turn: Any) -> None:
    a, b = program("a", 1.0), program("b", 2.0)
    turns = [make_turn("held", 3.0, b, is_held=True), make_turn("preempted", 2.0, a)]
    turns[1].request.status = Status.PREEMPTED
    assert names(orders.held_first(), turns) == ["held", "preempted"]


def test_a_clients_priority_stands_above_all(make_turn: Any) -> None:
    turns = [make_turn("plain", 1.0, is_resident=True, is_held=True), make_turn("urgent", 9.0, priority=-1)]
    for order in every_order():
        assert names(order, turns) == ["urgent", "plain"]


def test_starts_are_passed_on(make_turn: Any) -> None:
    seen: list[Any] = []
    turn = make_turn("a")
    orders.original_arrival(started=seen.append).started(turn, 0.0)
    assert seen == [turn]


@pytest.mark.parametrize(
    ("service", "line"),
    [(0.0, 0), (1.99, 0), (2.0, 1), (3.99, 1), (4.0, 2), (8.0, 3), (16.0, 3), (1e30, 3)],
)
def test_thresholds_double(make_turn: Any, service: float, line: int) -> None:
    turn = make_turn("a")
    turn.program.service = service
    assert LeastService(4, 2.0, 8.0).line(turn) == line


def test_less_service_first_then_first_come(make_turn: Any) -> None:
    served, fresh = program("served", 1.0), program("fresh", 5.0)
    served.service = 100.0
    turns = [make_turn("s", 6.0, served), make_turn("g", 7.5, fresh), make_turn("f", 7.0, fresh)]
    assert names(LeastService(8, 2.0, 1000.0), turns, 8.0) == ["f", "g", "s"]


def test_a_long_wait_is_promoted(make_turn: Any) -> None:
    served, fresh = program("served", 1.0), program("fresh", 5.0)
    served.service = 10.0
    turns = [make_turn("s", 20.0, served), make_turn("f", 95.0, fresh)]
    order = LeastService(8, 2.0, 8.0)
    assert names(order, turns, 99.0) == ["f", "s"]
    # 80 s are eight times the service it has had.
    assert names(order, turns, 100.0) == ["s", "f"]


def every_order() -> list[Order]:
    return [
        orders.program_first(),
        orders.resident_first(),
        orders.original_arrival(),
        orders.held_first(),
        orders.continuum(),
        LeastService(6, 1.0, 4.0),
        Aging(newcomer_every=3, aged_every=4, aged_s=5.0, seniority_s=20.0, guests=Guests()),
    ]


@given(st.integers(0, 10**6))
def test_orders_are_total_and_ranking_keeps_every_head(make_turn: Any, seed: int) -> None:
    rng = random.Random(seed)
    programs = [program(str(number), rng.choice([0.0, 1.0, 2.0])) for number in range(4)]
    for known in programs:
        known.num_turns, known.service = rng.randrange(3), rng.choice([0.0, 1.0, 50.0])
    turns = [
        make_turn(
            str(number),
            rng.choice([2.0, 3.0]),
            rng.choice(programs),
            priority=rng.choice([0, 0, 1]),
            is_resident=rng.random() < 0.5,
            is_held=rng.random() < 0.5,
        )
        for number in range(8)
    ]
    for order in every_order():
        keys = [order.key(turn) for turn in turns]
        assert len(set(keys)) == len(turns)
        assert all(0 <= order.line(turn) < order.num_lines for turn in turns)
        # Keys are asked once, so nothing that changes may be in them.
        for turn in turns:
            turn.is_resident = turn.is_held = not turn.is_held
            turn.program.service += 1.0
        assert keys == [order.key(turn) for turn in turns]
        heads = turns[: order.num_lines]
        assert sorted(order.ranked(heads, 4.0), key=id) == sorted(heads, key=id)
