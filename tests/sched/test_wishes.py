"""What clients wish makes a difference where memory is short, and no promise is made that it does not keep. The policy
is the default one; blocks hold 4 tokens and the pool has 16."""

from __future__ import annotations

from typing import Any

import pytest

from braid.core.program import ProgramInfo, ProgramRef, RetainIntent
from braid.policy.agents.catalog import NAMES, agent_policy
from braid.policy.agents.costs import LearntCosts
from braid.policy.agents.program import Finish
from braid.policy.agents.wishes import ALWAYS, FORESIGHT, LIFETIMES, acted_on
from braid.sched.config import Policies


@pytest.fixture
def crank(make_crank: Any) -> Any:
    costs = LearntCosts()
    return make_crank(Policies(agents=agent_policy("braid", costs), costs=costs), max_model_len=64)


def turn(crank: Any, name: str, first: int, intent: RetainIntent | None = None, num_tokens: int = 13) -> None:
    """Its end is told at once; 13 tokens leave three full blocks."""
    program = ProgramRef(owner=name, program=name)
    prompt = range(first, first + num_tokens)
    crank.add(
        f"{name}-{crank.now}", prompt, max_tokens=1, program=program, intent=intent, arrival_time=crank.now
    )
    crank.run()
    crank.scheduler.told(program, Finish.TEXT, None, crank.now)


def listed(crank: Any) -> dict[str, ProgramInfo]:
    crank.scheduler.tick(crank.now)
    return {info.program: info for info in crank.scheduler.programs(None, 100, crank.now)}


def on_device(crank: Any, num_needed: int) -> dict[str, int]:
    """Blocks of each program after somebody else has needed so many of the 16."""
    crank.add(f"fill-{crank.now}", num_needed * 4 - 1, max_tokens=1, cache_salt=str(crank.now))
    crank.run()
    return {name: info.num_device_blocks for name, info in listed(crank).items()}


def test_without_wishes_the_longest_idle_goes(crank: Any) -> None:
    turn(crank, "old", 0)
    crank.now += 30.0
    turn(crank, "new", 100)
    assert on_device(crank, 13) == {"old": 0, "new": 3}


def test_a_least_time_keeps_it_before_others(crank: Any) -> None:
    turn(crank, "old", 0, RetainIntent(min_s=60.0))
    crank.now += 30.0
    turn(crank, "new", 100)
    assert listed(crank)["old"].is_protected
    assert on_device(crank, 13) == {"old": 3, "new": 0}


def test_a_least_time_ends(crank: Any) -> None:
    turn(crank, "old", 0, RetainIntent(min_s=20.0))
    crank.now += 30.0
    turn(crank, "new", 100)
    assert not listed(crank)["old"].is_protected
    assert on_device(crank, 13) == {"old": 0, "new": 3}


def test_a_least_time_for_more_than_the_share_is_not_honoured(crank: Any) -> None:
    turn(crank, "old", 0, RetainIntent(min_s=60.0), num_tokens=37)
    assert not listed(crank)["old"].is_protected


def test_a_least_time_makes_nobody_wait(crank: Any) -> None:
    turn(crank, "old", 0, RetainIntent(min_s=3600.0))
    assert on_device(crank, 16)["old"] == 0


def test_a_most_time_gives_it_up(crank: Any) -> None:
    turn(crank, "old", 0)
    crank.now += 5.0
    turn(crank, "new", 100, RetainIntent(max_s=10.0))
    crank.now += 12.0
    assert on_device(crank, 13) == {"old": 3, "new": 0}


def test_of_the_two_the_most_wins(crank: Any) -> None:
    turn(crank, "old", 0)
    crank.now += 5.0
    turn(crank, "new", 100, RetainIntent(min_s=3600.0, max_s=10.0))
    crank.now += 12.0
    assert on_device(crank, 13) == {"old": 3, "new": 0}


def test_a_time_of_return_is_believed(crank: Any) -> None:
    turn(crank, "soon", 0, RetainIntent(return_s=40.0, return_p90_s=50.0))
    crank.now += 5.0
    turn(crank, "late", 100, RetainIntent(return_s=5000.0, return_p90_s=9000.0))
    crank.now += 25.0
    found = listed(crank)
    assert found["soon"].return_s is not None
    assert found["late"].return_s is None or found["late"].return_s > found["soon"].return_s
    assert on_device(crank, 13) == {"soon": 3, "late": 0}


def test_what_is_promised_is_what_the_policy_does() -> None:
    costs = LearntCosts()
    promised = {name: set(acted_on(agent_policy(name, costs))) for name in NAMES}
    assert promised["braid"] == {*ALWAYS, *FORESIGHT, *LIFETIMES}
    assert promised["continuum"] == promised["pin-2s"] == promised["infercept"] == {*ALWAYS, "tool"}
    for name in ("lru", "program-fcfs", "resident-first", "plas"):
        assert promised[name] == set(ALWAYS)
    assert set(acted_on(agent_policy("braid-without-rank", costs))) == {*ALWAYS, *FORESIGHT}
    assert set(acted_on(agent_policy("lru-with-rank", costs))) == {*ALWAYS, *FORESIGHT, *LIFETIMES}
