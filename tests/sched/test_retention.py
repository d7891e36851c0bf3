"""What clients may do with what their programs left. Blocks hold 4 tokens; the pool has 16."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.core.program import Applied, Outcome, ProgramRef, ProgramVerb, RetainIntent
from braid.policy.agents.program import ProgramId
from braid.sched.config import MIXED

CLOSE, PREFETCH, DEMOTE, PIN = (
    ProgramVerb.CLOSE,
    ProgramVerb.PREFETCH,
    ProgramVerb.DEMOTE,
    ProgramVerb.PIN,
)


@pytest.fixture
def crank(make_crank: Any) -> Any:
    """One request may fill the whole pool."""
    return make_crank(max_model_len=64)


def ref(program: str, owner: str = "o", *, final: bool = False) -> ProgramRef:
    return ProgramRef(owner=owner, program=program, final=final)


def turn(crank: Any, program: str, prompt: Any, *, final: bool = False, lease_s: float | None = None) -> Any:
    """One turn of a program, from its arrival to its end."""
    intent = None if lease_s is None else RetainIntent(lease_s=lease_s)
    name = f"{program}-{len(crank.deltas)}"
    request = crank.add(name, prompt, max_tokens=1, program=ref(program, final=final), intent=intent)
    crank.run()
    return request


def act(crank: Any, verb: ProgramVerb, program: str, seconds: float | None = None) -> Outcome:
    outcome: Outcome = crank.scheduler.program(verb, ref(program), seconds, crank.now)
    crank.scheduler.check_integrity()
    return outcome


def fill(crank: Any, num_blocks: int) -> None:
    """Somebody else computes a prompt of so many blocks; what he leaves is of no use to others."""
    crank.add(f"fill-{crank.now}", num_blocks * 4 - 1, max_tokens=1, cache_salt=str(crank.now))
    crank.run()


def num_cached(crank: Any, prompt: range) -> int:
    """Tokens of ``prompt`` that a turn would find now."""
    request = crank.add(f"probe-{crank.now}", [*prompt, 99], max_tokens=1)
    crank.run()
    cached: int = request.num_cached_tokens
    return cached


def test_verbs_know_their_owners_programs_only(crank) -> None:
    turn(crank, "p", range(12))
    unknown = Outcome("close", Applied.IGNORED, "unknown_program")
    assert crank.scheduler.program(CLOSE, ref("p", owner="other"), None, 0.0) == unknown
    assert act(crank, CLOSE, "q") == unknown
    assert act(crank, PREFETCH, "p") == Outcome("prefetch", Applied.IGNORED, "unsupported")
    assert crank.scheduler.stats().num_programs == 1
    assert act(crank, CLOSE, "p") == Outcome("close", Applied.APPLIED)
    assert crank.scheduler.stats().num_programs == 0


@pytest.mark.parametrize("verb", [CLOSE, DEMOTE])
def test_what_is_closed_or_demoted_is_evicted_first(crank, verb: ProgramVerb) -> None:
    turn(crank, "old", range(100, 112))
    turn(crank, "p", range(12))
    act(crank, verb, "p")
    fill(crank, 13)  # 6 of 16 blocks are cached: 3 of them must go
    assert crank.scheduler.stats().num_programs == (1 if verb is CLOSE else 2)
    assert num_cached(crank, range(100, 112)) == 12
    assert num_cached(crank, range(12)) == 0


def test_the_end_of_a_demoted_chain_goes_first(crank) -> None:
    turn(crank, "p", range(12))
    act(crank, DEMOTE, "p")
    fill(crank, 15)
    assert num_cached(crank, range(12)) == 4


def test_what_another_program_shares_is_not_demoted(crank) -> None:
    turn(crank, "p", range(12))
    turn(crank, "q", [*range(8), *range(50, 54)])
    act(crank, CLOSE, "p")
    fill(crank, 13)
    assert num_cached(crank, range(8)) == 8
    assert num_cached(crank, range(12)) == 8


def test_the_last_turn_closes_its_program(crank) -> None:
    turn(crank, "old", range(100, 112))
    turn(crank, "p", range(12), final=True)
    assert crank.scheduler.stats().num_programs == 1
    fill(crank, 13)
    assert num_cached(crank, range(100, 112)) == 12


def test_an_abort_in_flight_closes_too(crank) -> None:
    turn(crank, "old", range(100, 112))
    crank.add("a", range(12), max_tokens=9, program=ref("p", final=True))
    crank.step()
    plan = crank.plan()
    crank.scheduler.abort("a", crank.now)
    crank.finish(plan)
    fill(crank, 13)
    assert num_cached(crank, range(100, 112)) == 12


def test_a_lease_keeps_blocks_until_it_ends(crank) -> None:
    turn(crank, "p", range(12))
    assert act(crank, PIN, "p", 100.0) == Outcome("pin", Applied.APPLIED)
    stats = crank.scheduler.stats()
    assert (stats.num_leases, stats.num_leased_blocks, stats.leases_granted) == (1, 3, 1)
    assert stats.num_free_blocks == 16, "leased blocks can be granted"
    fill(crank, 13)
    assert num_cached(crank, range(12)) == 12
    end = crank.scheduler.next_deadline()
    assert end is not None
    crank.now = end
    crank.scheduler.tick(end)
    crank.scheduler.check_integrity()
    assert crank.scheduler.next_deadline() is None
    fill(crank, 10)
    fill(crank, 10)
    assert num_cached(crank, range(12)) == 0


def test_a_wish_on_the_request_is_a_lease_from_its_end(crank) -> None:
    turn(crank, "p", range(12), lease_s=50.0)
    assert crank.scheduler.stats().num_leases == 1
    assert crank.scheduler.next_deadline() == crank.now + 50.0
    turn(crank, "p", range(12), final=True)
    assert crank.scheduler.stats().num_leases == 0


def test_leases_are_cut_to_the_quota(crank) -> None:
    turn(crank, "p", range(36))
    assert act(crank, PIN, "p", 60.0) == Outcome("pin", Applied.CLIPPED, "quota")
    assert crank.scheduler.stats().num_leased_blocks == 8
    turn(crank, "q", range(100, 104))
    assert act(crank, PIN, "q", 60.0) == Outcome("pin", Applied.CLIPPED, "quota")
    act(crank, DEMOTE, "p")
    assert act(crank, PIN, "q", 7200.0) == Outcome("pin", Applied.CLIPPED, "quota")
    assert crank.scheduler.next_deadline() == crank.now + 3600.0
    assert crank.scheduler.stats().leases_clipped == 3


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan")])
def test_a_lease_of_no_length_is_ignored(crank, seconds: float) -> None:
    turn(crank, "p", range(12))
    assert act(crank, PIN, "p", seconds) == Outcome("pin", Applied.IGNORED, "unsupported")


def test_nothing_left_is_nothing_to_hold(crank) -> None:
    turn(crank, "p", range(12))
    fill(crank, 10)
    fill(crank, 10)
    assert act(crank, PIN, "p") == Outcome("pin", Applied.IGNORED, "pressure")


def test_an_admission_revokes_leases(crank) -> None:
    turn(crank, "p", range(12), lease_s=100.0)
    turn(crank, "q", range(100, 112), lease_s=50.0)
    crank.add("big", 39, max_tokens=1)
    crank.add("more", 23, max_tokens=1)
    plan = crank.plan()
    assert [work.request_id for work in plan.works] == ["big"]
    crank.finish(plan)
    crank.step()
    plan = crank.plan()
    assert "more" in {work.request_id for work in plan.works}
    crank.finish(plan)
    crank.run()
    stats = crank.scheduler.stats()
    assert stats.num_preemptions == 0
    assert stats.leases_revoked == 2


def test_a_decode_revokes_the_lease_that_ends_first_before_anybody_is_preempted(crank) -> None:
    turn(crank, "p", range(12), lease_s=100.0)
    turn(crank, "q", range(100, 112), lease_s=50.0)
    crank.add("a", 19, max_tokens=12)
    crank.add("b", 19, max_tokens=9)
    while crank.scheduler.stats().leases_revoked == 0:
        crank.step()
    assert [lease.holder.program for lease in crank.scheduler._retention.leases] == ["p"]
    crank.run()
    assert crank.scheduler.stats().num_preemptions == 0


def test_a_returning_turn_uses_what_it_leased(make_crank) -> None:
    crank = make_crank(num_blocks=10, watermark=0.5)
    turn(crank, "p", range(20), lease_s=100.0)
    assert crank.scheduler.stats().num_leased_blocks == 5
    crank.add("other", 12, max_tokens=8)
    crank.step()
    back = crank.add("back", [*range(20), 1, 2], max_tokens=1)
    crank.run()
    assert back.num_cached_tokens == 20


class Move(NamedTuple):
    """Before a step: a turn arrives, or a verb is called."""

    program: str
    owner: str
    prompt: tuple[int, int]
    max_tokens: int
    lease_s: float | None
    final: bool
    verb: ProgramVerb | None


moves = st.builds(
    Move,
    program=st.sampled_from("pqr"),
    owner=st.sampled_from("ab"),
    prompt=st.tuples(st.integers(0, 3), st.integers(1, 28)),
    max_tokens=st.integers(1, 10),
    lease_s=st.sampled_from([None, 3.0, 500.0, 9000.0]),
    final=st.booleans(),
    verb=st.sampled_from([None, None, None, CLOSE, DEMOTE, PIN]),
)


def play(crank: Any, steps: list[list[Move]]) -> None:
    for number in range(3000):
        for index, move in enumerate(steps[number] if number < len(steps) else ()):
            who = ref(move.program, move.owner, final=move.final)
            if move.verb is not None:
                crank.scheduler.program(move.verb, who, move.lease_s, crank.now)
                continue
            start, length = move.prompt
            prompt = range(start * 100, start * 100 + length)
            intent = RetainIntent(lease_s=move.lease_s)
            crank.add(f"{number}.{index}", prompt, max_tokens=move.max_tokens, program=who, intent=intent)
        plan = crank.plan()
        if plan is not None:
            crank.finish(plan)
        elif crank.scheduler.has_unfinished:
            raise AssertionError(f"stalled:\n{crank.scheduler.dump()}")
        elif number >= len(steps):
            return
    raise AssertionError(f"not done:\n{crank.scheduler.dump()}")


@settings(max_examples=80, deadline=None)
@given(
    steps=st.lists(st.lists(moves, max_size=3), max_size=14),
    num_blocks=st.integers(10, 20),
    watermark=st.sampled_from([0.0, 0.5]),
    share=st.sampled_from([1, 2]),
)
def test_a_leased_pool_always_goes_on_and_every_block_returns(
    make_crank_fn: Any, steps: list[list[Move]], num_blocks: int, watermark: float, share: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("braid.sched.leases.SHARE", share)  # 1: all blocks may be leased
        crank = make_crank_fn(num_blocks=num_blocks, watermark=watermark)
        play(crank, steps)
        stats = crank.scheduler.stats()
        assert stats.num_free_blocks == num_blocks
        crank.now += 3600.0
        crank.scheduler.tick(crank.now)
        crank.scheduler.check_integrity()
        stats = crank.scheduler.stats()
        assert (stats.num_leases, stats.num_leased_blocks, stats.num_free_blocks) == (0, 0, num_blocks)
        assert crank.scheduler.next_deadline() is None


def test_a_pool_of_nothing_but_leases_admits(crank, monkeypatch) -> None:
    monkeypatch.setattr("braid.sched.leases.SHARE", 1)
    for index, name in enumerate("pqrs"):
        turn(crank, name, range(index * 100, index * 100 + 16), lease_s=1000.0)
    assert crank.scheduler.stats().num_leased_blocks == 16
    crank.add("a", 39, max_tokens=1)
    assert crank.scheduler.schedule(MIXED, crank.now) is not None
    assert crank.scheduler.stats().leases_revoked == 3


def test_one_turn_aside_does_not_cost_a_program_its_chain(crank: Any) -> None:
    """Agents ask for a title under the same id; who goes on with the new prompt has that chain from then on."""
    main, title = range(100, 117), range(500, 506)
    programs = crank.scheduler._retention.programs
    turn(crank, "a", main)
    program = programs.get(ProgramId("o", "a"))
    chain = program.keys
    turn(crank, "a", title)
    assert (program.keys, program.num_tokens, program.has_strayed) == (chain, 18, True)
    turn(crank, "a", [*main, 7, 8, 9, 10])
    assert program.keys[: len(chain)] == chain
    assert not program.has_strayed
    turn(crank, "a", title)
    turn(crank, "a", [*title, 7, 8, 9, 10])
    assert chain[0] not in program.keys
    assert (len(program.keys), program.has_strayed) == (2, False)


def test_a_longer_prompt_of_another_kind_is_the_chain_at_once(crank: Any) -> None:
    turn(crank, "a", range(100, 109))
    turn(crank, "a", range(500, 517))
    program = crank.scheduler._retention.programs.get(ProgramId("o", "a"))
    assert (len(program.keys), program.has_strayed) == (4, False)
