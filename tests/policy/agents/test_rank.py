"""Braid's rank of idle blocks."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.core.program import RetainIntent
from braid.policy.agents.gap_model import GapModel
from braid.policy.agents.gate import Guests
from braid.policy.agents.policy import Fate
from braid.policy.agents.program import Finish, Program, ProgramId
from braid.policy.agents.ranked import ASSURED, EXPECTED, PLAIN, UNDER_WAY, Ranked


class FixedCosts:
    def __init__(self, block_s: float = inf) -> None:
        self._block_s = block_s

    def prefill_s(self, num_tokens: int, start: int = 0) -> float:
        return num_tokens / 1000

    def reload_s(self, num_blocks: int) -> float:
        return num_blocks * self._block_s

    def observe_step(self, num_tokens: int, attended: float, num_decodes: int, seconds: float) -> None:
        raise AssertionError("policies only ask")

    def observe_reload(self, num_blocks: int, seconds: float) -> None:
        raise AssertionError("policies only ask")


def program(
    name: str = "p", *, finish: Finish = Finish.TOOL, num_tokens: int = 160, keys: int = 10, **state: object
) -> Program:
    made = Program(ProgramId("owner", name), 0.0, num_turns=1, num_tokens=num_tokens, finish=finish)
    made.keys = tuple(str(number).encode() for number in range(keys))
    for field, value in state.items():
        setattr(made, field, value)
    return made


def ranked(block_s: float = inf, model: GapModel | None = None, guests: Guests | None = None) -> Ranked:
    return Ranked(
        FixedCosts(block_s), soon_s=60.0, guests=Guests() if guests is None else guests, model=model
    )


def values(policy: Ranked, programs: Sequence[Program], now: float) -> list[float]:
    return [policy.rank(known, now).value for known in programs]


def test_without_data_equal_programs_go_by_their_last_use() -> None:
    policy = ranked()
    programs = [program(str(n), last_active=n) for n in (0.0, 900.0, 990.0)]
    assert values(policy, programs, 1000.0) == sorted(values(policy, programs, 1000.0))
    assert {policy.rank(known, 1000.0).protection for known in programs} == {EXPECTED}


def test_what_costs_more_to_rebuild_per_block_is_kept_longer() -> None:
    policy = ranked()
    cheap, dear = program("cheap"), program("dear", num_tokens=1600)
    assert policy.rank(dear, 5.0).value == pytest.approx(10 * policy.rank(cheap, 5.0).value)
    # A tier below makes both as cheap as a copy.
    tier = ranked(block_s=1e-4)
    assert tier.rank(dear, 5.0).value == pytest.approx(tier.rank(cheap, 5.0).value)


def test_kinds_and_programs_that_never_return() -> None:
    model = GapModel()
    policy = ranked(model=model)
    for number in range(100):
        one = program(str(number), last_active=0.0)
        policy.ended(one, 0.0)
        policy.arrived(one, 2.0, 2.0)
        gone = program(f"gone {number}", finish=Finish.TEXT)
        policy.ended(gone, 0.0)
        policy.left(gone, 3600.0)
    tool, text = program("a"), program("b", finish=Finish.TEXT)
    assert policy.rank(tool, 0.5).value > 10 * policy.rank(text, 0.5).value
    assert (policy.rank(tool, 0.5).protection, policy.rank(text, 0.5).protection) == (EXPECTED, PLAIN)
    assert policy.rank(tool, 0.5).weight > 0.9
    assert policy.rank(text, 0.5).weight < 0.3
    assert policy.ended(tool, 0.0).source == "kind"


def test_a_program_that_says_it_is_over_teaches_nothing() -> None:
    policy = ranked()
    one = program(last_active=5.0)
    policy.left(one, 5.0)
    assert policy.ended(program(), 5.0).source == "cold"
    assert policy.model.shares("tool", None, None) == GapModel().shares("tool", None, None)


def test_turns_that_run_or_wait() -> None:
    policy = ranked()
    running, waiting, idle = program(num_running=1), program(num_waiting=1), program()
    assert policy.rank(running, 1.0) == (UNDER_WAY, 0.0, 1.0, inf)
    # Who waits asks the gate itself.
    assert policy.rank(waiting, 1.0) == policy.rank(idle, 1.0)._replace(weight=0.0)


def test_while_a_sub_agent_works_the_clock_stands_still() -> None:
    policy = ranked()
    parent = program(num_working=1, intent=RetainIntent(max_s=100.0))
    assert policy.rank(parent, 500.0) == policy.rank(parent, 0.1)
    assert policy.rank(parent, 500.0).until == inf
    parent.num_working = 0
    assert policy.rank(parent, 500.0).protection == PLAIN


def test_lifetimes() -> None:
    policy = ranked()
    assured = program(intent=RetainIntent(min_s=300.0), is_protected=True)
    assert policy.rank(assured, 299.0).protection == ASSURED
    assert policy.rank(assured, 299.0).until == 300.0
    assert policy.rank(assured, 300.0).protection == EXPECTED
    over_quota = program(intent=RetainIntent(min_s=300.0))
    assert policy.rank(over_quota, 1.0).protection == EXPECTED
    # The shorter one holds in a conflict.
    short = program(intent=RetainIntent(min_s=300.0, max_s=30.0), is_protected=True)
    assert policy.rank(short, 29.0).protection == ASSURED
    assert policy.rank(short, 30.0) == (PLAIN, -1.0, 0.0, inf)
    assert policy.ended(program(intent=RetainIntent(max_s=0.0)), 0.0).fate is Fate.DISCARD


def test_hints_move_the_rank_and_wrong_ones_lose_their_say() -> None:
    policy = ranked()
    plain, soon = program("plain"), program("soon", intent=RetainIntent(return_s=60.0, return_p90_s=80.0))
    assert policy.ended(soon, 0.0).source == "hint"
    # Away for 50 s, and expected after 60.
    assert policy.rank(soon, 50.0).value > 1.5 * policy.rank(plain, 50.0).value
    for _ in range(10):
        policy.ended(soon, 0.0)
        policy.arrived(soon, 3000.0, 3000.0)
    assert policy.trust.weight("owner") < 0.1
    assert policy.trust.weight("another") == 0.5


def test_no_keys_no_worth() -> None:
    assert ranked().rank(program(keys=0), 1.0).value == 0.0


@given(
    st.floats(0, 1e9),
    st.floats(0, 1e6),
    st.none() | st.floats(0, 1e5),
    st.none() | st.floats(0, 1e5),
    st.booleans(),
)
def test_ranks_are_good_until_later(
    last: float, idle: float, min_s: float | None, max_s: float | None, is_protected: bool
) -> None:
    """Else whoever asks at that time would ask for ever."""
    policy = ranked()
    known = program(
        last_active=last, intent=RetainIntent(min_s=min_s, max_s=max_s), is_protected=is_protected
    )
    now = last + idle
    rank = policy.rank(known, now)
    assert rank.until > now
    assert 0 <= rank.weight <= 1
    later = policy.rank(known, rank.until) if rank.until < inf else None
    assert later is None or later.until > rank.until


def test_few_ranks_are_asked_for_while_a_program_is_idle() -> None:
    policy, known = ranked(), program()
    now, asked = 0.0, 0
    while now < 3600.0:
        now = policy.rank(known, now).until
        asked += 1
    assert asked <= 25


def test_guests_go_first_and_weigh_nothing() -> None:
    guests = Guests()
    policy = ranked(guests=guests)
    older, younger, other = program("a"), program("b", first_arrival=5.0), program("c")
    guests.update((older, younger))
    assert sorted((older, younger, other), key=lambda known: policy.rank(known, 10.0)[:2]) == [
        younger,
        older,
        other,
    ]
    assert [policy.rank(known, 10.0).weight for known in (older, younger)] == [0.0, 0.0]
    older.num_running = 1
    assert policy.rank(older, 10.0).weight == 1.0
    guests.discard(younger)
    assert policy.rank(younger, 10.0) == policy.rank(other, 10.0)
