from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from braid.core.errors import InvalidParameterError
from braid.policy.agents.program import Finish
from braid.sim.programs import Family, Text, Turn, arrivals_of, draw_starts


def turn(member: int = 0, after: tuple[int, ...] = (), **fields: object) -> Turn:
    known: dict[str, object] = {
        "delay_s": 0.0,
        "prompt": Text((0,), (100,)),
        "num_output": 10,
        "reply": Text((1,), (10,)),
        "finish": Finish.TOOL,
        "tool": "bash",
    }
    return Turn(member=member, after=after, **(known | fields))  # type: ignore[arg-type]


def family(name: str, *turns: Turn, parents: tuple[int, ...] = (-1,)) -> Family:
    return Family(name=name, turns=turns, parents=parents, num_streams=10)


FAMILIES = [family(str(number), turn()) for number in range(5)]


def test_none_comes_twice_before_all_have_come() -> None:
    starts = draw_starts(FAMILIES, 12, 2.0, seed=3)
    counts = Counter(start.family.name for start in starts[:10])
    assert set(counts.values()) == {2}
    assert [start.time for start in starts] == sorted(start.time for start in starts)


def test_equal_seeds_draw_equally_and_rates_only_scale_times() -> None:
    slow, fast, other = (
        draw_starts(FAMILIES, 50, rate, seed) for rate, seed in ((1.0, 1), (4.0, 1), (1.0, 2))
    )
    assert [s.family.name for s in slow] == [s.family.name for s in fast]
    assert [s.time for s in slow] == pytest.approx([4 * s.time for s in fast])
    assert [s.time for s in slow] != [s.time for s in other]
    assert sum(b.time - a.time for a, b in pairwise(slow)) / 49 == pytest.approx(1.0, rel=0.5)


@pytest.mark.parametrize(("num", "rate", "name"), [(0, 1.0, "programs"), (3, 0.0, "rate"), (3, -1.0, "rate")])
def test_nothing_to_draw_is_an_error(num: int, rate: float, name: str) -> None:
    with pytest.raises(InvalidParameterError, match=f"{name} must be above 0"):
        draw_starts(FAMILIES, num, rate, 0)


def test_no_families_is_an_error() -> None:
    with pytest.raises(InvalidParameterError, match="no program"):
        draw_starts([], 3, 1.0, 0)


@pytest.mark.parametrize("grain", [1, 4, 7])
def test_a_prompt_begins_with_the_earlier_prompt_and_answer_in_any_grain(grain: int) -> None:
    first = turn(reply=Text((1,), (10,)))
    second = turn(after=(0,), prompt=Text((0, 1, 2), (100, 10, 33)), delay_s=5.0)
    arrivals, _ = arrivals_of(
        draw_starts([family("f", first, second)], 2, 1.0, 0), grain=grain, say_final=False
    )
    prompts = [arrival.prompt() for arrival in arrivals]  # type: ignore[operator]
    replies = [arrival.reply() for arrival in arrivals]  # type: ignore[operator]
    told = [*prompts[0], *replies[0]]
    assert prompts[1][: len(told)] == told
    assert len(replies[0]) == arrivals[0].num_output_tokens
    assert abs(len(prompts[1]) * grain - 143) <= grain / 2
    assert set(prompts[0]).isdisjoint(prompts[2]), "two starts of one family share nothing"
    assert [arrival.after for arrival in arrivals] == [(), (0,), (), (2,)]


def test_members_are_programs_with_parents_and_say_their_last_turn_if_asked() -> None:
    turns = (turn(), turn(1, (0,)), turn(0, (1,), finish=Finish.TEXT, tool=None))
    starts = draw_starts([family("f", *turns, parents=(-1, 0))], 1, 1.0, 0)
    arrivals, places = arrivals_of(starts, grain=1, say_final=True)
    refs = [arrival.program for arrival in arrivals]
    assert all(ref is not None for ref in refs)
    assert [(r.program, r.parent, r.final) for r in refs if r is not None] == [
        ("0.0", None, False),
        ("0.1", "0.0", True),
        ("0.0", None, True),
    ]
    assert [arrival.ending for arrival in arrivals] == [
        (Finish.TOOL, "bash"),
        (Finish.TOOL, "bash"),
        (Finish.TEXT, None),
    ]
    assert [tuple(place) for place in places] == [(0, 0), (0, 1), (0, 2)]


def test_tiny_texts_have_one_unit_at_least() -> None:
    small = turn(prompt=Text((3,), (2,)), num_output=1, reply=Text((4,), (1,)))
    (arrival,), _ = arrivals_of(draw_starts([family("f", small)], 1, 1.0, 0), grain=8, say_final=False)
    assert arrival.prompt() == [3]  # type: ignore[operator]
    assert arrival.num_output_tokens == 1
