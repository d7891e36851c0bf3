"""Keep, swap or discard: by hand."""

from __future__ import annotations

from math import inf
from typing import Any

from braid.core.request import Status
from braid.policy.agents.infercept import Batch, InferCept
from braid.policy.agents.policy import Fate
from braid.policy.agents.program import Finish, Program, ProgramId


class FixedCosts:
    """A millisecond per token; per block what is given."""

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


def program(tool: str | None = "bash", finish: Finish = Finish.TOOL) -> Program:
    return Program(
        ProgramId("", "p"), 0.0, num_turns=1, num_tokens=2000, tool=tool, finish=finish, keys=(b"a", b"b")
    )


def batch_of(make_turn: Any, *num_tokens: int) -> Batch:
    batch = Batch()
    for number, count in enumerate(num_tokens):
        turn = make_turn(str(number), num_tokens=count + 1)
        turn.request.status, turn.request.num_computed_tokens = Status.RUNNING, count
        batch.add(turn)
    return batch


def test_alone_a_gap_shorter_than_computing_again_is_kept(make_turn: Any) -> None:
    policy = InferCept(FixedCosts(), Batch(), expected_s=1.9)
    # keep 2000 x 1.9, discard 2000 x 2: held until keeping has cost that much.
    assert policy.ended(program(), 0.0) == (2.0, Fate.REST, "cold")
    assert InferCept(FixedCosts(), Batch(), expected_s=2.1).ended(program(), 0.0) == (
        0.0,
        Fate.DISCARD,
        "cold",
    )


def test_others_stalls_make_keeping_cheaper(make_turn: Any) -> None:
    policy = InferCept(FixedCosts(), batch_of(make_turn, 3000, 1000), expected_s=5.0)
    # (2000 + 4000) x 2 s against 2000 x 5 s.
    assert policy.ended(program(), 0.0) == (6.0, Fate.REST, "cold")


def test_swapping_costs_two_copies(make_turn: Any) -> None:
    # 2 blocks down and up: 0.5 x 2 x 2 = 2 s, a tie with computing again.
    assert InferCept(FixedCosts(0.5), Batch(), expected_s=9.0).ended(program(), 0.0).fate is Fate.DISCARD
    assert InferCept(FixedCosts(0.4), Batch(), expected_s=9.0).ended(program(), 0.0).fate is Fate.SWAP
    assert InferCept(FixedCosts(0.4), Batch(), expected_s=1.0).ended(program(), 0.0).hold_s == 1.6


def test_gaps_are_those_of_the_tool_else_of_all(make_turn: Any) -> None:
    policy = InferCept(FixedCosts(), Batch(), expected_s=1.0)
    policy.arrived(program("slow"), 30.0, 0.0)
    assert policy.ended(program("slow"), 0.0) == (0.0, Fate.DISCARD, "tool")
    assert policy.ended(program("other"), 0.0) == (0.0, Fate.DISCARD, "global")
    for _ in range(2):
        policy.arrived(program("fast"), 0.1, 0.0)
    assert policy.ended(program("fast"), 0.0) == (2.0, Fate.REST, "tool")


def test_what_is_no_interception_rests(make_turn: Any) -> None:
    policy = InferCept(FixedCosts(), Batch(), expected_s=1.0)
    assert policy.ended(program(None, Finish.TEXT), 0.0) == (0.0, Fate.REST, "none")
    assert policy.ended(program("bash", Finish.ABORT), 0.0) == (0.0, Fate.REST, "none")


def test_the_batch_counts_those_that_run_once_and_stays_small(make_turn: Any) -> None:
    batch = Batch()
    kept = make_turn("kept", num_tokens=11)
    kept.request.status, kept.request.num_computed_tokens = Status.RUNNING, 10
    for number in range(1000):
        turn = make_turn(str(number), num_tokens=6)
        turn.request.num_computed_tokens = 5
        batch.add(turn)
        batch.add(kept)
        turn.request.status = Status.FINISHED
    assert len(batch._turns) < 200
    assert batch.num_tokens_beside(program()) == 10
    assert batch.num_tokens_beside(kept.program) == 0
