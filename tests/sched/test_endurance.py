"""What goes on for long, or is too large, wedges nothing and leaves nothing behind. Blocks hold 4 tokens."""

from __future__ import annotations

from typing import Any

import pytest

from braid.core.program import ProgramRef, RetainIntent
from braid.core.step import SampledToken, StepResult
from braid.policy.agents.catalog import NAMES, AgentSettings, agent_policy
from braid.policy.agents.costs import LearntCosts
from braid.policy.agents.program import Finish
from braid.sched.config import MIXED, Policies, SchedulerConfig
from braid.sched.programs import MAX_PROGRAMS
from braid.sched.retention import IDLE_LIMIT, MAX_CLOSED
from braid.sched.scheduler import Scheduler

HASTY = AgentSettings(
    newcomer_s=5.0, newcomer_share=1e6, overdue_s=10.0, overdue_share=1e6, aged_s=20.0, aged_every=4
)
"""Nobody waits for long; the shares of the time are as good as none."""


def policies(name: str, settings: AgentSettings | None = None) -> Policies:
    costs = LearntCosts()
    return Policies(agents=agent_policy(name, costs, settings), costs=costs)


class Mill:
    """A scheduler that is turned without proof of its integrity at every step: that takes too long here."""

    def __init__(self, policy: str, num_blocks: int) -> None:
        config = SchedulerConfig(
            num_blocks=num_blocks, block_size=4, max_num_seqs=16, max_num_batched_tokens=256, max_model_len=64
        )
        self.scheduler = Scheduler(config, policies(policy))
        self.now = 0.0

    def step(self) -> bool:
        scheduler = self.scheduler
        scheduler.tick(self.now)
        plan = scheduler.schedule(MIXED, self.now)
        if plan is None:
            return False
        self.now += 0.1
        tokens = {work.request_id: SampledToken(7) for work in plan.works if work.sample is not None}
        scheduler.update(StepResult(plan.step_id, MIXED, self.now - 0.1, 0.1, tokens), self.now)
        return True

    def run(self) -> None:
        while self.scheduler.has_unfinished:
            assert self.step(), f"stalled:\n{self.scheduler.dump()}"
        self.scheduler.check_integrity()


@pytest.mark.parametrize("policy", ["braid", "continuum"])
def test_ten_thousand_programs_that_never_come_back(policy: str, new_request: Any) -> None:
    mill = Mill(policy, num_blocks=2560)
    scheduler = mill.scheduler
    for number in range(10_000):
        ref = ProgramRef(owner=f"owner-{number % 3}", program=str(number))
        request = new_request(f"{number}", [number] * 6, 1, program=ref, arrival_time=mill.now)
        scheduler.add(request, mill.now)
        if number % 16 == 15:
            while scheduler.has_unfinished:
                assert mill.step()
            scheduler.told(ref, Finish.TOOL, "bash", mill.now)
    mill.run()
    assert scheduler.stats().num_programs == MAX_PROGRAMS
    mill.now += IDLE_LIMIT + 1.0
    for _ in range(MAX_PROGRAMS // MAX_CLOSED):
        scheduler.tick(mill.now)
    scheduler.check_integrity()
    stats = scheduler.stats()
    assert stats.num_programs == 0
    assert stats.num_free_blocks == stats.num_blocks
    ranks = scheduler._retention._ranks
    assert ranks is None or len(ranks) == 0
    assert scheduler.next_deadline() is None


@pytest.mark.parametrize("policy", ["braid", "continuum"])
def test_one_id_that_is_used_for_ever(policy: str, new_request: Any) -> None:
    """Two turns at a time, of several branches, with others beside it: what is known of it does not grow."""
    mill = Mill(policy, num_blocks=48)
    ref = ProgramRef(owner="o", program="for ever")
    for number in range(500):
        wish = RetainIntent(min_s=1e9, return_s=1.0) if number % 3 else None
        for branch in range(2):
            prompt = [branch, *([number % 7] * (number % 30 + 1))]
            name = f"{number}-{branch}"
            request = new_request(name, prompt, 3, program=ref, intent=wish, arrival_time=mill.now)
            mill.scheduler.add(request, mill.now)
        other = ProgramRef(owner="p", program=str(number))
        mill.scheduler.add(new_request(f"{number}", 9, 2, program=other, arrival_time=mill.now), mill.now)
        mill.step()
    mill.run()
    retention = mill.scheduler._retention
    programs = list(retention.programs.of("o"))
    assert len(programs) == 1
    assert programs[0].num_turns == 1000
    assert programs[0].is_idle
    assert len(programs[0].keys) <= 48
    assert len(retention.protections._ends) <= 2 * len(retention.protections) + 64


@pytest.mark.parametrize("policy", NAMES)
def test_a_program_larger_than_the_gate_allows_goes_on_among_others(make_crank: Any, policy: str) -> None:
    """It needs 15 of 16 blocks, and others come all the time: each of its turns ends."""
    crank = make_crank(policies(policy, HASTY), max_model_len=64)
    ends = []
    for number in range(400):
        if len(ends) < 4 and (not ends or ends[-1].is_finished):
            prompt = [500 + number] * 57
            name = f"big-{number}"
            ends.append(crank.add(name, prompt, max_tokens=3, program=ref("big"), arrival_time=crank.now))
        if number % 2 == 0:
            crank.add(
                f"small-{number}", 9, max_tokens=6, program=ref(f"s{number % 6}"), arrival_time=crank.now
            )
        crank.step()
    crank.run()
    assert len(ends) == 4
    assert all(request.is_finished for request in ends)


def ref(program: str) -> ProgramRef:
    return ProgramRef(owner=program, program=program)


@pytest.mark.parametrize("policy", NAMES)
def test_many_turns_of_one_program_at_a_time(make_crank: Any, policy: str) -> None:
    """Branches, rewinds and equal prompts under one id, more than fit at a time."""
    crank = make_crank(policies(policy, HASTY), max_model_len=64)
    requests = [
        crank.add(f"{number}", [*range(8), *([number % 5] * (number % 11))], max_tokens=5, program=ref("p"))
        for number in range(24)
    ]
    crank.step()
    crank.scheduler.abort("3", crank.now)
    crank.scheduler.abort("20", crank.now)
    crank.run()
    assert all(request.is_finished for request in requests)
    program = next(crank.scheduler._retention.programs.of("p"))
    assert program.is_idle
    assert program.num_turns >= 22
    assert crank.scheduler.stats().num_free_blocks == 16
