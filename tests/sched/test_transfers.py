"""Blocks that go down behind programs' backs, and come up again. Blocks hold 4 tokens; the pool has 16."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.core.program import Applied, Outcome, ProgramRef, ProgramVerb
from braid.core.step import StepPlan, StepResult
from braid.policy.agents.catalog import agent_policy
from braid.policy.agents.costs import CostPrior, LearntCosts
from braid.policy.agents.plain import LeastRecent, lru
from braid.policy.agents.policy import Fate, Keep
from braid.sched.config import MIXED, TIER, TIER_STALL_S, Policies
from braid.sched.loop import Loop
from braid.sched.retention import MAX_LEASE
from braid.sched.scheduler import MAX_LOADS, Scheduler
from braid.sched.transfers import PROBE_BLOCKS, PROBE_EVERY
from braid.sim.executor import FixedTime, SimExecutor, TierTime


class Copier:
    """Takes the steps of the lane ``tier``; what was written to a slot is remembered by its key."""

    def __init__(self, crank: Any) -> None:
        self.crank = crank
        self.slots: dict[tuple[str, int], bytes] = {}
        self.loaded = 0

    def plan(self) -> StepPlan | None:
        plan: StepPlan | None = self.crank.scheduler.schedule(TIER, self.crank.now)
        self.crank.scheduler.check_integrity()
        return plan

    def finish(self, plan: StepPlan, failed: frozenset[int] = frozenset(), *, breaks: bool = False) -> None:
        pool = self.crank.scheduler._pool
        for index, move in enumerate(plan.moves):
            place = (move.tier, move.slot)
            if index in failed:
                continue
            if move.is_load:
                assert self.slots[place] == move.key, "a slot was written over"
                self.loaded += 1
            else:
                assert pool.find(move.key) == move.block, "a block went while it was read"
                self.slots[place] = move.key
        broken = frozenset({plan.moves[0].tier}) if breaks else frozenset[str]()
        result = StepResult(plan.step_id, TIER, 0.0, 0.01, {}, failed_moves=failed, broken_tiers=broken)
        assert self.crank.scheduler.update(result, self.crank.now) == []
        self.crank.scheduler.check_integrity()

    def drain(self) -> int:
        """Steps until there is nothing to copy."""
        for count in range(100):
            plan = self.plan()
            if plan is None:
                return count
            self.finish(plan)
        raise AssertionError("copies without end")


@pytest.fixture
def crank(make_crank: Any) -> Any:
    return make_crank(max_model_len=64, num_disk_blocks=32)


@pytest.fixture
def copier(crank: Any) -> Copier:
    return Copier(crank)


def ref(program: str, *, final: bool = False) -> ProgramRef:
    return ProgramRef(owner="o", program=program, final=final)


def turn(crank: Any, program: str, prompt: Any, *, final: bool = False) -> Any:
    request = crank.add(f"{program}-{crank.now}", prompt, max_tokens=1, program=ref(program, final=final))
    crank.run()
    return request


def fill(crank: Any, num_blocks: int) -> None:
    """Somebody without a program computes a prompt of so many blocks."""
    crank.add(f"fill-{crank.now}", num_blocks * 4 - 1, max_tokens=1, cache_salt=str(crank.now))
    crank.run()


def disk(crank: Any) -> dict[str, int]:
    counts: dict[str, int] = crank.scheduler.stats().tiers["disk"]
    return counts


def test_what_a_program_leaves_is_copied_down_and_what_others_leave_is_not(crank, copier) -> None:
    fill(crank, 3)
    assert copier.plan() is None
    turn(crank, "p", range(13))
    plan = copier.plan()
    assert plan is not None
    assert plan.lane == TIER
    assert plan.works == ()
    assert [move.is_load for move in plan.moves] == [False]  # a store locks one sixteenth of the pool
    copier.finish(plan)
    copier.drain()
    assert disk(crank)["stored"] == disk(crank)["used"] == 3
    turn(crank, "p", range(17))
    copier.drain()
    assert disk(crank)["stored"] == 4, "only what is new is copied"


def test_a_turn_whose_blocks_were_evicted_waits_for_them(crank, copier) -> None:
    turn(crank, "p", range(13))
    copier.drain()
    fill(crank, 16)
    request = crank.add("again", range(14), max_tokens=1, program=ref("p"))
    assert crank.plan() is None
    copier.drain()
    assert copier.loaded == 3
    assert crank.step() == [("again", 12, 2)]
    assert request.num_cached_tokens == 12
    origins = crank.scheduler.stats().tokens_by_origin
    assert (origins["disk_reload"], origins["host_reload"], origins["recompute"]) == (12, 0, 0)


def test_others_go_on_while_it_waits(crank, copier) -> None:
    turn(crank, "p", range(13))
    copier.drain()
    fill(crank, 16)
    crank.add("again", range(14), max_tokens=1, program=ref("p"))
    crank.add("other", 8, max_tokens=1)
    assert crank.step() == [("other", 0, 8)]
    copier.drain()
    assert crank.step() == [("again", 12, 2)]


def test_two_who_want_the_same_blocks_load_them_once(crank, copier) -> None:
    turn(crank, "p", range(13))
    copier.drain()
    fill(crank, 16)
    for name in ("a", "b"):
        crank.add(name, range(14), max_tokens=1)
    assert crank.plan() is None
    copier.drain()
    assert copier.loaded == 3
    assert {name for name, start, _ in crank.step() if start == 12} == {"a", "b"}


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_what_comes_up_damaged_is_computed_again(crank, copier, bad: int) -> None:
    turn(crank, "p", range(13))
    copier.drain()
    fill(crank, 16)
    crank.add("again", range(14), max_tokens=1, program=ref("p"))
    assert crank.plan() is None
    plan = copier.plan()
    copier.finish(plan, failed=frozenset({bad}))
    assert crank.step() == [("again", 4 * bad, 14 - 4 * bad)]
    assert disk(crank)["failed"] == 1
    copier.drain()
    assert disk(crank)["stored"] == 4, "it is copied down anew"


def test_a_broken_tier_keeps_nobody_waiting(crank, copier) -> None:
    turn(crank, "p", range(13))
    copier.drain()
    fill(crank, 16)
    crank.add("again", range(14), max_tokens=1, program=ref("p"))
    assert crank.plan() is None
    copier.finish(copier.plan(), failed=frozenset({0, 1, 2}), breaks=True)
    assert crank.step() == [("again", 0, 14)]
    assert copier.plan() is None
    turn(crank, "q", range(13))
    assert copier.plan() is None
    assert disk(crank)["slots"] == disk(crank)["used"] == 0


def test_the_gate_counts_on_no_broken_tier(make_crank) -> None:
    costs = LearntCosts(has_lower=True)
    crank = make_crank(Policies(agents=agent_policy("braid", costs), costs=costs), num_disk_blocks=32)
    copier = Copier(crank)
    sets = crank.scheduler._sets
    turn(crank, "p", range(13))
    plan = copier.plan()
    assert sets.num_lower_blocks == 32
    copier.finish(plan, failed=frozenset({0}), breaks=True)
    assert sets.num_lower_blocks == 0


def test_an_abort_gives_a_load_up(crank, copier) -> None:
    turn(crank, "p", range(13))
    copier.drain()
    fill(crank, 16)
    crank.add("again", range(14), max_tokens=1, program=ref("p"))
    assert crank.plan() is None
    plan = copier.plan()
    assert crank.scheduler.stats().num_free_blocks == 13
    crank.scheduler.abort("again", crank.now)
    crank.scheduler.check_integrity()
    copier.finish(plan)
    assert crank.scheduler.stats().num_free_blocks == 16
    assert not crank.scheduler.has_unfinished


def test_a_load_gives_way_to_who_runs(make_crank) -> None:
    crank = make_crank(num_blocks=10, max_model_len=40, num_disk_blocks=32)
    copier = Copier(crank)
    turn(crank, "p", range(13))
    copier.drain()
    fill(crank, 10)
    crank.add("long", 23, max_tokens=10)
    crank.step()
    crank.add("again", range(14), max_tokens=1, program=ref("p"))
    for _ in range(6):
        crank.step()
    assert crank.scheduler.stats().num_preemptions == 0
    assert crank.scheduler.stats().num_running == 1
    finish_all(crank, copier, {MIXED: None, TIER: None})
    assert len(crank.output("again")) == 1


def test_leases_of_others_give_way_to_a_load(crank, copier) -> None:
    turn(crank, "p", range(37))
    copier.drain()
    fill(crank, 16)
    turn(crank, "q", range(50, 83))
    for program in ("p", "q"):
        crank.scheduler.program(ProgramVerb.PIN, ref(program), 100.0, crank.now)
    assert crank.scheduler.stats().num_leased_blocks == 8
    request = crank.add("again", range(38), max_tokens=1, program=ref("p"))
    assert crank.plan() is None
    assert crank.scheduler.stats().leases_revoked == 1
    copier.drain()
    assert copier.loaded == 9
    crank.run()
    assert request.num_cached_tokens == 36


def test_a_load_that_takes_longer_than_computing_is_left(make_crank) -> None:
    prior = CostPrior(step_s=0, token_s=1e-6, pair_s=0, decode_s=0, transfer_s=1.0)
    crank = make_crank(
        Policies(costs=LearntCosts(prior, has_lower=True)), max_model_len=64, num_disk_blocks=32
    )
    copier = Copier(crank)
    turn(crank, "p", range(13))
    copier.drain()
    fill(crank, 16)
    crank.add("again", range(14), max_tokens=1, program=ref("p"))
    assert crank.step() == [("again", 0, 14)]


def test_copies_change_nothing_in_the_order_of_eviction(make_crank) -> None:
    found = []
    for num_disk_blocks in (0, 32):
        crank = make_crank(max_model_len=64, num_disk_blocks=num_disk_blocks)
        turn(crank, "p", range(13))
        turn(crank, "q", range(50, 63))
        if num_disk_blocks:
            Copier(crank).drain()
        fill(crank, 12)  # 6 of 16 blocks are cached: 2 of them must go
        pool = crank.scheduler._pool
        programs = crank.scheduler._retention.programs
        found.append([[pool.find(key) is not None for key in p.keys] for p in programs.of("o")])
    assert found[0] == found[1]
    assert found[0] == [[True] * 3, [True, False, False]]


def test_a_block_that_is_being_copied_is_not_evicted(crank, copier) -> None:
    turn(crank, "p", range(13))
    plan = copier.plan()
    crank.add("all", 63, max_tokens=1)
    assert crank.plan() is None, "one block is missing for a moment"
    copier.finish(plan)
    crank.run()
    assert disk(crank)["stored"] == 1, "the others were evicted before their turn came"
    copier.drain()


class Swaps(LeastRecent):
    def ended(self, program: Any, now: float) -> Keep:
        return Keep(0.0, Fate.SWAP)


def test_what_is_swapped_out_goes_first_once_it_is_below(make_crank) -> None:
    policies = Policies(agents=lru()._replace(retention=Swaps()))
    crank = make_crank(policies, max_model_len=64, num_disk_blocks=32)
    copier = Copier(crank)
    crank.add("old", range(100, 112), max_tokens=1)
    crank.run()
    turn(crank, "p", range(13))
    copier.drain()
    fill(crank, 13)
    old = crank.add("old again", range(100, 113), max_tokens=1)
    crank.step()
    assert old.num_cached_tokens == 12
    crank.add("again", range(14), max_tokens=1, program=ref("p"))
    crank.plan()
    copier.drain()
    assert copier.loaded == 3


def test_a_program_that_is_over_is_the_first_to_leave_the_tier(make_crank) -> None:
    crank = make_crank(max_model_len=64, num_disk_blocks=6)
    copier = Copier(crank)
    turn(crank, "p", range(13))
    turn(crank, "q", range(50, 63))
    copier.drain()
    crank.scheduler.program(ProgramVerb.CLOSE, ref("q"), None, crank.now)
    turn(crank, "r", range(80, 93))
    copier.drain()
    listed = {info.program: info for info in crank.scheduler.programs("o", 9, crank.now)}
    assert disk(crank)["evicted"] == 3
    fill(crank, 16)
    listed = {info.program: info for info in crank.scheduler.programs("o", 9, crank.now)}
    assert (listed["p"].num_lower_blocks, listed["r"].num_lower_blocks) == (3, 3)


def test_prefetch_fills_blocks_that_hold_nothing(make_crank) -> None:
    crank = make_crank(max_model_len=64, num_disk_blocks=32)
    copier = Copier(crank)
    turn(crank, "p", range(13))
    copier.drain()
    assert prefetch(crank) == Outcome("prefetch", Applied.APPLIED)
    fill(crank, 16)  # all blocks hold something but the last, which never became full
    assert prefetch(crank) == Outcome("prefetch", Applied.DEFERRED)
    copier.drain()
    assert copier.loaded == 1
    assert prefetch(crank) == Outcome("prefetch", Applied.IGNORED, "pressure")
    assert crank.scheduler.stats().num_free_blocks == 16


def prefetch(crank: Any) -> Outcome:
    outcome: Outcome = crank.scheduler.program(ProgramVerb.PREFETCH, ref("p"), None, crank.now)
    return outcome


def test_the_loop_never_stalls_with_a_tier(make_crank, new_request) -> None:
    crank = make_crank(max_model_len=64, num_disk_blocks=32)
    executor = SimExecutor(FixedTime(1.0), tiers=TierTime(0.1, 0.0, 0.5))
    scheduler = Scheduler(crank.scheduler.config)
    ended: list[str] = []
    loop = Loop(
        scheduler, executor, lambda deltas: ended.extend(d.request_id for d in deltas if d.finish_reason)
    )
    for index in range(12):
        prompt = [index % 3] * 30 if index % 2 else [*[index % 3] * 30, *range(index)]
        loop.add(new_request(str(index), prompt, program=ref(str(index % 3))))
        loop.run_until_idle()
    assert len(ended) == 12
    stats = scheduler.stats()
    assert stats.tiers["disk"]["loaded"] > 0
    assert stats.num_free_blocks == stats.num_blocks
    scheduler.check_integrity()


def test_a_disk_that_hangs_keeps_nobody_waiting_for_ever(crank, copier) -> None:
    turn(crank, "p", range(13))
    copier.drain()
    fill(crank, 16)
    crank.add("again", range(14), max_tokens=1, program=ref("p"))
    assert crank.plan() is None
    plan = copier.plan()
    assert crank.scheduler.next_deadline() == crank.now + TIER_STALL_S
    crank.now += TIER_STALL_S
    assert crank.step() == [("again", 0, 14)]
    assert crank.scheduler.next_deadline() is None
    assert disk(crank)["slots"] == 0
    assert crank.scheduler.stats().num_free_blocks == 13, "the disk may still write to these"
    copier.finish(plan)
    assert crank.scheduler.stats().num_free_blocks == 16


class Action(NamedTuple):
    """What happens, and then steps of the lanes in this order."""

    verb: str
    program: int
    length: int
    lanes: tuple[str, ...]


actions = st.builds(
    Action,
    verb=st.sampled_from(
        ["turn", "turn", "turn", "turn", "stranger", "stranger", "abort", "prefetch", "demote", "pin"]
    ),
    program=st.integers(0, 3),
    length=st.integers(1, 6),
    lanes=st.lists(
        st.sampled_from(["mixed", "mixed", "tier", "tier", "tier", "tier bad", "tier breaks"]),
        min_size=2,
        max_size=12,
    ).map(tuple),
)


class Interleaved:
    """Both lanes in the order that a script says: a step is taken in before the lane's next one is planned."""

    def __init__(self, make_crank: Any, policy: str, **config: Any) -> None:
        costs = LearntCosts(has_lower=True)
        self.crank = make_crank(Policies(agents=agent_policy(policy, costs), costs=costs), **config)
        self.copier = Copier(self.crank)
        self.flights: dict[str, StepPlan | None] = {MIXED: None, TIER: None}
        self.lengths = [0, 0, 0, 0]
        self.live: list[str] = []
        self.breaks = False

    def act(self, number: int, action: Action) -> None:
        crank, name = self.crank, f"r{number}"
        if action.verb == "turn":
            self.lengths[action.program] = (self.lengths[action.program] + 4 * action.length) % 33
            prompt = [action.program] * (self.lengths[action.program] + 1)
            crank.add(name, prompt, max_tokens=action.length, program=ref(str(action.program)))
            self.live.append(name)
        elif action.verb == "stranger":
            crank.add(name, 39, max_tokens=1, cache_salt=name)
        elif action.verb == "abort" and self.live:
            crank.scheduler.abort(self.live[-1], crank.now)
        elif action.verb in ("prefetch", "demote", "pin"):
            crank.scheduler.program(ProgramVerb(action.verb), ref(str(action.program)), 5.0, crank.now)
        crank.scheduler.check_integrity()

    def step(self, lane: str) -> None:
        if lane == "mixed":
            if self.flights[MIXED] is not None:
                self.crank.finish(self.flights[MIXED])
            self.flights[MIXED] = self.crank.plan()
            return
        plan = self.flights[TIER]
        if plan is not None:
            failed = frozenset(range(1 if lane == "tier bad" else 0))
            self.copier.finish(plan, failed, breaks=lane == "tier breaks" and self.breaks)
        self.flights[TIER] = self.copier.plan()


