"""What there is of programs, and how their turns are said to have ended. Blocks hold 4 tokens; the pool has 16."""

from __future__ import annotations

from typing import Any

import pytest

from braid.core.program import ProgramInfo, ProgramRef, ProgramVerb, RetainIntent
from braid.policy.agents.plain import LeastRecent, lru
from braid.policy.agents.policy import Fate, Keep
from braid.policy.agents.program import Finish, Program
from braid.sched.config import Policies
from braid.sched.inventory import Inventory


class Listening(LeastRecent):
    """Writes down how turns ended, keeps nothing, and expects everybody in five seconds."""

    def __init__(self) -> None:
        self.heard: list[tuple[Finish, str | None]] = []
        self.keep = Keep()

    def ended(self, program: Program, now: float) -> Keep:
        self.heard.append((program.finish, program.tool))
        return self.keep

    def returns_in(self, program: Program, now: float) -> float | None:
        return 5.0


@pytest.fixture
def policy() -> Listening:
    return Listening()


@pytest.fixture
def crank(make_crank: Any, policy: Listening) -> Any:
    return make_crank(Policies(agents=lru()._replace(retention=policy)), max_model_len=64)


def ref(program: str, owner: str = "o", parent: str | None = None) -> ProgramRef:
    return ProgramRef(owner=owner, program=program, parent=parent)


def turn(crank: Any, program: ProgramRef, prompt: Any, intent: RetainIntent | None = None) -> None:
    name = f"{program.program}-{len(crank.deltas)}"
    crank.add(
        name, prompt, max_tokens=1, program=program, intent=intent, arrival_time=crank.now, eos_token_ids={7}
    )
    crank.run()


def listed(crank: Any, owner: str | None = "o", limit: int = 100) -> list[ProgramInfo]:
    found: list[ProgramInfo] = crank.scheduler.programs(owner, limit, crank.now)
    return found


class TestInventory:
    def test_one_program(self, crank: Any) -> None:
        turn(crank, ref("p"), range(13))
        crank.now += 2.0
        (info,) = listed(crank)
        assert info == ProgramInfo("o", "p", None, 1, 14, idle_s=2.0, num_blocks=3)._replace(
            num_device_blocks=3, return_s=5.0
        )

    def test_owners_are_apart_and_the_latest_comes_first(self, crank: Any) -> None:
        for name, owner in (("a", "o"), ("b", "x"), ("c", "o")):
            turn(crank, ref(name, owner), [*name.encode()] * 5)
            crank.now += 1.0
        assert [info.program for info in listed(crank)] == ["c", "a"]
        assert [info.program for info in listed(crank, "x")] == ["b"]
        assert listed(crank, "nobody") == []
        assert [info.program for info in listed(crank, None)] == ["c", "b", "a"]
        assert [info.program for info in listed(crank, None, limit=2)] == ["c", "b"]
        assert [info.program for info in listed(crank, limit=1)] == ["c"]

    def test_what_is_evicted_is_not_on_the_device(self, crank: Any) -> None:
        turn(crank, ref("p"), range(17))
        crank.add("fill", 56, max_tokens=1)
        crank.run()
        info = next(info for info in listed(crank))
        assert (info.num_blocks, info.num_device_blocks) == (4, 2)

    def test_the_tier_below_has_the_rest(self, crank: Any) -> None:
        turn(crank, ref("p"), range(17))
        kept = crank.scheduler._retention
        (program,) = kept.programs.of("o")
        crank.add("fill", 56, max_tokens=1)
        crank.run()
        below = set(program.keys[:3])
        inventory = Inventory(crank.scheduler._pool, kept.programs, kept.leases, None, below.__contains__)
        (info,) = inventory.list("o", 10, crank.now)
        assert (info.num_blocks, info.num_device_blocks, info.num_lower_blocks) == (4, 2, 1)

    def test_under_way_and_children(self, crank: Any) -> None:
        turn(crank, ref("p"), range(13))
        crank.add("child", 9, max_tokens=2, program=ref("q", parent="p"))
        crank.step()
        child, parent = sorted(listed(crank), key=lambda info: info.program, reverse=True)
        assert (child.num_running, child.idle_s, child.parent, child.return_s) == (1, 0.0, "p", None)
        assert (parent.num_working, parent.return_s) == (1, None)

    def test_leases(self, crank: Any) -> None:
        turn(crank, ref("p"), range(13))
        crank.scheduler.program(ProgramVerb.PIN, ref("p"), 30.0, crank.now)
        crank.now += 10.0
        (info,) = listed(crank)
        assert info.lease_s == 20.0

    def test_without_a_forecast_the_clients_word_counts(self, make_crank: Any) -> None:
        crank = make_crank(max_model_len=64)
        turn(crank, ref("p"), range(13), RetainIntent(return_s=8.0))
        turn(crank, ref("q"), range(20, 33))
        q, p = listed(crank)
        assert (p.return_s, q.return_s) == (7.0, None)


