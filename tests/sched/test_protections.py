"""Wished lifetimes are honoured within a share of the pool. The pool has 40 blocks, 20 of them for protection."""

from __future__ import annotations

import pytest

from braid.core.program import RetainIntent
from braid.policy.agents.program import Program, ProgramId
from braid.sched.protections import Protections


@pytest.fixture
def protections() -> Protections:
    return Protections(40)


def program(name: str, num_blocks: int, owner: str = "a", **wish: float) -> Program:
    keys = tuple(f"{owner}{name}{index}".encode() for index in range(num_blocks))
    return Program(ProgramId(owner, name), 0.0, keys=keys, intent=RetainIntent(**wish))


def test_a_wish_is_honoured_until_its_time_is_over(protections: Protections) -> None:
    p = program("p", 5, min_s=10.0)
    assert protections.grant(p, 100.0)
    assert p.is_protected
    assert protections.expire(109.9) == []
    assert protections.expire(110.0) == [p]
    assert not p.is_protected
    protections.check_integrity()


@pytest.mark.parametrize(
    "wish",
    [{}, {"min_s": 0.0}, {"min_s": -5.0}, {"min_s": float("nan")}, {"min_s": 9.0, "max_s": 0.0}],
)
def test_what_makes_no_sense_is_no_wish(protections: Protections, wish: dict[str, float]) -> None:
    assert not protections.grant(program("p", 5, **wish), 0.0)
    assert len(protections) == 0


def test_the_shorter_of_two_times_holds_and_none_is_endless(protections: Protections) -> None:
    short, endless = program("p", 1, min_s=100.0, max_s=10.0), program("q", 1, min_s=float("inf"))
    protections.grant(short, 0.0)
    protections.grant(endless, 0.0)
    assert protections.expire(10.0) == [short]
    assert protections.expire(3600.0) == [endless]


def test_an_owner_keeps_to_its_share_and_leaves_others_theirs(protections: Protections) -> None:
    assert protections.grant(program("p", 20, min_s=9.0), 0.0)
    assert not protections.grant(program("q", 1, min_s=9.0), 0.0)
    assert not protections.grant(program("p", 1, "b", min_s=9.0), 0.0)
    protections.expire(9.0)
    assert protections.grant(program("p", 12, min_s=9.0), 9.0)
    assert protections.grant(program("p", 8, "b", min_s=9.0), 9.0)
    assert not protections.grant(program("q", 1, "b", min_s=9.0), 9.0)
    protections.check_integrity()


def test_the_next_turn_ends_it_and_a_new_one_takes_its_place(protections: Protections) -> None:
    p = program("p", 10, min_s=5.0)
    protections.grant(p, 0.0)
    protections.grant(p, 3.0)
    assert len(protections) == 1
    assert protections.expire(5.0) == []
    assert protections.end(p)
    assert not protections.end(p)
    assert not p.is_protected
    assert protections.expire(99.0) == []


def test_many_that_end_early_leave_nothing_behind(protections: Protections) -> None:
    p = program("p", 1, min_s=500.0)
    for now in range(1000):
        protections.grant(p, float(now))
    assert len(protections._ends) < 100
    protections.check_integrity()
