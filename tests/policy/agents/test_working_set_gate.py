"""Who may enter: by what programs need, and by force after a while."""

from __future__ import annotations

from typing import Any

from braid.core.request import Status
from braid.policy.agents.gate import WorkingSetGate
from braid.policy.agents.policy import SetLoad
from braid.policy.agents.program import Program, ProgramId

FULL = SetLoad(needed=100.0, added=1, num_blocks=60, num_lower_blocks=40, num_running=2)


def gate(share: float = 1.0) -> WorkingSetGate:
    return WorkingSetGate(share=share, deadline_s=50.0, every_s=10.0)


def test_both_tiers_count(make_turn: Any) -> None:
    turn = make_turn("a")
    assert gate().admits(turn, FULL._replace(needed=99.0), 1.0)
    assert not gate().admits(turn, FULL._replace(needed=99.0, added=2), 1.0)
    assert not gate(0.9).admits(turn, FULL._replace(needed=90.0), 1.0)
    assert gate(0.9).admits(turn, FULL._replace(needed=89.0), 1.0)


def test_who_always_passes(make_turn: Any) -> None:
    preempted = make_turn("p")
    preempted.request.status = Status.PREEMPTED
    assert gate().admits(preempted, FULL, 1.0)
    back = Program(ProgramId("", "r"), 0.0, num_turns=1)
    assert gate().admits(make_turn("r", 1.0, back, is_resident=True), FULL, 1.0)
    assert not gate().admits(make_turn("r", 1.0, back), FULL, 1.0)
    assert gate().admits(make_turn("n"), FULL._replace(num_running=0), 1.0)


def test_by_force_after_the_deadline_one_at_a_time(make_turn: Any) -> None:
    first, second = make_turn("first", 0.0), make_turn("second", 0.0)
    closed = gate()
    assert not closed.admits(first, FULL, 49.9)
    assert closed.admits(first, FULL, 50.0)
    assert not closed.admits(second, FULL, 50.0)
    # It found no memory, and asks again: that is no second entry.
    assert closed.admits(first, FULL, 55.0)
    assert not closed.admits(second, FULL, 59.9)
    assert closed.admits(second, FULL, 60.0)