@settings(max_examples=100, deadline=None)
@given(
    script=st.lists(actions, min_size=8, max_size=30),
    num_blocks=st.integers(10, 14),
    num_disk=st.sampled_from([3, 12, 40]),
    num_host=st.sampled_from([0, 5]),
    breaks=st.booleans(),
    policy=st.sampled_from(["lru", "braid", "infercept", "continuum"]),
)
def test_any_interleaving_ends_with_every_block_free(
    make_crank_fn, script, num_blocks, num_disk, num_host, breaks, policy
) -> None:
    this = Interleaved(
        make_crank_fn, policy, num_blocks=num_blocks, num_disk_blocks=num_disk, num_host_blocks=num_host
    )
    this.breaks = breaks
    for number, action in enumerate(script):
        this.act(number, action)
        for lane in action.lanes:
            this.step(lane)
    finish_all(this.crank, this.copier, this.flights)
    this.crank.now += MAX_LEASE
    this.crank.scheduler.tick(this.crank.now)
    stats = this.crank.scheduler.stats()
    assert stats.num_free_blocks == num_blocks
    assert (stats.num_running, stats.num_waiting) == (0, 0)


def finish_all(crank: Any, copier: Copier, flights: dict[str, StepPlan | None]) -> None:
    """Both lanes step until nothing is left."""
    for _ in range(1000):
        if flights[MIXED] is not None:
            crank.finish(flights[MIXED])
        if flights[TIER] is not None:
            copier.finish(flights[TIER])
        flights[MIXED], flights[TIER] = crank.plan(), copier.plan()
        if flights[MIXED] is None and flights[TIER] is None:
            break
    assert not crank.scheduler.has_unfinished, f"stalled:\n{crank.scheduler.dump()}"


