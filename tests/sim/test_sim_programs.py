from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from braid.core.errors import InvalidParameterError
from braid.policy.agents.program import Finish
from braid.sim.clients import Clients, Hints
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
    arrivals, _ = arrivals_of(draw_starts([family("f", first, second)], 2, 1.0, 0), grain=grain)
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
    arrivals, places = arrivals_of(starts, grain=1, clients=Clients(say_final=True))
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
    (arrival,), _ = arrivals_of(draw_starts([family("f", small)], 1, 1.0, 0), grain=8)
    assert arrival.prompt() == [3]  # type: ignore[operator]
    assert arrival.num_output_tokens == 1


def said(hints: Hints, seed: int = 0) -> list[float | None]:
    parts = [turn(), turn(after=(0,), delay_s=4.0), turn(after=(1,), delay_s=50.0)]
    starts = draw_starts([family("f", *parts)], 1, 1.0, 0)
    arrivals, _ = arrivals_of(starts, grain=1, clients=Clients(hints=hints), seed=seed)
    return [None if arrival.intent is None else arrival.intent.return_s for arrival in arrivals]


def test_honest_clients_say_the_gap_that_follows_and_nothing_at_the_end() -> None:
    assert said(Hints()) == [4.0, 50.0, None]


def test_clients_may_be_off_by_a_factor_or_call_the_longest_gap_the_shortest() -> None:
    assert said(Hints(factor=10.0)) == [40.0, 500.0, None]
    assert said(Hints(pivot_s=10.0)) == [25.0, 2.0, None]


def test_noise_of_hints_goes_by_the_seed() -> None:
    noisy = Hints(noise=1.0)
    assert said(noisy, 1) == said(noisy, 1) != said(noisy, 2)


def test_anonymous_families_name_no_program() -> None:
    starts = draw_starts(FAMILIES, 400, 1.0, 0)
    arrivals, _ = arrivals_of(starts, grain=1, clients=Clients(anonymous=0.25))
    assert 60 < sum(arrival.program is None for arrival in arrivals) < 140


@pytest.mark.parametrize(
    "wrong", [{"factor": 0.0}, {"noise": -1.0}, {"pivot_s": -1.0}], ids=lambda wrong: next(iter(wrong))
)
def test_hints_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidParameterError, match=next(iter(wrong))):
        Hints(**wrong)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_shares_that_cannot_be(share: float) -> None:
    with pytest.raises(InvalidParameterError, match="anonymous must be between 0 and 1"):
        Clients(anonymous=share)
