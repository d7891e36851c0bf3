"""Retention that knows the future."""

from __future__ import annotations

from math import inf

from braid.policy.agents.costs import CostPrior, LearntCosts
from braid.policy.agents.oracle import Belady, TrueContinuum
from braid.policy.agents.program import Finish, Program, ProgramId


def program(name: str, **state: object) -> Program:
    made = Program(ProgramId("", name), 0.0, num_turns=1, num_tokens=2, tool="bash", finish=Finish.TOOL)
    for field, value in state.items():
        setattr(made, field, value)
    return made


def test_the_farthest_next_use_goes_first_and_what_is_never_used_before() -> None:
    uses = {"soon": 5.0, "late": 50.0, "never": inf}
    policy = Belady(lambda known, now: uses[known.id.program] if known.id else inf)
    ranks = [policy.rank(program(name), 0.0)[:2] for name in ("never", "late", "soon")]
    ranks.append(policy.rank(program("soon", num_waiting=1), 0.0)[:2])
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == 4


def test_the_true_gap_is_held_where_it_pays() -> None:
    costs = LearntCosts(CostPrior(step_s=0.0, token_s=1.5, pair_s=0.0))  # R = 3
    policy = TrueContinuum(costs, lambda known, now: now + (1.0 if known.tool == "bash" else 3.0))
    assert policy.ended(program("a"), 10.0).hold_s == 1.0
    # Worth no more than it costs: a tie goes to not holding.
    assert policy.ended(program("a", tool="slow"), 10.0).hold_s == 0.0
    policy.started(program("a"), 2.0, 0.0, 10.0)
    assert policy.ended(program("a", tool="slow"), 10.0).hold_s == 3.0
    assert policy.ended(program("a", tool=None), 10.0).hold_s == 0.0