def has_all(crank: Any, program: str, count: int) -> list[bool]:
    known = {info.id.program: info for info in crank.scheduler._retention.programs.of("o")}
    return [crank.scheduler._transfers.has(key) for key in known[program].keys[:count]]


def test_a_chain_that_grows_pushes_others_out_and_not_its_own_end(make_crank) -> None:
    crank = make_crank(max_model_len=64, num_disk_blocks=10)
    copier = Copier(crank)
    for program, prompt in (("p", range(29)), ("q", range(50, 63)), ("p", range(37))):
        turn(crank, program, prompt)
        copier.drain()
    assert has_all(crank, "p", 9) == [True] * 9
    assert has_all(crank, "q", 3) == [True, False, False]


def test_of_a_chain_that_came_up_the_end_goes_first_from_the_tier(make_crank) -> None:
    crank = make_crank(max_model_len=64, num_disk_blocks=4)
    copier = Copier(crank)
    turn(crank, "p", range(13))
    copier.drain()
    fill(crank, 16)
    crank.add("anybody", range(14), max_tokens=1)
    crank.plan()
    copier.drain()
    assert copier.loaded == 3
    crank.run()
    turn(crank, "q", range(50, 59))
    copier.drain()
    assert has_all(crank, "q", 2) == [True, True]
    assert has_all(crank, "p", 3) == [True, True, False]


