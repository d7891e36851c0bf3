"""What the scheduler tells policies, and does as they say. Blocks hold 4 tokens; the pool has 16."""

from __future__ import annotations

from typing import Any

import pytest

from braid.core.program import ProgramRef, ProgramVerb, RetainIntent
from braid.policy.agents.plain import LeastRecent, lru
from braid.policy.agents.policy import Rank
from braid.policy.agents.program import Finish, Program, ProgramId
from braid.sched.config import Policies


class ByName(LeastRecent):
    """The later in the alphabet, the more it is worth; notes in which state it was asked."""

    is_ranked = True

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int, Finish, bool]] = []

    def rank(self, program: Program, now: float) -> Rank:
        assert program.id is not None
        self.asked.append(
            (
                program.num_waiting,
                program.num_running,
                program.num_turns,
                program.finish,
                program.is_protected,
            )
        )
        return Rank(0, float(ord(program.id.program[0])), 1.0)


class Meter:
    """Costs that note what they are told."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, float, int, float]] = []

    def prefill_s(self, num_tokens: int, start: int = 0) -> float:
        return 0.0

    def reload_s(self, num_blocks: int) -> float:
        return 0.0

    def observe_step(self, num_tokens: int, attended: float, num_decodes: int, seconds: float) -> None:
        self.steps.append((num_tokens, attended, num_decodes, seconds))

    def observe_reload(self, num_blocks: int, seconds: float) -> None:
        raise AssertionError("there is no tier below")


@pytest.fixture
def policy() -> ByName:
    return ByName()


@pytest.fixture
def crank(make_crank: Any, policy: ByName) -> Any:
    return make_crank(Policies(agents=lru()._replace(retention=policy)), max_model_len=64)


def ref(program: str, **fields: Any) -> ProgramRef:
    return ProgramRef(owner="o", program=program, **fields)


def turn(crank: Any, program: str, prompt: Any, intent: RetainIntent | None = None, **fields: Any) -> Any:
    name = f"{program}-{crank.now}"
    request = crank.add(name, prompt, max_tokens=1, program=ref(program, **fields), intent=intent)
    crank.run()
    return request


def num_found(crank: Any, program: str, prompt: range) -> int:
    """Tokens that the program's next turn finds."""
    found: int = turn(crank, program, [*prompt, 99]).num_cached_tokens
    return found


def test_what_is_worth_most_stays(crank: Any) -> None:
    turn(crank, "z", range(20))
    turn(crank, "b", range(100, 120))
    turn(crank, "a", range(200, 220))
    turn(crank, "c", range(300, 320))  # 4 blocks are missing: a's, although they are the latest
    assert num_found(crank, "z", range(20)) == 20
    assert num_found(crank, "b", range(100, 120)) == 20
    assert num_found(crank, "a", range(200, 220)) < 20


def test_strangers_blocks_go_before_all_others(crank: Any) -> None:
    turn(crank, "a", range(20))
    crank.add("stranger", range(100, 120), max_tokens=1)
    crank.run()
    turn(crank, "b", range(200, 230))
    assert num_found(crank, "a", range(20)) == 20


def test_ranks_are_asked_for_in_every_state(crank: Any, policy: ByName) -> None:
    crank.add("r", 8, max_tokens=2, program=ref("p"))
    crank.step()
    crank.run()
    crank.scheduler.told(ref("p"), Finish.TOOL, "bash", crank.now)
    assert policy.asked == [
        (1, 0, 0, Finish.UNKNOWN, False),
        (0, 1, 0, Finish.UNKNOWN, False),
        (0, 0, 1, Finish.LENGTH, False),
    ]


def test_a_child_at_work_changes_its_parents_rank(crank: Any, policy: ByName) -> None:
    turn(crank, "p", 8)
    policy.asked.clear()
    turn(crank, "c", 8, parent="p")
    assert len(policy.asked) == 2 * 3, "each change is one of the child's and one of the parent's"


def test_a_program_that_is_over_has_no_rank(crank: Any) -> None:
    turn(crank, "p", 8)
    turn(crank, "q", 8, final=True)
    assert len(crank.scheduler._retention._ranks) == 1
    crank.scheduler.program(ProgramVerb.CLOSE, ref("p"), None, crank.now)
    assert len(crank.scheduler._retention._ranks) == 0
    crank.scheduler.check_integrity()


def known(crank: Any, program: str) -> Program:
    found = crank.scheduler._retention.programs.get(ProgramId("o", program))
    assert isinstance(found, Program)
    return found


