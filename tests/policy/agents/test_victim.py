"""Who gives way, and that somebody always goes on."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from braid.core.program import ProgramRef
from braid.policy.agents.plain import LastInOrder
from braid.policy.agents.program import Program, ProgramId
from braid.policy.agents.victim import LastProgram, Patient


def program(name: str, arrival: float) -> Program:
    return Program(ProgramId("", name), arrival)


def decoding(turn: Any) -> Any:
    """With all of its tokens but the last computed."""
    turn.request.num_computed_tokens = turn.request.num_tokens - 1
    return turn


def test_the_program_that_came_last(make_turn: Any) -> None:
    running = [make_turn("a", 9.0, program("a", 1.0)), make_turn("b", 3.0, program("b", 3.0))]
    running.append(make_turn("c", 8.0, program("c", 2.0)))
    assert LastProgram().choose(running) is running[1]
    assert LastProgram().choose(running[:1]) is running[0]


def test_the_first_in_order_is_not_chosen_though_its_program_came_last(make_turn: Any) -> None:
    running = [make_turn("a", 9.0, program("a", 5.0)), make_turn("b", 3.0, program("b", 3.0))]
    assert LastProgram().choose(running) is running[1]


def test_the_released_code_spares_last_steps(make_turn: Any) -> None:
    running = [make_turn(name, at, program(name, at)) for name, at in (("a", 1.0), ("b", 2.0), ("c", 3.0))]
    running[2].request.program = ProgramRef(owner="", program="c", final=True)
    victim = LastProgram(spares_final=True)
    assert victim.choose(running) is running[1]
    for turn in running:
        turn.request.program = ProgramRef(owner="", program="x", final=True)
    assert victim.choose(running) is running[2]


def test_patience(make_turn: Any) -> None:
    running = [decoding(make_turn(name, num_tokens=10)) for name in "abcd"]
    patient = Patient(2)
    assert patient.choose(running) is running[3]
    running[3].request.num_computed_tokens = 4
    assert patient.choose(running) is running[2]
    running[2].program.num_preemptions = 2
    assert patient.choose(running) is running[1]
    running[1].program.num_preemptions = 5
    # Of one that has just started and two over their budget, the first gives way.
    assert patient.choose(running) is running[3]
    running[3].program.num_preemptions = 2
    assert patient.choose(running) is running[2]
    assert patient.choose(running[:1]) is running[0]


@given(st.integers(0, 10**6))
def test_memory_for_one_is_enough_for_all(make_turn: Any, seed: int) -> None:
    """Turns grow block by block in a pool that holds the largest of them alone: all of them end."""
    rng = random.Random(seed)
    for victim in (LastInOrder(), LastProgram(), LastProgram(spares_final=True), Patient(rng.randint(0, 3))):
        turns = [make_turn(str(n), n, program(str(n), rng.randint(0, 5)), num_tokens=3) for n in range(5)]
        needs = {turn: rng.randint(1, 10) for turn in map(id, turns)}
        for turn in turns:
            if rng.random() < 0.4:
                turn.request.program = ProgramRef(owner="", program="x", final=True)
        waiting, running, has = list(turns), [], dict.fromkeys(map(id, turns), 0)
        for _ in range(2000):
            waiting.sort(key=lambda turn: turn.number)
            if waiting and sum(has.values()) < 10:
                running.append(waiting.pop(0))
                running.sort(key=lambda turn: turn.number)
            for turn in list(running):
                while turn in running and sum(has.values()) >= 10:
                    chosen = victim.choose(running)
                    running.remove(chosen)
                    waiting.append(chosen)
                    has[id(chosen)] = 0
                    chosen.program.num_preemptions += 1
                    chosen.request.num_computed_tokens = 0
                if turn in running:
                    has[id(turn)] += 1
                    turn.request.num_computed_tokens = 2
                    if has[id(turn)] >= needs[id(turn)]:
                        running.remove(turn)
                        has[id(turn)] = 0
            if not waiting and not running:
                break
        assert waiting == running == [], victim