def test_what_is_not_worth_its_time_is_tried_now_and_then(make_crank) -> None:
    """Else one slow read would be believed for ever."""
    prior = CostPrior(step_s=0, token_s=1e-6, pair_s=0, decode_s=0, transfer_s=1e6)
    crank = make_crank(
        Policies(costs=LearntCosts(prior, has_lower=True)), max_model_len=64, num_disk_blocks=32
    )
    copier = Copier(crank)
    turn(crank, "p", range(61))
    copier.drain()
    (program,) = crank.scheduler._retention.programs.of("o")
    transfers = crank.scheduler._transfers
    counts = [transfers.reach(program.keys, 0, 15) for _ in range(3 * PROBE_EVERY)]
    assert counts == ([0] * (PROBE_EVERY - 1) + [PROBE_BLOCKS]) * 3


def test_what_came_up_too_early_and_went_again_comes_up_once_more(make_crank) -> None:
    crank = make_crank(max_model_len=64, max_num_seqs=1, num_disk_blocks=32)
    copier = Copier(crank)
    turn(crank, "p", range(13))
    copier.drain()
    crank.add("bad", 63, max_tokens=1)
    for _ in range(3):
        crank.step()
    crank.step(errors={"bad": "injected"})
    assert crank.scheduler._pool.num_empty == 16
    crank.add("long", 3, max_tokens=61, ignore_eos=True)
    crank.step()
    crank.add("again", range(14), max_tokens=1, program=ref("p"))
    copier.drain()
    assert copier.loaded == 3, "there was room, though no seat"
    while crank.scheduler.stats().num_running:
        crank.step()
    assert crank.plan() is None
    copier.drain()
    assert copier.loaded == 6
    assert crank.step() == [("again", 12, 2)]