def test_a_wished_lifetime_protects_until_its_own_end(crank: Any, policy: ByName) -> None:
    """The next turn, which wishes nothing, neither ends it nor begins it anew."""
    turn(crank, "p", range(20), RetainIntent(min_s=100.0, return_s=3.0, lease_s=1.0, tool="bash"))
    program, end = known(crank, "p"), crank.now + 100.0
    assert program.is_protected
    assert policy.asked[-1][-1]
    crank.now += 60.0
    crank.add("next", range(20), max_tokens=1, program=ref("p"))
    assert program.is_protected
    crank.run()
    assert program.is_protected
    assert program.intent == RetainIntent(min_s=end - crank.now)
    crank.now = end - 1.0
    crank.scheduler.tick(crank.now)
    assert program.is_protected
    crank.now = end
    crank.scheduler.tick(crank.now)
    assert not program.is_protected
    turn(crank, "p", range(20))
    assert program.intent is None


@pytest.mark.parametrize(
    ("said", "then"),
    [
        (None, RetainIntent(min_s=88.0, max_s=188.0)),
        (RetainIntent(return_s=5.0), RetainIntent(return_s=5.0, min_s=88.0, max_s=188.0)),
        (RetainIntent(min_s=7.0), RetainIntent(min_s=7.0)),
        (RetainIntent(max_s=0.0), RetainIntent(max_s=0.0)),
    ],
)
def test_what_a_turn_says_of_lifetimes_counts_and_what_it_leaves_out_runs_on(
    crank: Any, said: RetainIntent | None, then: RetainIntent
) -> None:
    turn(crank, "p", range(8), RetainIntent(min_s=100.0, max_s=200.0, return_p90_s=9.0, verbs=("demote",)))
    crank.now += 11.0
    turn(crank, "p", range(8), said)
    assert known(crank, "p").intent == then


def test_a_most_time_that_has_run_out_is_not_that_of_what_comes_later(crank: Any) -> None:
    turn(crank, "p", range(8), RetainIntent(max_s=10.0))
    crank.now += 11.0
    turn(crank, "p", range(8))
    assert known(crank, "p").intent is None


def test_preemptions_count_for_a_program_until_turns_end_without(crank: Any) -> None:
    crank.add("p", 24, max_tokens=14, program=ref("p"))
    crank.add("q", 24, max_tokens=14, program=ref("q"))
    crank.run()
    (program,) = [known(crank, name) for name in "pq" if known(crank, name).num_preemptions]
    count = program.num_preemptions
    assert count == crank.scheduler.stats().num_preemptions > 0
    assert program.id is not None
    for left in reversed(range(count)):
        turn(crank, program.id.program, range(8))
        assert program.num_preemptions == left
    turn(crank, program.id.program, range(8))
    assert program.num_preemptions == 0


class Farewells(ByName):
    def __init__(self) -> None:
        super().__init__()
        self.left_: list[str] = []

    def left(self, program: Program, now: float) -> None:
        assert program.id is not None
        self.left_.append(program.id.program)


def test_the_policy_hears_of_whoever_leaves_after_a_turn(make_crank: Any) -> None:
    """Whether or not it has a full block; not of who had none, nor of who has one under way."""
    policy = Farewells()
    crank = make_crank(Policies(agents=lru()._replace(retention=policy)), max_model_len=64)
    turn(crank, "a", range(2))
    turn(crank, "b", range(2), final=True)
    assert policy.left_ == ["b"]
    crank.add("none", range(8), max_tokens=1, program=ref("c"))
    crank.step(errors={"none": "broken"})
    crank.scheduler.program(ProgramVerb.CLOSE, ref("c"), None, crank.now)
    assert policy.left_ == ["b"]
    crank.add("more", range(8), max_tokens=4, program=ref("a"))
    crank.step()
    crank.scheduler.program(ProgramVerb.CLOSE, ref("a"), None, crank.now)
    crank.run()
    assert policy.left_ == ["b"]
    crank.scheduler.program(ProgramVerb.CLOSE, ref("a"), None, crank.now)
    assert policy.left_ == ["b", "a"]
    assert len(crank.scheduler._retention.programs) == 0


def test_protection_ends_with_its_time(crank: Any, policy: ByName) -> None:
    turn(crank, "p", range(20), RetainIntent(min_s=100.0))
    policy.asked.clear()
    crank.now += 100.0
    crank.scheduler.tick(crank.now)
    assert [asked[-1] for asked in policy.asked] == [False]


def test_every_step_tells_what_it_cost(make_crank: Any) -> None:
    meter = Meter()
    crank = make_crank(Policies(costs=meter))
    crank.add("a", 20, max_tokens=2)
    crank.run()
    pairs = 16 * 17 / 2, 17 + 18 + 19 + 20
    assert meter.steps == [(16, pairs[0], 0, 1.0), (4, pairs[1], 0, 1.0), (0, 0, 1, 1.0)]


def test_a_step_that_went_wrong_tells_nothing(make_crank: Any) -> None:
    meter = Meter()
    crank = make_crank(Policies(costs=meter))
    crank.add("a", 8)
    crank.step(errors={"a": "broken"})
    assert meter.steps == []
