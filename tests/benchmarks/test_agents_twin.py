"""The same programs through the simulator."""

from __future__ import annotations

from pathlib import Path

from agents_programs import Program, Step
from agents_twin import Lengths, Store, guessed, twin

MACHINE = Path(__file__).parents[2] / "benchmarks" / "results" / "machine-smollm2-bf16-epyc-zen3-2c.json"
PROGRAMS = [
    Program(
        f"p{number}",
        number * 0.1,
        tuple(Step(200 if not turn else 30, 24, 2.0 * bool(turn)) for turn in range(4)),
    )
    for number in range(6)
]


def test_prompts_grow_by_what_was_said() -> None:
    told = guessed(PROGRAMS)
    assert [told[0, turn].prompt - told[0, turn - 1].prompt for turn in range(1, 4)] == [24 + 30 + 8] * 3


def test_with_room_for_all_nothing_is_computed_again_under_any_policy() -> None:
    told = {place: Lengths(*lengths) for place, lengths in guessed(PROGRAMS).items()}
    runs = twin(MACHINE, PROGRAMS, told, Store(1000, 16, 1024), ("lru", "pin-2s", "braid"), free=False)
    assert {run.tokens["recompute"] for run in runs.values()} == {0}
    prompts = sum(lengths.prompt for lengths in told.values())
    assert {sum(run.tokens.values()) for run in runs.values()} == {prompts}
    assert all(len(run.jct_s) == 6 and min(run.jct_s) > 6.0 for run in runs.values())


def test_where_memory_is_short_braid_computes_less_again() -> None:
    runs = twin(MACHINE, PROGRAMS, guessed(PROGRAMS), Store(64, 16, 1024), ("lru", "braid"), free=False)
    assert runs["braid"].tokens["recompute"] < runs["lru"].tokens["recompute"]


def test_only_turns_that_call_a_tool_are_held() -> None:
    """Continuum pins behind a call of a tool, and free answers call none."""
    store = Store(1000, 16, 1024)
    held = twin(MACHINE, PROGRAMS, guessed(PROGRAMS), store, ("pin-2s",), free=False)["pin-2s"]
    free = twin(MACHINE, PROGRAMS, guessed(PROGRAMS), store, ("pin-2s",), free=True)["pin-2s"]
    assert sum(held.kept.values()) > sum(free.kept.values())
