from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.policy.agents.catalog import NAMES, agent_policy
from braid.policy.agents.costs import LearntCosts
from braid.policy.agents.describe import described
from braid.policy.agents.forecast import returns_in
from braid.policy.agents.gap_model import GapModel
from braid.policy.agents.gate import Guests
from braid.policy.agents.policy import SetLoad
from braid.policy.agents.program import Finish, Program, ProgramId
from braid.policy.agents.ranked import Ranked


def test_those_who_have_nothing_to_tell() -> None:
    assert described(None, object(), 3) == {}


@pytest.mark.parametrize("name", NAMES)
def test_every_policy_tells_numbers_only(name: str) -> None:
    costs = LearntCosts(has_lower=True)
    state = described(*agent_policy(name, costs)[1:], costs)
    assert all(isinstance(value, int | float) for value in state.values())
    assert {"cost_step_residual_seconds", "cost_reload_samples"} <= state.keys()
    assert ("eta" in state) == (name == "continuum")
    assert ("gate_forced" in state) == (name == "braid")


def test_without_a_lower_tier_nothing_is_said_of_reloads() -> None:
    assert not any("reload" in name for name in described(LearntCosts()))


def test_gaps_by_kind() -> None:
    model = GapModel()
    for seconds in (1.0, 2.0, 100.0):
        model.add(seconds, "tool", "grep -r secret", ProgramId("o", "p"))
    model.add_never("tool", None)
    state = model.describe(("tool", "text"))
    assert state.keys() == {
        f"gap_{what}_tool" for what in ("p50_seconds", "p90_seconds", "samples", "never_share")
    }
    assert state["gap_samples_tool"] == 4
    assert state["gap_p50_seconds_tool"] == pytest.approx(2.0, rel=0.5)
    assert state["gap_p90_seconds_tool"] == pytest.approx(100.0, rel=0.5)
    assert state["gap_never_share_tool"] == pytest.approx(0.25, abs=0.01)


def test_a_ranked_retention_tells_of_the_kinds_it_has_seen() -> None:
    retention = Ranked(LearntCosts(), soon_s=60.0, guests=Guests())
    program = Program(ProgramId("o", "p"), 0.0, finish=Finish.TOOL)
    retention.arrived(program, 3.0, 3.0)
    child = Program(ProgramId("o", "c"), 0.0, parent=program, finish=Finish.TEXT)
    retention.arrived(child, 3.0, 3.0)
    assert {"gap_samples_tool", "gap_samples_text_of_a_sub_agent"} <= retention.describe().keys()


def test_the_fit_and_its_residual() -> None:
    costs = LearntCosts()
    for number in range(1, 200):
        costs.observe_step(number, 0.0, 0, 0.001 * number)
    state = costs.describe()
    assert state["cost_prompt_token_seconds"] == pytest.approx(0.001, rel=0.2)
    assert state["cost_step_samples"] == 199
    assert state["cost_step_residual_seconds"] < 0.05


def test_forced_entries_are_counted(make_turn: Any) -> None:
    gate = agent_policy("braid", LearntCosts()).gate
    full = SetLoad(needed=10.0, added=10, num_blocks=10, num_lower_blocks=0, num_running=1)
    turn = make_turn("a", 0.0)
    assert not gate.admits(turn, full, 1.0)
    assert gate.admits(turn, full, 10_000.0)
    assert described(gate) == {"gate_forced": 1}


@given(st.lists(st.floats(0.001, 90_000.0), max_size=30), st.integers(0, 20), st.floats(0.0, 80_000.0))
@settings(max_examples=60, deadline=None)
def test_the_median_of_what_is_left(gaps: list[float], num_lost: int, idle_s: float) -> None:
    model = GapModel()
    for seconds in gaps:
        model.add(seconds, "tool", None, None)
    for _ in range(num_lost):
        model.add_never("tool", None)
    law = model.gaps("tool", None, None)
    median = law.median(idle_s)
    if median is None:
        assert law.returns(idle_s) < 0.5
    else:
        assert law.returns_within(median, idle_s) == pytest.approx(0.5, abs=1e-6)


def test_a_program_is_expected_back_sooner_the_longer_it_has_been_idle() -> None:
    retention = Ranked(LearntCosts(), soon_s=60.0, guests=Guests())
    program = Program(ProgramId("o", "p"), 0.0, finish=Finish.TOOL, num_turns=1)
    for _ in range(200):
        retention.arrived(program, 10.0, 10.0)
    retention.ended(program, 0.0)
    at_once, later = returns_in(retention, program, 0.0), returns_in(retention, program, 5.0)
    assert at_once == pytest.approx(10.0, rel=0.3)
    assert later is not None
    assert at_once is not None
    assert 0 < later < at_once
