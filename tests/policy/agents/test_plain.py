"""No regard to programs: first come, first served."""

from __future__ import annotations

from typing import Any

from braid.policy.agents.plain import FirstCome, LastInOrder, lru


def test_first_come_by_priority_arrival_and_sequence(make_turn: Any) -> None:
    order = FirstCome()
    turns = [make_turn("d", 2.0), make_turn("b", 1.0), make_turn("c", 1.0), make_turn("a", 9.0, priority=-1)]
    assert [turn.request.request_id for turn in sorted(turns, key=order.key)] == ["a", "b", "c", "d"]
    assert {order.line(turn) for turn in turns} == {0}


def test_the_last_is_the_victim(make_turn: Any) -> None:
    running = [make_turn("a"), make_turn("b")]
    assert LastInOrder().choose(running) is running[1]


def test_nothing_is_kept(make_turn: Any) -> None:
    policy = lru()
    turn = make_turn("a")
    assert policy.retention.ended(turn.program, 1.0).hold_s == 0
    assert policy.gate.is_open
    assert not policy.retention.is_ranked
