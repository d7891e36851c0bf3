"""Where experts end and KV begins: to where a step saves more time, and not to and fro."""

from __future__ import annotations

from braid.policy.experts.boundary import AGREED, REST, Boundary, Side, Window

BOTH = frozenset(Side)
CALM = Window(
    seconds=2.0,
    missed_experts=0,
    expert_s=1e-3,
    num_running=1.0,
    missed_blocks=0,
    block_s=0.05,
    short_s=0.0,
    can_grow=BOTH,
)
EXPERTS = CALM._replace(missed_experts=200)
"""0.1 request-seconds per second."""
KV = CALM._replace(missed_blocks=10)
"""0.25."""


def decided(boundary: Boundary, *windows: Window) -> list[Side | None]:
    return [boundary.decide(window) for window in windows]


def test_nothing_moves_where_nothing_would_be_saved() -> None:
    assert decided(Boundary(), *[CALM] * 10) == [None] * 10


def test_the_side_that_saves_more_gets_a_step_when_it_was_so_twice() -> None:
    boundary = Boundary()
    assert decided(boundary, EXPERTS, EXPERTS) == [None, Side.EXPERTS]
    assert boundary.worth == {Side.EXPERTS: 0.1, Side.KV: 0.0}
    assert decided(boundary, *[EXPERTS] * REST) == [None] * REST, "what was moved is not warm yet"
    assert decided(boundary, *[EXPERTS] * AGREED)[-1] is Side.EXPERTS
    assert boundary.describe()["memory_moves_to_experts"] == 2


def test_whoever_waits_for_blocks_counts_as_much_as_who_waits_for_experts() -> None:
    waiting = EXPERTS._replace(short_s=0.4)
    assert decided(Boundary(), waiting, waiting)[-1] is Side.KV
    many = waiting._replace(num_running=8.0)
    assert decided(Boundary(), many, many)[-1] is Side.EXPERTS, "eight requests wait for experts"


def test_what_is_about_as_good_stays() -> None:
    near = EXPERTS._replace(missed_blocks=3)
    assert decided(Boundary(), *[near] * 10) == [None] * 10


def test_a_side_that_has_all_or_would_take_the_others_last_gets_none() -> None:
    assert decided(Boundary(), *[EXPERTS._replace(can_grow=frozenset({Side.KV}))] * 5) == [None] * 5


def test_one_window_that_says_otherwise_begins_anew() -> None:
    assert decided(Boundary(), EXPERTS, CALM, EXPERTS, KV, EXPERTS) == [None] * 5


def test_turning_back_takes_longer_each_time() -> None:
    boundary = Boundary()
    windows = []
    for side in (EXPERTS, KV, EXPERTS, KV):
        count = 1
        while boundary.decide(side) is None:
            count += 1
        windows.append(count)
    assert windows == sorted(windows), windows
    assert windows[0] == AGREED, windows
    assert windows[-1] > 4 * AGREED, windows
