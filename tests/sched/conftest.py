"""Small schedulers, requests, and a hand-cranked executor for the tests of this room."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from braid.core.request import Delta, Request
from braid.core.sampling import SamplingParams
from braid.core.step import SampledToken, StepPlan, StepResult
from braid.policy.phases.policy import Decided
from braid.sched.config import MIXED, Policies, SchedulerConfig
from braid.sched.observer import Observer
from braid.sched.scheduler import Scheduler


def make_request(
    request_id: str, prompt: int | Iterable[int], max_tokens: int | None = 4, **fields: Any
) -> Request:
    """A prompt given by its length shares its prefix with no other id."""
    if isinstance(prompt, int):
        prompt = [1000 + sum(request_id.encode())] * prompt
    own = {
        name: fields.pop(name)
        for name in (
            "priority",
            "arrival_time",
            "cache_salt",
            "seed",
            "eos_token_ids",
            "program",
            "intent",
            "pooling",
        )
        if name in fields
    }
    params = SamplingParams(temperature=0, max_tokens=max_tokens, **fields)
    return Request(request_id=request_id, prompt_token_ids=tuple(prompt), params=params, **own)


class Crank:
    """A scheduler whose steps are taken by hand; every step checks the scheduler's integrity."""

    def __init__(
        self,
        policies: Policies | None = None,
        observer: Observer | None = None,
        decided: Callable[[Decided], None] | None = None,
        **config: Any,
    ) -> None:
        defaults = {"num_blocks": 16, "block_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 16}
        defaults |= {"max_model_len": 40, "watermark": 0.0}
        self.scheduler = Scheduler(
            SchedulerConfig(**(defaults | config)), policies, observer=observer, decided=decided
        )
        self.now = 0.0
        self.deltas: list[Delta] = []

    def add(self, *args: Any, **fields: Any) -> Request:
        request = make_request(*args, **fields)
        self.scheduler.add(request, self.now)
        self.scheduler.check_integrity()
        return request

    def plan(self) -> StepPlan | None:
        self.scheduler.tick(self.now)
        plan = self.scheduler.schedule(MIXED, self.now)
        self.scheduler.check_integrity()
        return plan

    def finish(
        self,
        plan: StepPlan,
        errors: dict[str, str] | None = None,
        token: Callable[[str], int] = lambda _: 7,
    ) -> list[Delta]:
        self.now += 1.0
        errors = errors or {}
        tokens = {
            work.request_id: SampledToken(token(work.request_id))
            for work in plan.works
            if work.sample is not None and work.request_id not in errors
        }
        result = StepResult(plan.step_id, plan.lane, self.now - 1, 1.0, tokens, errors)
        deltas = self.scheduler.update(result, self.now)
        self.scheduler.check_integrity()
        self.deltas += deltas
        return deltas

    def step(self, **outcome: Any) -> list[tuple[str, int, int]]:
        """One step; what it computed as (request id, first token, number of tokens)."""
        plan = self.plan()
        if plan is None:
            return []
        self.finish(plan, **outcome)
        return [(work.request_id, work.start, len(work.token_ids)) for work in plan.works]

    def run(self, limit: int = 1000) -> int:
        """Step until nothing is left; the number of steps."""
        for count in range(limit):
            if not self.scheduler.has_unfinished:
                return count
            assert self.step(), f"stalled:\n{self.scheduler.dump()}"
        raise AssertionError(f"unfinished after {limit} steps:\n{self.scheduler.dump()}")

    def output(self, request_id: str) -> list[int]:
        return [token for d in self.deltas if d.request_id == request_id for token in d.token_ids]


@pytest.fixture
def crank() -> Crank:
    return Crank()


@pytest.fixture
def make_crank() -> type[Crank]:
    return Crank


@pytest.fixture
def new_request() -> Callable[..., Request]:
    return make_request


@pytest.fixture(scope="session")
def make_crank_fn() -> type[Crank]:
    """``make_crank`` for property tests, which may not use function-scoped fixtures."""
    return Crank
