"""Whatever the policy, and whatever programs do: everyone ends with the same tokens, and every block returns."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.core.program import ProgramRef, ProgramVerb, RetainIntent
from braid.core.request import FinishReason
from braid.core.step import StepPlan, StepResult
from braid.policy.agents.catalog import ABLATIONS, NAMES, AgentSettings, agent_policy
from braid.policy.agents.costs import CostPrior, LearntCosts
from braid.policy.agents.program import Finish
from braid.sched.config import TIER, Policies

BLOCK_SIZE = 4
MAX_LEN = 40
IDLE_S = 4000.0
"""Longer than any lease, protection or program without a turn lasts."""
ENDLESS = 1e300
SLOW_PREFILL = CostPrior(token_s=1.0)
"""Whatever lies below is worth being copied up."""


class Move(NamedTuple):
    """Before a step: a turn of a program comes, and perhaps something is said of it; or time passes.

    ``prompt`` is (text, tokens to add): a turn goes on where the last one with that text and name ended, or anew if
    ``rewinds``; programs may have a text in common.
    """

    program: str
    owner: str
    parent: str | None
    prompt: tuple[int, int]
    rewinds: bool
    max_tokens: int
    wish: RetainIntent | None
    final: bool
    priority: int
    fate: str
    verb: ProgramVerb | None
    pause_s: float


def wishes() -> st.SearchStrategy[RetainIntent | None]:
    seconds = st.sampled_from([None, None, -1.0, 0.0, 3.0, 500.0, ENDLESS, float("inf"), float("nan")])
    wish = st.builds(
        RetainIntent,
        min_s=seconds,
        max_s=seconds,
        lease_s=seconds,
        return_s=seconds,
        return_p90_s=seconds,
        tool=st.sampled_from([None, "bash", "x" * 300]),
        verbs=st.sampled_from([(), (), ("demote",), ("evict",)]),
    )
    return st.none() | wish


moves = st.builds(
    Move,
    program=st.sampled_from(["p", "p", "q", "r", ""]),
    owner=st.sampled_from(["a", "a", "b"]),
    parent=st.sampled_from([None, None, "p", "q", "r"]),
    prompt=st.tuples(st.integers(0, 2), st.integers(1, 12)),
    rewinds=st.booleans(),
    max_tokens=st.integers(1, 16),
    wish=wishes(),
    final=st.sampled_from([False, False, False, True]),
    priority=st.sampled_from([0, 0, 0, -1, 1]),
    fate=st.sampled_from(["ends", "ends", "ends", "ends", "abort", "abort in flight", "error"]),
    verb=st.sampled_from([None] * 12 + [*ProgramVerb]),
    pause_s=st.sampled_from([0.0] * 10 + [0.5, 3.0, 70.0, 700.0, IDLE_S]),
)
scripts = st.lists(st.lists(moves, min_size=1, max_size=4), min_size=5, max_size=16)
configs = st.fixed_dictionaries(
    {
        "num_blocks": st.integers(10, 18),
        "max_num_seqs": st.integers(2, 5),
        "max_num_batched_tokens": st.integers(5, 24),
        "watermark": st.sampled_from([0.0, 0.1, 0.5]),
    }
)


def token_after(history: list[int]) -> int:
    """What is sampled depends on the request's history alone, as it does with a real model."""
    return (sum(history) * 31 + len(history)) % 97


def continued(history: list[int], count: int) -> list[int]:
    for _ in range(count):
        history = [*history, token_after(history)]
    return history