def test_a_prefetch_that_is_under_way_is_said_to_be(make_crank) -> None:
    crank = make_crank(max_model_len=64, num_disk_blocks=32)
    copier = Copier(crank)
    turn(crank, "p", range(13))
    copier.drain()
    fill(crank, 16)
    assert [prefetch(crank) for _ in range(2)] == [Outcome("prefetch", Applied.DEFERRED)] * 2
    copier.drain()
    assert copier.loaded == 1


def test_programs_whose_blocks_live_below_are_known(make_crank) -> None:
    for num_disk_blocks, num_known in ((0, 7), (100, 10)):
        crank = make_crank(num_disk_blocks=num_disk_blocks)
        for index in range(10):
            turn(crank, str(index), range(100 * index, 100 * index + 37))
        assert len(crank.scheduler.programs("o", 99, crank.now)) == num_known


def test_turns_are_copied_while_they_run_where_memory_is_short(crank, copier) -> None:
    request = crank.add("p", range(41), max_tokens=4, program=ref("p"))
    for _ in range(2):
        crank.step()
    copier.drain()
    assert disk(crank)["stored"] == request.num_computed_tokens // 4 == 8
    crank.run()
    copier.drain()
    assert disk(crank)["stored"] == 11
    assert disk(crank)["evicted"] == 0


