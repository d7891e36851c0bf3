from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.lab.replay.files import REQUEST
from braid.lab.replay.sending.schedule import Schedule, ScheduleError

NAN = math.nan


def make(rows: Sequence[tuple[int, float, Sequence[int], float]], **options: Any) -> Schedule:
    """Rows are (group, start_s, after, delay_s)."""
    table = np.zeros(len(rows), REQUEST)
    after: list[int] = []
    for number, (group, start_s, before, delay_s) in enumerate(rows):
        table[number]["group"], table[number]["start_s"], table[number]["delay_s"] = group, start_s, delay_s
        table[number]["after_from"], table[number]["after_to"] = len(after), len(after) + len(before)
        after += before
    return Schedule(table, np.array(after, np.uint32), **options)


def due(schedule: Schedule, now_s: float = math.inf) -> list[tuple[float, int]]:
    found = []
    while (one := schedule.pop(now_s)) is not None:
        found.append(one)
    return found


def test_requests_are_due_in_order_of_time_and_not_before() -> None:
    schedule = make([(0, 2.0, (), 0), (1, 1.0, (), 0), (2, 3.0, (), 0)])
    assert schedule.next_s == 1.0
    assert due(schedule, 0.5) == []
    assert due(schedule, 2.0) == [(1.0, 1), (2.0, 0)]
    assert schedule.next_s == 3.0


def test_a_turn_is_due_a_gap_after_the_last_of_its_predecessors() -> None:
    schedule = make([(0, 0.0, (), 0), (0, 0.0, (), 0), (0, 9.0, (0, 1), 2.5)])
    assert due(schedule) == [(0.0, 0), (0.0, 1)]
    assert schedule.ended(1, 7.0) == []
    assert schedule.next_s == math.inf
    assert schedule.is_stuck
    schedule.ended(0, 4.0)
    assert due(schedule) == [(9.5, 2)]
    schedule.ended(2, 10.0)
    assert schedule.remaining == 0
    assert schedule.is_all_out


def test_a_predecessor_named_twice_counts_once() -> None:
    schedule = make([(0, 0.0, (), 0), (0, 1.0, (0, 0), 1.0)])
    due(schedule)
    schedule.ended(0, 1.0)
    assert due(schedule) == [(2.0, 1)]


def test_what_follows_a_failure_is_dropped_only_if_asked() -> None:
    rows = [(0, 0.0, (), 0), (0, 1.0, (0,), 0), (0, 2.0, (1,), 0), (0, 0.0, (), 0)]
    schedule = make(rows, stop_on_failure=True)
    assert [number for _, number in due(schedule)] == [0, 3]
    assert schedule.ended(0, 1.0, failed=True) == [1, 2]
    assert schedule.remaining == 1
    going_on = make(rows)
    due(going_on)
    assert going_on.ended(0, 1.0, failed=True) == []
    assert due(going_on) == [(1.0, 1)]


def test_slots_are_given_in_order_of_rows_when_a_whole_group_has_ended() -> None:
    rows = [
        (5, NAN, (), 0),
        (3, NAN, (), 0),
        (5, NAN, (0,), 1.0),
        (9, NAN, (), 0),
        (9, NAN, (), 0),
        (4, NAN, (), 0),
    ]
    schedule = make(rows, num_slots=2)
    assert due(schedule) == [(0.0, 0), (0.0, 1)]
    schedule.ended(0, 2.0)
    assert due(schedule) == [(3.0, 2)]
    schedule.ended(1, 4.0)
    assert due(schedule) == [(4.0, 3), (4.0, 4)]
    schedule.ended(3, 5.0)
    assert due(schedule) == []
    schedule.ended(2, 6.0)
    assert due(schedule) == [(6.0, 5)]


def test_first_requests_of_a_group_keep_their_distances_behind_the_slot() -> None:
    schedule = make([(0, NAN, (), 0), (0, NAN, (), 3.0), (1, NAN, (), 0.5)], num_slots=1)
    assert schedule.pop(9.0) == (0.0, 0)
    assert schedule.pop(9.0) == (3.0, 1)
    schedule.ended(0, 4.0)
    schedule.ended(1, 6.0)
    assert schedule.pop(9.0) == (6.5, 2)


def test_a_dropped_group_frees_its_slot() -> None:
    rows = [(0, NAN, (), 0), (0, NAN, (0,), 0), (1, NAN, (), 0)]
    schedule = make(rows, num_slots=1, stop_on_failure=True)
    due(schedule)
    assert schedule.ended(0, 2.0, failed=True) == [1]
    assert due(schedule) == [(2.0, 2)]


def test_senders_share_groups() -> None:
    rows = [(group, float(group), (), 0) for group in range(7)]
    shares = [{number for _, number in due(make(rows, sender=k, num_senders=3))} for k in range(3)]
    assert shares == [{0, 3, 6}, {1, 4}, {2, 5}]


def test_a_retry_is_due_again_and_ends_once() -> None:
    schedule = make([(0, 0.0, (), 0)])
    due(schedule)
    schedule.again(0, 5.0)
    assert schedule.leftovers() == [0]
    assert due(schedule, 5.0) == [(5.0, 0)]
    schedule.ended(0, 6.0)
    assert schedule.remaining == 0


def test_a_circle_is_stuck_and_left_over() -> None:
    schedule = make([(0, 0.0, (1,), 0), (0, 0.0, (0,), 0)])
    assert schedule.is_stuck
    assert schedule.leftovers() == [0, 1]


@pytest.mark.parametrize(
    ("rows", "options", "reason"),
    [
        ([(0, NAN, (), 0)], {}, "no slots"),
        ([(0, NAN, (), 0)], {"num_slots": 0}, "wait for slots"),
        ([(0, 0.0, (5,), 0)], {}, "not of its group"),
        ([(0, 0.0, (1,), 0), (1, 0.0, (), 0)], {}, "not of its group"),
    ],
)
def test_what_cannot_be_scheduled_is_refused(rows: Any, options: Any, reason: str) -> None:
    with pytest.raises(ScheduleError, match=reason):
        make(rows, **options)


def test_the_busiest_second_is_found() -> None:
    starts = [0.0, 0.9, 0.95, 1.5, 5.0]
    assert make([(n, start, (), 0) for n, start in enumerate(starts)]).most_starts(1.0) == 3
    assert make([]).most_starts(1.0) == 0


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_nothing_is_lost(data: st.DataObject) -> None:
    """However requests wait for each other and end, each is due once, dropped once, or left over."""
    size = data.draw(st.integers(1, 12))
    rows = []
    for number in range(size):
        before = data.draw(st.sets(st.integers(0, number - 1), max_size=2)) if number else set()
        rows.append(
            (number % 2, data.draw(st.floats(0, 9)), tuple(b for b in before if b % 2 == number % 2), 1.0)
        )
    schedule = make(rows, stop_on_failure=data.draw(st.booleans()))
    popped: list[int] = []
    dropped: list[int] = []
    open_ones: list[int] = []
    now_s = 0.0
    while True:
        now_s += data.draw(st.floats(0, 5))
        new = [number for _, number in due(schedule, now_s)]
        popped += new
        open_ones += new
        if open_ones:
            number = open_ones.pop(data.draw(st.integers(0, len(open_ones) - 1)))
            dropped += schedule.ended(number, now_s, failed=data.draw(st.booleans()))
        elif schedule.is_stuck:
            break
        else:
            now_s = max(now_s, schedule.next_s)
    assert sorted(popped + dropped) == list(range(size))
    assert schedule.remaining == 0
    assert schedule.leftovers() == []
