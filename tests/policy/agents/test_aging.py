"""Braid's order: its lines, its shares, and that nobody waits for ever."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.core.request import Status
from braid.policy.agents.aging import NEW, PREEMPTED, RESIDENT, RETURNING, Aging
from braid.policy.agents.gate import Guests
from braid.policy.agents.program import Program, ProgramId


def aging(*, guests: Guests | None = None, **changed: float) -> Aging:
    numbers: dict[str, Any] = {"newcomer_every": 4, "aged_every": 5, "aged_s": 100.0, "seniority_s": 1000.0}
    return Aging(**(numbers | changed), guests=Guests() if guests is None else guests)


def known(name: str, arrival: float, num_turns: int = 1) -> Program:
    return Program(ProgramId("", name), arrival, num_turns=num_turns)


def test_lines(make_turn: Any) -> None:
    order = aging()
    preempted = make_turn("p")
    preempted.request.status = Status.PREEMPTED
    child = Program(ProgramId("", "child"), 5.0, parent=known("parent", 1.0))
    assert order.line(preempted) == PREEMPTED
    assert order.line(make_turn("r", 5.0, known("r", 1.0), is_resident=True)) == RESIDENT
    assert order.line(make_turn("l", 5.0, known("l", 1.0))) == RETURNING
    assert order.line(make_turn("c", 5.0, child)) == RETURNING
    assert order.line(make_turn("n")) == NEW


def test_a_share_of_starts_is_for_newcomers(make_turn: Any) -> None:
    order = aging(newcomer_every=4)
    new, back = make_turn("n", 1.0), make_turn("b", 2.0, known("b", 0.0), is_resident=True)
    firsts = []
    for _ in range(12):
        turn = next(iter(order.ranked([back, new], 3.0)))
        order.started(turn, 3.0)
        firsts.append(turn.request.request_id)
    assert firsts == ["b", "b", "b", "n"] * 3


def test_a_share_of_starts_is_for_those_that_wait_long(make_turn: Any) -> None:
    order = aging(aged_every=3)
    back = make_turn("b", 1.0, known("b", 0.0))
    firsts = []
    for number in range(6):
        young = make_turn(f"y{number}", 150.0, known("y", 149.0), is_resident=True)
        turn = next(iter(order.ranked([young, back], 150.0)))
        order.started(turn, 150.0)
        firsts.append(turn.request.request_id)
    assert firsts == ["y0", "y1", "b", "y3", "y4", "b"]


def test_long_waits_do_not_make_it_first_come(make_turn: Any) -> None:
    """Under overload everybody waits long; whoever is resident is still served first, but for the share."""
    order = aging(aged_every=10, newcomer_every=1000)
    resident = make_turn("r", 50.0, known("r", 40.0), is_resident=True)
    older = make_turn("o", 1.0, known("o", 0.0))
    firsts = []
    for _ in range(20):
        turn = next(iter(order.ranked([older, resident], 10_000.0)))
        order.started(turn, 10_000.0)
        firsts.append(turn.request.request_id)
    assert firsts.count("o") == 2


def test_seniority_is_capped(make_turn: Any) -> None:
    order = aging(seniority_s=10.0)
    ancient, recent = known("ancient", 0.0), known("recent", 85.0)
    assert order.key(make_turn("a", 100.0, ancient)) > order.key(make_turn("b", 95.0, recent))
    assert order.key(make_turn("a", 94.0, ancient)) < order.key(make_turn("b", 95.0, recent))


@given(st.integers(0, 10**6), st.sampled_from(["new", "returning"]))
def test_nobody_starves(make_turn: Any, seed: int, kind: str) -> None:
    """One turn among a stream that is always preferred: resident turns of older programs, one start a second."""
    rng = random.Random(seed)
    every, aged_s, seniority_s = rng.randint(1, 6), rng.uniform(0, 20), rng.uniform(1, 20)
    order = aging(newcomer_every=every, aged_every=every, aged_s=aged_s, seniority_s=seniority_s)
    owner = known("victim", 0.0, num_turns=1 if kind == "returning" else 0)
    patient = make_turn("patient", 0.0, owner)
    rivals = [known(str(number), -100.0 + number) for number in range(3)]
    lines: dict[int, list[Any]] = {number: [] for number in range(order.num_lines)}
    lines[order.line(patient)].append(patient)
    bound = aged_s + 2 * every * (seniority_s + 8)
    for second in range(int(bound) + 2):
        now = float(second)
        for rival in rng.choices(rivals, k=2):
            turn = make_turn(f"{second}", now, rival, is_resident=rng.random() < 0.7)
            line = lines[order.line(turn)]
            line.append(turn)
            line.sort(key=order.key)
        chosen = next(iter(order.ranked([line[0] for line in lines.values() if line], now)))
        lines[order.line(chosen)].remove(chosen)
        order.started(chosen, now)
        if chosen is patient:
            return
    pytest.fail(f"it waits still after {bound} starts")


def test_a_guest_is_not_resident(make_turn: Any) -> None:
    back = known("back", 1.0)
    turn = make_turn("back", 2.0, back, is_resident=True)
    guests = Guests()
    order = aging(guests=guests)
    assert order.line(turn) == RESIDENT
    guests.add(back)
    assert order.line(turn) == RETURNING