def test_turns_in_nobodys_way_are_copied_when_they_are_over(crank, copier) -> None:
    crank.add("p", range(28), max_tokens=4, program=ref("p"))
    crank.add("stranger", 1, max_tokens=4)
    for _ in range(3):
        crank.step()
    assert copier.plan() is None
    crank.run()
    copier.drain()
    assert disk(crank)["stored"] == 7


def test_what_a_failed_turn_made_is_not_found_below(crank, copier) -> None:
    turn(crank, "p", range(13))
    copier.drain()
    crank.add("bad", range(41), max_tokens=4, program=ref("p"))
    crank.step()
    copier.drain()
    assert disk(crank)["used"] == 7
    plan = crank.plan()
    copying = copier.plan()
    assert copying is None
    crank.finish(plan, errors={"bad": "injected"})
    copier.drain()
    assert disk(crank)["used"] == 3
    fill(crank, 16)
    again = crank.add("again", range(41), max_tokens=1, program=ref("p"))
    crank.plan()
    copier.drain()
    crank.run()
    assert again.num_cached_tokens == 12


def test_copies_of_a_turn_that_fails_meanwhile_are_not_found(crank, copier) -> None:
    crank.add("bad", range(41), max_tokens=4, program=ref("p"))
    crank.step()
    copying = copier.plan()
    plan = crank.plan()
    crank.finish(plan, errors={"bad": "injected"})
    result = StepResult(copying.step_id, TIER, 0.0, 0.01, {})
    crank.scheduler.update(result, crank.now)
    crank.scheduler.check_integrity()
    copier.drain()
    assert disk(crank)["used"] == disk(crank)["stored"] == 0


