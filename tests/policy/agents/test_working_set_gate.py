"""Who may enter: by what programs need, and by force after a while."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

import pytest

from braid.core.request import Status
from braid.policy.agents.gate import Budget, Guests, WorkingSetGate
from braid.policy.agents.policy import SetLoad
from braid.policy.agents.program import Program, ProgramId

FULL = SetLoad(needed=100.0, added=1, num_blocks=60, num_lower_blocks=40, num_running=2)


class TenPerSecond:
    """Costs of a machine that prefills ten tokens a second."""

    def prefill_s(self, num_tokens: int, start: int = 0) -> float:
        return num_tokens / 10

    def reload_s(self, num_blocks: int) -> float:
        return inf

    def observe_step(self, num_tokens: int, attended: float, num_decodes: int, seconds: float) -> None:
        raise AssertionError("policies only ask")

    def observe_reload(self, num_blocks: int, seconds: float) -> None:
        raise AssertionError("policies only ask")


def gate(share: float = 1.0, lower_share: float = 1.0, guests: Guests | None = None) -> WorkingSetGate:
    """Newcomers after 20 s for a tenth of the time, others after 50 s for a hundredth."""
    return WorkingSetGate(
        share=share,
        lower_share=lower_share,
        newcomers=Budget(TenPerSecond(), after_s=20.0, share=0.1),
        overdue=Budget(TenPerSecond(), after_s=50.0, share=0.01),
        guests=Guests() if guests is None else guests,
    )


def test_both_tiers_count_by_their_shares(make_turn: Any) -> None:
    turn = make_turn("a")
    assert gate().admits(turn, FULL._replace(needed=99.0), 1.0)
    assert not gate().admits(turn, FULL._replace(needed=99.0, added=2), 1.0)
    assert not gate(0.9, 0.5).admits(turn, FULL._replace(needed=74.0), 1.0)
    assert gate(0.9, 0.5).admits(turn, FULL._replace(needed=73.0), 1.0)


def test_who_always_passes(make_turn: Any) -> None:
    preempted = make_turn("p")
    preempted.request.status = Status.PREEMPTED
    assert gate().admits(preempted, FULL, 1.0)
    back = Program(ProgramId("", "r"), 0.0, num_turns=1)
    assert gate().admits(make_turn("r", 1.0, back, is_resident=True), FULL, 1.0)
    assert not gate().admits(make_turn("r", 1.0, back), FULL, 1.0)
    assert gate().admits(make_turn("n"), FULL._replace(num_running=0), 1.0)


def test_who_waits_for_too_long_enters_within_a_share_of_the_time(make_turn: Any) -> None:
    first, second = make_turn("first", num_tokens=7), make_turn("second", num_tokens=7)
    closed = gate()
    assert not closed.admits(first, FULL, 19.9)
    assert closed.admits(first, FULL, 20.0)
    assert not closed.admits(second, FULL, 20.0)
    # It found no memory, and asks again: that is no second entry.
    assert closed.admits(first, FULL, 25.0)
    # 0.7 s of prefill are a tenth of 7 s.
    assert not closed.admits(second, FULL, 26.9)
    assert closed.admits(second, FULL, 27.0)
    assert closed.describe() == {"gate_forced": 2}


def test_newcomers_and_others_have_budgets_of_their_own(make_turn: Any) -> None:
    back, child = (Program(ProgramId("", name), 0.0, num_turns=1) for name in ("back", "parent"))
    child = Program(ProgramId("", "child"), 0.0, parent=child)
    closed = gate()
    assert closed.admits(make_turn("new"), FULL, 50.0)
    assert closed.admits(make_turn("back", 0.0, back), FULL, 50.0)
    # A sub-agent's first turn is no newcomer's.
    assert not closed.admits(make_turn("child", 0.0, child), FULL, 50.0)


def test_a_guest_asks_again_though_its_blocks_are_there(make_turn: Any) -> None:
    guests = Guests()
    closed = gate(guests=guests)
    program = Program(ProgramId("", "p"), 0.0)
    assert closed.admits(make_turn("p", 0.0, program), FULL, 20.0)
    assert program in guests
    program.num_turns = 1
    again = make_turn("again", 30.0, program, is_resident=True)
    assert not closed.admits(again, FULL, 31.0)
    assert closed.admits(again, FULL._replace(needed=0.0), 32.0)
    assert program not in guests
    assert closed.admits(again, FULL, 33.0)


def test_guests_are_forgotten_with_their_programs(make_turn: Any) -> None:
    guests = Guests()
    assert gate(guests=guests).admits(make_turn("p", 0.0, Program(ProgramId("", "p"), 0.0)), FULL, 20.0)
    assert len(guests) == 0


@pytest.mark.parametrize("settings", [{"share": 0.1}, {"after_s": 0.0}])
def test_a_budget_needs_both_the_wait_and_the_share(make_turn: Any, settings: Mapping[str, float]) -> None:
    budget = Budget(TenPerSecond(), **{"after_s": 10.0, "share": 1.0, **settings})
    assert budget.has(make_turn("a", num_tokens=10), 10.0)
    late = 10.0 + 1.0 / settings.get("share", 1.0)
    assert not budget.has(make_turn("b", num_tokens=10), late - 0.1)
    assert budget.has(make_turn("c", num_tokens=10), late)


def test_who_can_never_fit_waits_no_longer_than_a_newcomer(make_turn: Any) -> None:
    closed = gate()
    back = Program(ProgramId("", "back"), 0.0, num_turns=3)
    large = FULL._replace(added=101)
    assert not closed.admits(make_turn("a", 0.0, back), large._replace(added=100), 20.0)
    assert not closed.admits(make_turn("b", 0.0, back), large, 19.9)
    assert closed.admits(make_turn("b", 0.0, back), large, 20.0)
