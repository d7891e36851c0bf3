"""Turns as policies see them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from braid.core.request import Request
from braid.core.sampling import SamplingParams
from braid.policy.agents.program import Program, ProgramId


@dataclass(slots=True, eq=False)
class FakeTurn:
    """What the scheduler's entries look like to a policy."""

    request: Request
    program: Program
    number: int = 0
    is_resident: bool = False
    is_held: bool = False


MakeTurn = Callable[..., FakeTurn]


@pytest.fixture(scope="module")
def make_turn() -> MakeTurn:
    """``make_turn(name, arrival=0, program=None, ...)``; without a program it is one of its own."""
    count = iter(range(1_000_000))

    def make(
        name: str,
        arrival: float = 0.0,
        program: Program | None = None,
        *,
        priority: int = 0,
        num_tokens: int = 1,
        is_resident: bool = False,
        is_held: bool = False,
    ) -> FakeTurn:
        request = Request(
            request_id=name,
            prompt_token_ids=(1,) * num_tokens,
            params=SamplingParams(),
            arrival_time=arrival,
            priority=priority,
        )
        own = program or Program(ProgramId("", name), arrival)
        return FakeTurn(request, own, next(count), is_resident, is_held)

    return make