def test_loads_and_stores_take_turns(make_crank, monkeypatch) -> None:
    monkeypatch.setattr("braid.sched.transfers.LOAD_BATCH", 1)
    crank = make_crank(max_model_len=64, num_disk_blocks=32)
    copier = Copier(crank)
    turn(crank, "p", range(13))
    copier.drain()
    fill(crank, 16)
    turn(crank, "q", range(50, 63))
    crank.add("again", range(14), max_tokens=1, program=ref("p"))
    assert crank.plan() is None
    kinds = []
    while (plan := copier.plan()) is not None:
        kinds.append(plan.moves[0].is_load)
        copier.finish(plan)
    assert kinds == [True, False] * 3


def test_what_a_turn_made_before_memory_was_short_is_copied_too(crank, copier) -> None:
    crank.add("p", range(24), max_tokens=8, program=ref("p"))
    for _ in range(3):
        crank.step()
    assert copier.plan() is None
    crank.add("stranger", 12, max_tokens=8)
    for _ in range(4):
        crank.step()
    copier.drain()
    assert disk(crank)["stored"] == 7


def test_what_others_push_out_again_comes_up_a_few_times_and_not_for_ever(make_crank) -> None:
    crank = make_crank(max_model_len=64, num_disk_blocks=32)
    copier = Copier(crank)
    turn(crank, "p", range(13))
    copier.drain()
    fill(crank, 16)
    again = crank.add("again", range(14), max_tokens=1, priority=1, program=ref("p"))
    for number in range(MAX_LOADS):
        assert crank.plan() is None
        crank.add(f"urgent-{number}", 63, max_tokens=1, cache_salt=str(number))
        copier.drain()
        assert copier.loaded == 3 * (number + 1)
        for _ in range(4):
            crank.step()
    assert crank.step() == [("again", 0, 14)]
    assert again.num_cached_tokens == 0
