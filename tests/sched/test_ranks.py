"""Ranks are asked for when something happens or their time is up, and never for all."""

from __future__ import annotations

from math import inf

import pytest

from braid.policy.agents.plain import LeastRecent
from braid.policy.agents.policy import Rank
from braid.policy.agents.program import Program, ProgramId
from braid.sched.programs import ProgramTable
from braid.sched.ranks import MAX_ASKED, Ranks


class Asked(LeastRecent):
    """Each answer is worth less, and holds for ``lasts`` seconds."""

    is_ranked = True

    def __init__(self, lasts: float = inf) -> None:
        self.lasts = lasts
        self.asked: list[tuple[str, float]] = []

    def rank(self, program: Program, now: float) -> Rank:
        assert program.id is not None
        self.asked.append((program.id.program, now))
        return Rank(0, -now, 1.0, now + self.lasts)


class World:
    def __init__(self, lasts: float = inf) -> None:
        self.policy = Asked(lasts)
        self.table = ProgramTable(100)
        self.ranks = Ranks(self.policy, self.table)
        self.told: list[Program] = []
        self.ranks.watch(self.told.append)

    def meet(self, name: str, now: float = 0.0) -> Program:
        program, _ = self.table.meet(ProgramId("o", name), None, now)
        self.ranks.changed(program, now)
        return program


def test_a_change_asks_and_tells() -> None:
    world = World()
    p = world.meet("p")
    world.ranks.changed(p, 7.0)
    assert world.policy.asked == [("p", 0.0), ("p", 7.0)]
    assert world.ranks.get(p) == Rank(0, -7.0, 1.0, inf)
    assert world.told == [p, p]


def test_programs_that_are_not_known_have_no_rank() -> None:
    world = World()
    p = world.meet("p")
    world.table.forget(p)
    world.ranks.forget(p)
    assert world.told == [p, p]
    world.ranks.changed(p, 1.0)
    world.ranks.changed(Program(None, 0.0), 1.0)
    world.ranks.forget(p)
    assert len(world.ranks) == 0
    assert world.ranks.get(p) is None
    assert len(world.told) == 2


def test_time_asks_again_and_keeps_the_place_among_equals() -> None:
    world = World(10.0)
    p, q = world.meet("p"), world.meet("q")
    before = world.ranks.place(p).changed
    assert before < world.ranks.place(q).changed
    world.ranks.tick(9.9)
    assert len(world.policy.asked) == 2
    world.ranks.tick(10.0)
    assert world.policy.asked[2:] == [("p", 10.0), ("q", 10.0)]
    assert world.ranks.place(p).changed == before


def test_a_change_replaces_the_timer() -> None:
    world = World(10.0)
    p = world.meet("p")
    world.ranks.changed(p, 5.0)
    world.ranks.tick(10.0)
    assert world.policy.asked == [("p", 0.0), ("p", 5.0)]
    world.ranks.tick(15.0)
    assert world.policy.asked[2:] == [("p", 15.0)]


def test_one_step_asks_for_a_bounded_number() -> None:
    world = World(10.0)
    for index in range(MAX_ASKED + 5):
        world.meet(str(index))
    world.policy.asked.clear()
    world.ranks.tick(20.0)
    assert len(world.policy.asked) == MAX_ASKED
    world.ranks.tick(20.0)
    assert len(world.policy.asked) == MAX_ASKED + 5


def test_timers_do_not_pile_up() -> None:
    world = World(1e9)
    p = world.meet("p")
    for now in range(500):
        world.ranks.changed(p, float(now))
    world.ranks.check_integrity()


def test_a_rank_without_a_value_is_a_bug() -> None:
    world = World()
    p = world.meet("p")
    with pytest.raises(AssertionError, match="no place"):
        world.ranks.changed(p, float("nan"))