class Play:
    """One script under one policy."""

    def __init__(self, make_crank: Any, policy: str, config: dict[str, Any]) -> None:
        self.has_tier = bool(config.get("num_disk_blocks"))
        costs = LearntCosts(SLOW_PREFILL, has_lower=self.has_tier)
        agents = agent_policy(policy, costs, AgentSettings(aged_s=20.0, overdue_s=30.0))
        policies = Policies(agents=agents, costs=costs)
        self.crank = make_crank(policies, max_model_len=MAX_LEN, block_size=BLOCK_SIZE, **config)
        self.copies: StepPlan | None = None
        self.num_copies = 0
        self.requests: dict[str, Any] = {}
        self.fates: dict[str, str] = {}
        self.texts: dict[tuple[str, int], list[int]] = {}

    def run(self, script: list[list[Move]]) -> None:
        for number in range(4000):
            for index, move in enumerate(script[number] if number < len(script) else ()):
                self._do(f"{number}.{index}", move)
            self._abort("abort")
            plan = self.crank.plan()
            if plan is not None:
                self._abort("abort in flight")
                planned = {work.request_id for work in plan.works}
                errors = {name: "broken" for name in self._due("error") if name in planned}
                self.crank.finish(plan, errors=errors, token=self._token)
            was_copying = self.copies is not None
            self._copy()
            if plan is None and not was_copying and self.copies is None:
                assert not self.crank.scheduler.has_unfinished, f"stalled:\n{self.crank.scheduler.dump()}"
                if number >= len(script):
                    return
        raise AssertionError(f"not done:\n{self.crank.scheduler.dump()}")

    def _copy(self) -> None:
        """The copies that were planned last time are done, but for one in seven that fails; the next begin."""
        if not self.has_tier:
            return
        crank, plan = self.crank, self.copies
        if plan is not None:
            numbers = range(self.num_copies, self.num_copies + len(plan.moves))
            failed = frozenset(index for index, number in enumerate(numbers) if number % 7 == 6)
            self.num_copies += len(plan.moves)
            result = StepResult(plan.step_id, TIER, crank.now, 0.01, {}, failed_moves=failed)
            crank.scheduler.update(result, crank.now)
        self.copies = crank.scheduler.schedule(TIER, crank.now)
        crank.scheduler.check_integrity()

    def _do(self, name: str, move: Move) -> None:
        crank = self.crank
        crank.now += move.pause_s
        crank.scheduler.tick(crank.now)
        ref = ProgramRef(owner=move.owner, program=move.program, parent=move.parent, final=move.final)
        if move.verb is not None:
            crank.scheduler.program(move.verb, ref, 1e9, crank.now)
            crank.scheduler.check_integrity()
            return
        prompt = self._prompt(move)
        self.requests[name] = crank.add(
            name,
            prompt,
            max_tokens=move.max_tokens,
            program=ref if move.program else None,
            intent=move.wish,
            priority=move.priority,
            arrival_time=crank.now,
        )
        self.fates[name] = move.fate
        crank.scheduler.told(ref, Finish.TOOL, "bash", crank.now)
        crank.scheduler.check_integrity()

    def _prompt(self, move: Move) -> list[int]:
        """The prompts do not depend on when turns ran: answers are known beforehand."""
        text, added = move.prompt
        place = (move.program, text)
        before = [] if move.rewinds else self.texts.get(place, [])
        if len(before) + added + move.max_tokens > MAX_LEN:
            before = []
        prompt = [*before, *(200 + text for _ in range(added))]
        self.texts[place] = continued(prompt, min(move.max_tokens, MAX_LEN - len(prompt)))
        return prompt

    def _due(self, fate: str) -> list[str]:
        return [
            name for name, its in self.fates.items() if its == fate and not self.requests[name].is_finished
        ]

    def _abort(self, fate: str) -> None:
        for name in self._due(fate):
            if self.requests[name].num_computed_tokens or fate == "abort":
                self.crank.scheduler.abort(name, self.crank.now)
                self.crank.scheduler.check_integrity()

    def _token(self, name: str) -> int:
        return token_after(self.requests[name].token_ids)

    def check_tokens(self) -> None:
        for name, request in self.requests.items():
            assert request.is_finished
            history = list(request.prompt_token_ids)
            count = min(request.params.max_tokens, MAX_LEN - len(history))
            whole = continued(history, count)
            if self.fates[name] == "ends":
                assert request.finish_reason is FinishReason.LENGTH
                assert request.token_ids == whole
                assert self.crank.output(name) == whole[len(history) :]
            else:
                assert request.token_ids == whole[: request.num_tokens]

    def check_all_is_given_back(self) -> None:
        crank = self.crank
        assert crank.scheduler.stats().num_running == 0
        crank.now += IDLE_S
        for _ in range(3):  # A bounded number of programs goes at a time.
            crank.scheduler.tick(crank.now)
            crank.scheduler.check_integrity()
        stats = crank.scheduler.stats()
        assert (stats.num_programs, stats.num_leases, stats.num_leased_blocks) == (0, 0, 0)
        assert stats.num_free_blocks == stats.num_blocks
        assert crank.scheduler.next_deadline() is None


def play(make_crank: Any, policy: str, config: dict[str, Any], script: list[list[Move]]) -> Play:
    this = Play(make_crank, policy, config)
    this.run(script)
    this.check_tokens()
    this.check_all_is_given_back()
    return this


@pytest.mark.parametrize("policy", [*NAMES, *ABLATIONS])
@settings(max_examples=12, deadline=None)
@given(config=configs, script=scripts)
def test_everyone_ends_with_the_same_tokens_and_every_block_returns(
    make_crank_fn: Any, policy: str, config: dict[str, Any], script: list[list[Move]]
) -> None:
    play(make_crank_fn, policy, config, script)


@pytest.mark.parametrize("policy", NAMES)
@settings(max_examples=12, deadline=None)
@given(script=scripts, num_blocks=st.integers(10, 14))
def test_a_pool_that_may_be_leased_whole_goes_on(
    make_crank_fn: Any, policy: str, script: list[list[Move]], num_blocks: int
) -> None:
    leased = RetainIntent(lease_s=ENDLESS, min_s=ENDLESS)
    script = [[move._replace(wish=leased) for move in moves] for moves in script]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("braid.sched.leases.SHARE", 1)
        patch.setattr("braid.sched.protections.SHARE", 1)
        play(make_crank_fn, policy, {"num_blocks": num_blocks}, script)


@pytest.mark.parametrize("policy", ["infercept", "continuum", "braid"])
@settings(max_examples=15, deadline=None)
@given(
    config=configs,
    script=scripts,
    num_disk_blocks=st.integers(1, 40),
    num_host_blocks=st.sampled_from([0, 6]),
)
def test_a_tier_below_changes_no_token(
    make_crank_fn: Any,
    policy: str,
    config: dict[str, Any],
    script: list[list[Move]],
    num_disk_blocks: int,
    num_host_blocks: int,
) -> None:
    below = {"num_disk_blocks": num_disk_blocks, "num_host_blocks": num_host_blocks}
    play(make_crank_fn, policy, config | below, script)


@settings(max_examples=20, deadline=None)
@given(config=configs, script=scripts, policy=st.sampled_from(NAMES))
def test_equal_programs_get_equal_schedules(
    make_crank_fn: Any, config: dict[str, Any], script: list[list[Move]], policy: str
) -> None:
    first, second = (play(make_crank_fn, policy, config, script) for _ in range(2))
    assert first.crank.deltas == second.crank.deltas
