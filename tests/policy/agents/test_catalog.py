"""Names of policies, and what stands behind them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from braid.core.errors import InvalidParameterError
from braid.policy.agents.catalog import (
    ABLATIONS,
    NAMES,
    ORACLES,
    AgentSettings,
    agent_policy,
    oracle_policy,
)
from braid.policy.agents.costs import LearntCosts
from braid.policy.agents.plain import lru


@pytest.mark.parametrize("name", [*NAMES, *ABLATIONS])
def test_every_name_makes_a_policy_of_its_own(name: str) -> None:
    one, other = agent_policy(name, LearntCosts()), agent_policy(name, LearntCosts())
    assert one.name == name
    for part, same in zip(one[1:], other[1:], strict=True):
        assert part is not same


def test_unknown_names_are_told_the_choices() -> None:
    with pytest.raises(InvalidParameterError, match=r"'fifo'.*lru, program-fcfs.*braid"):
        agent_policy("fifo", LearntCosts())
    with pytest.raises(InvalidParameterError, match="continuum-oracle"):
        oracle_policy("braid", lambda known, now: now, LearntCosts())


def parts(name: str) -> dict[str, object]:
    policy = agent_policy(name, LearntCosts())
    found: dict[str, Any] = dict(zip(("order", "gate", "victim", "rank"), policy[1:], strict=True))
    return {part: type(chosen) for part, chosen in found.items()} | {"rank": policy.retention.is_ranked}


@pytest.mark.parametrize("part", ["order", "gate", "victim", "rank"])
def test_each_part_alone_and_removed(part: str) -> None:
    plain, full = parts("lru"), parts("braid")
    assert parts(f"lru-with-{part}") == plain | {part: full[part]}
    assert parts(f"braid-without-{part}") == full | {part: plain[part]}


def test_a_gate_alone_has_weights_to_go_by() -> None:
    gated = agent_policy("lru-with-gate", LearntCosts())
    assert type(gated.retention) is type(agent_policy("braid", LearntCosts()).retention)
    assert type(agent_policy("lru-with-order", LearntCosts()).retention) is type(lru().retention)


def test_oracles() -> None:
    for name in ORACLES:
        assert oracle_policy(name, lambda known, now: now, LearntCosts()).name == name


@pytest.mark.parametrize(
    ("field", "value"), [("waits", 0), ("gate_share", 0.0), ("aged_s", -1.0), ("preemption_budget", -1)]
)
def test_numbers_out_of_range(field: str, value: float) -> None:
    with pytest.raises(InvalidParameterError, match=field):
        AgentSettings(**{**asdict(AgentSettings()), field: value})
