"""Prefixes that many requests begin with are worth what their finds say. Blocks hold 4 tokens; the pool has 16."""

from __future__ import annotations

from typing import Any

import pytest

from braid.core.program import ProgramRef
from braid.policy.agents.catalog import agent_policy
from braid.policy.agents.costs import LearntCosts
from braid.policy.agents.gap_model import GapModel
from braid.policy.agents.program import COMMON_TOOL, Finish
from braid.sched.commons import MAX_COMMONS
from braid.sched.config import Policies

SYSTEM = range(500, 512)
"""Three blocks."""


@pytest.fixture
def make(make_crank: Any) -> Any:
    def make(policy: str, **config: Any) -> Any:
        costs = LearntCosts()
        policies = Policies(agents=agent_policy(policy, costs), costs=costs)
        return make_crank(policies, **({"max_model_len": 64} | config))

    return make


def ask(crank: Any, prompt: Any, program: str | None = None) -> int:
    """Tokens found."""
    ref = None if program is None else ProgramRef(owner=program, program=program)
    name = f"{len(crank.deltas)}-{crank.now}"
    request = crank.add(name, prompt, max_tokens=1, program=ref, arrival_time=crank.now)
    crank.run()
    if ref is not None:
        crank.scheduler.told(ref, Finish.TOOL, "bash", crank.now)
    cached: int = request.num_cached_tokens
    return cached


def commons(crank: Any) -> Any:
    return crank.scheduler._retention._commons


@pytest.mark.parametrize("names", [False, True])
def test_a_system_text_is_worth_what_those_who_begin_with_it_say(make: Any, names: bool) -> None:
    """Programs fill the pool between any two of them; they may have names, each another. Once the text has come twice
    it stays."""
    crank = make("braid")
    found = []
    for number in range(6):
        found.append(ask(crank, [*SYSTEM, number], f"one-{number}" if names else None))
        crank.now += 1.0
        ask(crank, [1000 + number] * 49, f"p-{number}")
        crank.now += 4.0
    assert found[2:] == [12, 12, 12, 12]
    assert len(commons(crank)) == 1


def test_one_that_is_hardly_ever_found_goes_first(make: Any) -> None:
    crank = make("braid")
    for _ in range(3):
        ask(crank, [*SYSTEM, 1])
        crank.now += 900.0
    for _ in range(3):
        ask(crank, range(29), "p")
        crank.now += 2.0
    ask(crank, range(100, 132))
    assert ask(crank, range(29), "p") == 28
    assert ask(crank, [*SYSTEM, 1]) < 12


def test_what_a_program_finds_of_its_own_is_no_common_prefix(make: Any) -> None:
    crank = make("braid")
    ask(crank, range(20), "p")
    ask(crank, range(30), "p")
    assert len(commons(crank)) == 0
    ask(crank, range(30), "q")
    assert len(commons(crank)) == 1


def test_it_is_no_program_to_those_who_look(make: Any) -> None:
    crank = make("braid")
    for number in range(3):
        ask(crank, [*SYSTEM, number])
    assert len(commons(crank)) == 1
    assert crank.scheduler.stats().num_programs == 0
    assert crank.scheduler.programs(None, 10, crank.now) == []


def test_a_longer_prefix_is_a_find_of_the_shorter_too(make: Any) -> None:
    crank = make("braid")
    for tail in (range(1), range(2)):
        ask(crank, [*SYSTEM, *tail])
    longer = [*SYSTEM, *range(8)]
    for _ in range(3):
        ask(crank, longer)
        crank.now += 1.0
    turns = sorted(prefix.num_turns for prefix in commons(crank)._by_end.values())
    assert turns == [2, 4]


def test_prefixes_are_bounded_and_end_when_nobody_finds_them(make: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("braid.sched.commons.MAX_COMMONS", 5)
    crank = make("braid", num_blocks=64)
    for number in range(12):
        for _ in range(2):
            ask(crank, [number] * 9)
        assert len(commons(crank)) == min(number + 1, 5) <= MAX_COMMONS
    crank.now += 4000.0
    crank.scheduler.tick(crank.now)
    crank.scheduler.check_integrity()
    assert len(commons(crank)) == 0


def test_they_teach_nothing_of_programs() -> None:
    model = GapModel()
    before = model.shares("unknown", None, "p")
    for _ in range(100):
        model.add(1.0, "unknown", COMMON_TOOL, "prefix")
    model.add_never("unknown", COMMON_TOOL)
    assert model.shares("unknown", None, "p") == before
    assert model.gaps("unknown", COMMON_TOOL, "prefix").returns_within(3.0, 0.0) > 0.8
    assert model.gaps("unknown", COMMON_TOOL, "another").returns_within(3.0, 0.0) > 0.6


@pytest.mark.parametrize("policy", ["lru", "program-fcfs", "continuum"])
def test_policies_that_rank_nothing_know_none(make: Any, policy: str) -> None:
    crank = make(policy)
    for number in range(3):
        ask(crank, [*SYSTEM, number])
    assert commons(crank) is None
