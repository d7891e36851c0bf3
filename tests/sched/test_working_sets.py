"""What the gate is told: every block once, idle programs in the measure of their weight."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.core.program import ProgramRef
from braid.policy.agents.plain import LeastRecent, lru
from braid.policy.agents.policy import Rank, SetLoad
from braid.policy.agents.program import Program
from braid.sched.config import Policies


class Weights(LeastRecent):
    """By name; half for those without one, nothing while they wait."""

    def __init__(self) -> None:
        self.of: dict[str, float] = {}

    def rank(self, program: Program, now: float) -> Rank:
        if program.num_waiting:
            return Rank(0, 0.0, 0.0)
        return Rank(0, 0.0, self.of.get(program.id.program if program.id else "", 0.5))


class Watched:
    """A gate that notes what it is told, and refuses whom it is told to refuse."""

    is_open = False

    def __init__(self) -> None:
        self.loads: dict[str, SetLoad] = {}
        self.refused: set[str] = set()

    def admits(self, turn: Any, load: SetLoad, now: float) -> bool:
        self.loads[turn.request.request_id] = load
        return turn.request.request_id not in self.refused


@pytest.fixture
def gate() -> Watched:
    return Watched()


def make(make_crank: Any, gate: Watched, **config: Any) -> Any:
    agents = lru()._replace(gate=gate, retention=Weights())
    return make_crank(
        Policies(agents=agents), num_blocks=64, max_model_len=200, max_num_batched_tokens=200, **config
    )


@pytest.fixture
def crank(make_crank: Any, gate: Watched) -> Any:
    """Blocks of 4 tokens."""
    return make(make_crank, gate)


def turn(crank: Any, program: str, prompt: Any, parent: str | None = None) -> None:
    """A whole turn; the answer of one token leaves the blocks of the prompt alone."""
    ref = ProgramRef(owner="o", program=program, parent=parent)
    crank.add(f"{program}-{crank.now}", prompt, max_tokens=1, program=ref)
    crank.run()


def needed(crank: Any) -> float:
    value: float = crank.scheduler._sets.needed
    return value


def ask(crank: Any, gate: Watched, prompt: Any, program: str | None = None) -> SetLoad:
    """What the gate hears of a turn that comes while another runs."""
    crank.add("runs", 12, max_tokens=9, cache_salt="other")
    crank.step()
    ref = None if program is None else ProgramRef(owner="o", program=program)
    crank.add("asks", prompt, max_tokens=1, program=ref)
    crank.step()
    crank.run()
    return gate.loads["asks"]


def test_nobody_is_asked_while_nothing_runs(crank: Any, gate: Watched) -> None:
    gate.refused = {"alone"}
    crank.add("alone", 8)
    crank.run()
    assert gate.loads == {}


def test_who_is_refused_waits_and_others_do_not(crank: Any, gate: Watched) -> None:
    gate.refused = {"b"}
    crank.add("a", 8, max_tokens=6)
    crank.step()
    b = crank.add("b", 8, max_tokens=1)
    crank.step()
    crank.step()
    assert b.first_scheduled_time is None
    gate.refused = set()
    crank.run()
    assert b.is_finished


def test_idle_programs_count_by_weight_and_shared_blocks_once(crank: Any) -> None:
    turn(crank, "p", range(40))
    assert needed(crank) == 5.0
    turn(crank, "q", [*range(20), *range(100, 120)])
    assert needed(crank) == 5 + 0.5 * 5 + 0.5 * 5
    turn(crank, "r", [*range(20), *range(200, 204)])
    assert needed(crank) == 5 + 0.5 * 5 + 0.5 * 5 + 0.5 * 1
    crank.now += 4000.0
    for _ in range(3):
        crank.scheduler.tick(crank.now)
    assert needed(crank) == 0.0


def test_a_running_turn_counts_its_blocks(crank: Any) -> None:
    crank.add("a", 10, max_tokens=8)
    crank.step()
    assert needed(crank) == 3.0
    crank.run()
    assert needed(crank) == 0.0
    turn(crank, "p", range(40))
    crank.add("p2", range(48), max_tokens=9, program=ProgramRef(owner="o", program="p"))
    crank.step()
    assert needed(crank) == 12.0


def test_the_turn_that_asks_is_not_needed_yet(crank: Any, gate: Watched) -> None:
    turn(crank, "p", range(40))
    load = ask(crank, gate, range(48), "p")
    assert (load.needed, load.added, load.num_blocks, load.num_running) == (4.0, 12, 64, 1)


def test_what_an_idle_program_has_is_added_as_far_as_it_is_not_counted(crank: Any, gate: Watched) -> None:
    turn(crank, "p", range(40))
    load = ask(crank, gate, [*range(40), *range(300, 308)], "q")
    assert (load.needed, load.added) == (4.0 + 5.0, 12 - 5)


def test_what_several_have_is_not_added(crank: Any, gate: Watched) -> None:
    turn(crank, "p", range(40))
    turn(crank, "q", range(40))
    load = ask(crank, gate, range(41), "r")
    assert (load.needed, load.added) == (4.0 + 10.0, 1)


def test_what_running_turns_use_is_not_added(crank: Any, gate: Watched) -> None:
    crank.add("runs", range(40), max_tokens=9)
    crank.step()
    crank.add("asks", [*range(40), 1, 2], max_tokens=1)
    crank.step()
    load = gate.loads["asks"]
    assert (load.needed, load.added) == (11.0, 1)
    assert needed(crank) == 11.0


def test_a_fork_counts_what_its_parent_does_not(crank: Any) -> None:
    turn(crank, "p", range(40))
    crank.add(
        "c",
        [*range(40), *range(300, 308)],
        max_tokens=9,
        program=ProgramRef(owner="o", program="c", parent="p"),
    )
    crank.step()
    assert needed(crank) == 0.5 * 10 + (12 - 5)


def test_the_tier_below_is_told(make_crank: Any, gate: Watched) -> None:
    crank = make(make_crank, gate, num_disk_blocks=100)
    assert ask(crank, gate, 8).num_lower_blocks == 100


turns = st.tuples(
    st.sampled_from("pqr"),
    st.sampled_from([None, "p", "q"]),
    st.integers(0, 2),
    st.integers(1, 30),
    st.integers(1, 9),
)


@settings(max_examples=60, deadline=None)
@given(script=st.lists(st.lists(turns, max_size=2), max_size=12), num_blocks=st.integers(10, 30))
def test_sums_hold_whatever_happens(make_crank_fn: Any, script: list[Any], num_blocks: int) -> None:
    """``check_integrity`` compares them after every call."""
    agents = lru()._replace(gate=Watched(), retention=Weights())
    crank = make_crank_fn(Policies(agents=agents), num_blocks=num_blocks, max_model_len=40)
    for number, arrivals in enumerate(script):
        for index, (program, parent, fork, length, max_tokens) in enumerate(arrivals):
            prompt = [7] * min(length, 8) + [fork] * max(0, length - 8)
            ref = ProgramRef(owner="o", program=program, parent=parent)
            crank.add(f"{number}.{index}", prompt, max_tokens=max_tokens, program=ref)
        crank.step()
    crank.run()
    sets = crank.scheduler._sets
    assert sets._num_running == pytest.approx(0.0, abs=1e-6)
    table = crank.scheduler._retention.programs
    own = sum(0.5 * table.num_unshared(program) for program in table.of("o"))
    assert sets.needed == pytest.approx(table.num_shared_keys + own)
