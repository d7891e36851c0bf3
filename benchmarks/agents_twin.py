"""The simulator beside the real server: the same programs at the same times, with this machine's step times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from agents_programs import TEMPLATE_TOKENS, Program
from agents_tools import FIRST_TOKENS, spoken

from braid.policy.agents.program import Finish
from braid.sim.agents import AgentRun, AgentSetup, run_starts
from braid.sim.machine import load_machine
from braid.sim.programs import Family, Start, Text, Turn
from braid.text.tool_key import fence_key


class Lengths(NamedTuple):
    """Tokens of one turn's prompt and of its answer."""

    prompt: int
    out: int


Told = Mapping[tuple[int, int], Lengths]
"""By program and turn: what the server counted."""


class Store(NamedTuple):
    """The server's KV store and limits, so that the simulator has the same."""

    num_blocks: int
    block_size: int
    max_model_len: int


def guessed(programs: Sequence[Program]) -> dict[tuple[int, int], Lengths]:
    """Lengths as they are about, before any server has counted."""
    found = {}
    for number, program in enumerate(programs):
        prompt = FIRST_TOKENS
        for turn, step in enumerate(program.steps):
            prompt += step.new + TEMPLATE_TOKENS
            found[number, turn] = Lengths(prompt, step.out)
            prompt += step.out
    return found


def twin(
    machine: Path,
    programs: Sequence[Program],
    told: Told,
    store: Store,
    policies: Sequence[str],
    *,
    free: bool,
) -> dict[str, AgentRun]:
    """Every policy once: a simulation of equal arguments ends equally.

    Raises:
        MachineError, BraidError: the machine file holds none; a program does not fit.
    """
    known = load_machine(machine)
    setup = AgentSetup(
        cost=known.cost,
        machine=known.words,
        rate=1.0,
        num_programs=len(programs),
        kv_tokens=store.num_blocks * store.block_size,
        max_model_len=store.max_model_len,
        block_size=store.block_size,
        max_num_seqs=known.config.max_num_seqs,
        max_num_batched_tokens=known.config.max_num_batched_tokens,
    )
    starts = [
        Start(program.start_s, _family(number, program, told, free))
        for number, program in enumerate(programs)
    ]
    return {policy: run_starts(starts, setup, policy, 0) for policy in policies}


def _family(number: int, program: Program, told: Told, free: bool) -> Family:
    """One stream, since a history only grows; the block that all programs share counts as many."""
    turns = []
    for turn, step in enumerate(program.steps):
        lengths = told[number, turn]
        finish, tool = _ending(program, turn, free)
        turns.append(
            Turn(
                member=0,
                after=(turn - 1,) if turn else (),
                delay_s=step.gap_s,
                prompt=Text((0,), (lengths.prompt,)),
                num_output=lengths.out,
                reply=Text((0,), (lengths.out,)),
                finish=finish,
                tool=tool,
            )
        )
    return Family(name=program.name, turns=tuple(turns), parents=(-1,), num_streams=1)


def _ending(program: Program, turn: int, free: bool) -> tuple[Finish, str | None]:
    """As the server reads the answer."""
    if free:
        return Finish.LENGTH, None
    key = fence_key(spoken(program, turn).text)
    return (Finish.TEXT, None) if key is None else (Finish.TOOL, key)
