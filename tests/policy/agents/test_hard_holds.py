"""The baselines that hold: cases by hand of the published rules, and of the released code."""

from __future__ import annotations

from math import inf, log

import pytest

from braid.policy.agents.gaps import Memoryfulness
from braid.policy.agents.holds import Continuum, Pin2s
from braid.policy.agents.program import Finish, Program, ProgramId


class FixedCosts:
    """So many milliseconds per token, and seconds per block from the tier below, where there is one."""

    def __init__(self, token_ms: float = 1.0, block_s: float = inf) -> None:
        self._token_ms, self._block_s = token_ms, block_s

    def prefill_s(self, num_tokens: int, start: int = 0) -> float:
        return num_tokens * self._token_ms / 1000

    def reload_s(self, num_blocks: int) -> float:
        return num_blocks * self._block_s

    def observe_step(self, num_tokens: int, attended: float, num_decodes: int, seconds: float) -> None:
        raise AssertionError("policies only ask")

    def observe_reload(self, num_blocks: int, seconds: float) -> None:
        raise AssertionError("policies only ask")


def program(tool: str | None = "bash", finish: Finish = Finish.TOOL, num_tokens: int = 3000) -> Program:
    keys = (b"a", b"b", b"c", b"d")
    return Program(
        ProgramId("", "p"), 0.0, num_turns=1, num_tokens=num_tokens, tool=tool, finish=finish, keys=keys
    )


def test_two_seconds_with_a_mean_of_two_and_none_above() -> None:
    policy = Pin2s()
    assert policy.ended(program(), 0.0) == (2.0, policy.ended(program(), 0.0).fate, "cold")
    policy.arrived(program(), 1.0, 0.0)
    policy.arrived(program(), 3.0, 0.0)
    assert policy.ended(program(), 0.0).hold_s == 2.0
    policy.arrived(program(), 2.1, 0.0)
    assert policy.ended(program(), 0.0).hold_s == 0.0
    assert policy.ended(program("edit"), 0.0).hold_s == 2.0


@pytest.mark.parametrize(
    ("tool", "finish", "seconds"),
    [
        (None, Finish.TEXT, 0.0),
        (None, Finish.UNKNOWN, 0.0),
        ("bash", Finish.UNKNOWN, 2.0),
        ("bash", Finish.STOP, 0.0),
        ("bash", Finish.ABORT, 0.0),
        ("bash", Finish.LENGTH, 2.0),
    ],
)
def test_the_released_code_by_how_a_turn_ended(tool: str | None, finish: Finish, seconds: float) -> None:
    assert Pin2s().ended(program(tool, finish), 0.0).hold_s == seconds


def test_cold_holds_are_the_logarithm_of_the_benefit() -> None:
    policy = Continuum(FixedCosts())
    assert policy.ended(program(), 0.0) == (log(3.0), policy.ended(program(), 0.0).fate, "cold")
    assert policy.ended(program(num_tokens=1000), 0.0).hold_s == 0.0
    policy.started(program(), 4.0, 0.0, 0.0)
    # T = 4, and eta counts as 1.
    assert policy.ended(program(), 0.0).hold_s == log(7.0)


def test_with_a_tier_below_rebuilding_is_copying() -> None:
    assert Continuum(FixedCosts(block_s=2.0)).ended(program(), 0.0).hold_s == log(8.0)


def test_only_waits_of_those_that_lost_their_blocks_count() -> None:
    policy = Continuum(FixedCosts())
    policy.started(program(), 100.0, 0.5, 0.0)
    assert policy.ttl.waits.value == 0.0
    policy.started(program(), 6.0, 0.49, 0.0)
    policy.started(program(), 2.0, 0.0, 0.0)
    assert policy.ttl.waits.value == 4.0


def test_warm_from_the_hundred_and_first_gap_on() -> None:
    policy = Continuum(FixedCosts())
    for _ in range(100):
        policy.arrived(program(), 1.0, 0.0)
    assert policy.ended(program(), 0.0).source == "cold"
    policy.arrived(program(), 1.0, 0.0)
    assert policy.ended(program(), 0.0) == (1.0, policy.ended(program(), 0.0).fate, "tool")
    # An unseen tool goes by the pool; B = R = 3.
    assert policy.ended(program("new"), 0.0) == (1.0, policy.ended(program("new"), 0.0).fate, "global")


def test_the_sign_of_eta() -> None:
    alike, geometric = Memoryfulness(), Memoryfulness(limit=10**6)
    for _ in range(3):
        alike.add(9)
    assert alike.value == pytest.approx(1.0)
    # Twice as many programs of each length as of the next: what was done says nothing of what comes.
    for length in range(1, 15):
        for _ in range(2 ** (14 - length)):
            geometric.add(length)
    assert geometric.value == pytest.approx(0.0, abs=0.02)
    two = Memoryfulness()
    two.add(3)  # pairs (1, 2), (2, 1)
    two.add(5)  # pairs (1, 4), (2, 3), (3, 2), (4, 1)
    # Six pairs; each side sums to 13 and its squares to 35, the products to 24: 25 / 41.
    assert two.value == pytest.approx(25 / 41)
    wide = Memoryfulness()
    for length in (2, 2, 2, 30):
        wide.add(length)
    # Whoever has had more turns is in the long program, and that has more to come than the short ones.
    early = Memoryfulness()
    for length in (2,) * 60 + (9,) * 3:
        early.add(length)
    assert early.value < 0 < wide.value


def test_lengths_are_learnt_when_a_program_is_over() -> None:
    policy = Continuum(FixedCosts())
    over = program()
    over.num_turns = 7
    policy.left(over, 0.0)
    assert policy.ttl.lengths.value == pytest.approx(1.0)


def test_no_tool_no_hold() -> None:
    policy = Continuum(FixedCosts())
    assert policy.ended(program(None, Finish.TEXT), 0.0).hold_s == 0.0
    assert policy.ended(program("bash", Finish.ABORT), 0.0).hold_s == 0.0
    policy.arrived(program(None, Finish.TEXT), 5.0, 0.0)
    assert len(policy.ttl.gaps.all) == 0