class TestTold:
    def test_an_ordinary_end(self, crank: Any, policy: Listening) -> None:
        turn(crank, ref("p"), range(13))
        crank.scheduler.told(ref("p"), Finish.TOOL, "pytest", crank.now)
        assert policy.heard == [(Finish.UNKNOWN, None), (Finish.TOOL, "pytest")]
        (info,) = listed(crank)
        assert (info.finish, info.tool) == ("tool", "pytest")
        crank.scheduler.told(ref("p"), Finish.TEXT, None, crank.now)
        assert len(policy.heard) == 2

    def test_who_has_read_enough_aborts_and_then_tells(self, crank: Any, policy: Listening) -> None:
        crank.add("p-1", range(13), max_tokens=9, program=ref("p"))
        crank.step()
        crank.scheduler.abort("p-1", crank.now)
        crank.scheduler.told(ref("p"), Finish.STOP, None, crank.now)
        assert policy.heard == [(Finish.ABORT, None), (Finish.STOP, None)]

    def test_the_length_is_the_engines_to_know(self, crank: Any, policy: Listening) -> None:
        crank.add("p-1", range(13), max_tokens=1, program=ref("p"))
        crank.run()
        crank.scheduler.told(ref("p"), Finish.TEXT, None, crank.now)
        assert policy.heard == [(Finish.LENGTH, None)]

    def test_a_clients_word_on_the_tool_stands(self, crank: Any, policy: Listening) -> None:
        turn(crank, ref("p"), range(13), RetainIntent(tool="slow_tests"))
        crank.scheduler.told(ref("p"), Finish.TOOL, "pytest", crank.now)
        assert policy.heard[-1] == (Finish.TOOL, "slow_tests")

    def test_too_late_or_of_nobody(self, crank: Any, policy: Listening) -> None:
        turn(crank, ref("p"), range(13))
        crank.add("p-2", range(30), max_tokens=1, program=ref("p"))
        for program in (ref("p"), ref("q"), ref("p", owner="other")):
            crank.scheduler.told(program, Finish.TOOL, "x", crank.now)
        assert policy.heard == [(Finish.UNKNOWN, None)]


class TestVerbsOfATurn:
    @pytest.mark.parametrize("verb", ["demote", "evict"])
    def test_what_it_leaves_goes_first(self, crank: Any, policy: Listening, verb: str) -> None:
        policy.keep = Keep(hold_s=60.0)
        turn(crank, ref("p"), range(13), RetainIntent(verbs=(verb,)))
        crank.scheduler.told(ref("p"), Finish.TOOL, "x", crank.now)
        policy.keep = Keep()
        turn(crank, ref("old"), range(100, 113))
        crank.scheduler.check_integrity()
        crank.add("fill", 51, max_tokens=1)  # 13 of 16 blocks: the pool has 10 that are not cached
        crank.run()
        on_device = {info.program: info.num_device_blocks for info in listed(crank)}
        assert on_device == {"p": 0, "old": 3}

    def test_it_is_for_that_turn_only(self, crank: Any, policy: Listening) -> None:
        turn(crank, ref("p"), range(13), RetainIntent(verbs=("evict",), min_s=9.0))
        turn(crank, ref("p"), range(17))
        turn(crank, ref("q"), range(100, 113))
        crank.add("fill", 47, max_tokens=1)
        crank.run()
        on_device = {info.program: info.num_device_blocks for info in listed(crank)}
        assert on_device == {"p": 1, "q": 3}  # the least recently used went, from its end

    def test_prefetch_changes_nothing(self, crank: Any, policy: Listening) -> None:
        policy.keep = Keep(fate=Fate.REST)
        turn(crank, ref("p"), range(13), RetainIntent(verbs=("prefetch",)))
        assert listed(crank)[0].num_device_blocks == 3
