"""Masks: on time, late, failed, forgotten; and what the sampler makes of them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from braid.core.constraint import Constraint, ConstraintKind
from braid.core.errors import BraidError
from braid.core.sampling import SamplingParams
from braid.core.step import SampledToken, SampleSpec
from braid.runner.constraint import GRACE, MAX_DEFERRAL, MAX_RUNNING, Masks, ThreadWorker
from braid.runner.sampler import sample

CPU = torch.device("cpu")
CONSTRAINT = Constraint(kind=ConstraintKind.REGEX, source="[0-9]+", param="guided_regex")
PARAMS = SamplingParams(temperature=0, constraint=CONSTRAINT)


class Counting:
    """A matcher that allows only the token that counts up."""

    def __init__(self) -> None:
        self.consumed: list[int] = []

    def allowed(self) -> bytes:
        return (1 << len(self.consumed)).to_bytes(2, "little")

    def consume(self, token_id: int) -> None:
        if token_id == 15:
            raise BraidError("no way on")
        self.consumed.append(token_id)


class HeldWorker:
    """Does its jobs when told to."""

    def __init__(self) -> None:
        self.jobs: deque[Callable[[], None]] = deque()
        self.patience: list[float] = []
        self.num_replaced = 0
        self.is_closed = False

    def submit(self, job: Callable[[], None], cost: float = 0.0) -> None:
        self.jobs.append(job)

    def wait(self, done: Callable[[], bool], seconds: float) -> None:
        self.patience.append(seconds)

    def replace(self) -> None:
        self.num_replaced += 1

    def close(self) -> None:
        self.is_closed = True

    def work(self) -> None:
        while self.jobs:
            self.jobs.popleft()()


class Hand:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def spec(num_output: int = 0, params: SamplingParams = PARAMS) -> SampleSpec:
    return SampleSpec(params, 0, [7, 7] + [0] * num_output, 2)


def only(masks: Masks, num_output: int = 0, *, alone: bool = False) -> Tensor | BraidError | None:
    (verdict,) = masks.collect([("a", spec(num_output))], alone=alone)
    return verdict


def allowed(mask: Tensor | BraidError | None) -> list[int]:
    assert isinstance(mask, Tensor)
    return [int(id) for id in (~mask).nonzero().flatten()]


def make(worker: HeldWorker, clock: Callable[[], float] = time.monotonic) -> Masks:
    masks = Masks(CPU, worker=worker, clock=clock)
    masks.begin("a", PARAMS, Counting)
    return masks


def test_a_mask_follows_the_tokens() -> None:
    worker = HeldWorker()
    masks = make(worker)
    for position in range(4):
        worker.work()
        assert allowed(only(masks, position)) == [position]
        assert allowed(only(masks, position)) == [position], "asking changes nothing"
        masks.advance("a", position)
    assert worker.patience == []


def test_a_late_mask_defers_and_then_comes() -> None:
    worker = HeldWorker()
    masks = make(worker)
    assert only(masks) is None
    assert only(masks, alone=True) is None
    assert worker.patience[0] < worker.patience[1]
    worker.work()
    assert allowed(only(masks)) == [0]


def test_a_token_deferred_too_long_ends_its_request() -> None:
    worker, clock = HeldWorker(), Hand()
    masks = make(worker, clock)
    assert only(masks) is None
    clock.now += MAX_DEFERRAL - 0.1
    assert only(masks) is None
    clock.now += 0.2
    error = only(masks)
    assert isinstance(error, BraidError)
    assert "guided_regex takes too long" in str(error)


def test_deferrals_of_different_tokens_do_not_add_up() -> None:
    worker, clock = HeldWorker(), Hand()
    masks = make(worker, clock)
    for position in range(5):
        assert only(masks, position) is None
        clock.now += MAX_DEFERRAL - 0.1
        worker.work()
        assert allowed(only(masks, position)) == [position]
        masks.advance("a", position)


def test_a_mask_that_runs_for_ever_costs_its_own_request_only() -> None:
    worker, clock = HeldWorker(), Hand()
    masks = Masks(CPU, worker=worker, clock=clock)
    verdicts: list[object] = []

    class Endless(Counting):
        def allowed(self) -> bytes:
            for _ in range(2):
                verdicts.append(masks.collect([("a", spec()), ("b", spec())], alone=True))
                clock.now += MAX_RUNNING + 0.1
            return super().allowed()

    masks.begin("a", PARAMS, Endless)
    masks.begin("b", PARAMS, Counting)
    worker.work()
    assert verdicts[0] == [None, None]
    first, second = verdicts[1]  # type: ignore[misc]
    assert isinstance(first, BraidError)
    assert second is None
    assert worker.num_replaced == 1


def test_masks_that_use_too_much_time_end_their_request() -> None:
    class Slow(Counting):
        def allowed(self) -> bytes:
            begin = time.thread_time()
            while time.thread_time() - begin < GRACE / 2:
                pass
            return super().allowed()

    worker = HeldWorker()
    masks = Masks(CPU, worker=worker)
    masks.begin("a", PARAMS, Slow)
    worker.work()
    assert allowed(only(masks)) == [0]
    for position in range(2):
        masks.advance("a", position)
        worker.work()
    assert isinstance(only(masks, 2), BraidError)


def test_a_grammar_without_a_way_on_is_the_requests_own_error() -> None:
    worker = HeldWorker()
    masks = make(worker)
    masks.begin("b", PARAMS, Counting)
    worker.work()
    masks.advance("a", 15)
    worker.work()
    failed, fine = masks.collect([("a", spec(1)), ("b", spec())], alone=False)
    assert str(failed) == "no way on"
    assert allowed(fine) == [0]


class Panic(BaseException):
    """As foreign code raises it."""


@pytest.mark.parametrize("fault", [RuntimeError, Panic])
def test_what_a_matcher_raises_never_leaves_the_worker(fault: type[BaseException]) -> None:
    class Broken(Counting):
        def allowed(self) -> bytes:
            raise fault("injected")

    worker = HeldWorker()
    masks = Masks(CPU, worker=worker)
    masks.begin("a", PARAMS, Broken)
    worker.work()
    assert "injected" in str(only(masks))


def test_requests_that_end_leave_nothing() -> None:
    worker = HeldWorker()
    masks = make(worker)
    started: list[int] = []

    def start() -> Counting:
        started.append(1)
        return Counting()

    masks.begin("b", PARAMS, start)
    masks.end("a")
    masks.end("b")
    masks.end("b")
    worker.work()
    assert len(masks) == 0
    assert started == []
    masks.advance("a", 3)
    assert not worker.jobs
    assert "lost" in str(only(masks))
    masks.close()
    assert worker.is_closed


def test_a_step_of_an_ended_request_cannot_touch_its_successor() -> None:
    worker = HeldWorker()
    masks = make(worker)
    old = spec(0, SamplingParams(temperature=0, constraint=CONSTRAINT))
    worker.work()
    (verdict,) = masks.collect([("a", old)], alone=False)
    assert isinstance(verdict, BraidError)
    assert allowed(only(masks)) == [0]


def test_the_thread_works_and_ends() -> None:
    masks = Masks(CPU)
    before = threading.active_count()
    masks.begin("a", PARAMS, Counting)
    for position in range(20):
        verdict = only(masks, position, alone=True) if position < 16 else None
        while position < 16 and verdict is None:
            verdict = only(masks, position, alone=True)
        if position < 15:
            assert allowed(verdict) == [position]
            masks.advance("a", 0)
    masks.close()
    assert threading.active_count() <= before


def test_masks_of_cheap_grammars_go_first() -> None:
    """Whoever has used much time for each token waits for those who have not, and never the other way round."""
    worker, gate, ended = ThreadWorker(), threading.Event(), threading.Event()
    done: list[str] = []
    worker.submit(lambda: gate.wait(10) and None)
    for name, cost in (("dear", 0.02), ("cheap", 0.0), ("dearer", 0.03), ("cheap too", 0.0)):
        worker.submit(lambda name=name: done.append(name), cost)  # type: ignore[misc]
    worker.submit(ended.set, 1.0)
    gate.set()
    assert ended.wait(10)
    assert done == ["cheap", "cheap too", "dear", "dearer"]
    worker.close()


def test_a_replaced_thread_leaves_its_queue_to_the_next() -> None:
    worker = ThreadWorker()
    stuck, done = threading.Event(), threading.Event()
    worker.submit(lambda: stuck.wait(10) and None)
    worker.submit(done.set)
    worker.wait(done.is_set, 0)
    assert not done.is_set()
    worker.replace()
    assert done.wait(10)
    stuck.set()
    worker.close()


# -- the sampler -------------------------------------------------------------------------------------------


def logits(rows: int = 3, size: int = 12) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(5))


def mask_of(*tokens: int, size: int = 16) -> Tensor:
    mask_V = torch.ones(size, dtype=torch.bool)
    mask_V[list(tokens)] = False
    return mask_V


def ids(outcomes: list[SampledToken | Exception]) -> list[int]:
    assert all(isinstance(outcome, SampledToken) for outcome in outcomes), outcomes
    return [outcome.token_id for outcome in outcomes if isinstance(outcome, SampledToken)]


@pytest.mark.parametrize("temperature", [0, 1.5])
@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.5}, {"min_p": 0.2}])
def test_only_allowed_tokens_are_chosen(temperature: float, options: dict[str, float]) -> None:
    for seed in range(20):
        params = SamplingParams(temperature=temperature, constraint=CONSTRAINT, **options)  # type: ignore[arg-type]
        (token,) = ids(sample(logits(1), [SampleSpec(params, seed, [1], 1)], [mask_of(3, 5)]))
        assert token in (3, 5)


@pytest.mark.parametrize("size", [4, 12, 16])
def test_a_mask_may_be_shorter_or_longer_than_the_row(size: int) -> None:
    (token,) = ids(sample(logits(1), [spec()], [mask_of(2, size=size)]))
    assert token == 2


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_other_rows_keep_their_tokens(temperature: float) -> None:
    plain = SampleSpec(SamplingParams(temperature=temperature), 3, [1], 1)
    without = ids(sample(logits(), [plain] * 3))
    beside = ids(sample(logits(), [plain, spec(), plain], [None, mask_of(9), None]))
    assert beside == [without[0], 9, without[2]]


def test_bias_cannot_bring_a_forbidden_token_back() -> None:
    params = SamplingParams(temperature=0, constraint=CONSTRAINT, logit_bias={1: 100.0})
    assert ids(sample(logits(1), [SampleSpec(params, 0, [1], 1)], [mask_of(4, 6)]))[0] in (4, 6)


def test_the_grammar_wins_over_a_ban() -> None:
    banned = SampleSpec(PARAMS, 0, [1], 1, (4,))
    assert ids(sample(logits(1), [banned], [mask_of(4, 6)])) == [6]
    assert ids(sample(logits(1), [banned], [mask_of(4)])) == [4]


def test_logprobs_are_the_models_own() -> None:
    params = SamplingParams(temperature=0, constraint=CONSTRAINT, logprobs=2)
    (outcome,) = sample(logits(1), [SampleSpec(params, 0, [1], 1)], [mask_of(4)])
    assert isinstance(outcome, SampledToken)
    assert outcome.logprobs is not None
    own = torch.log_softmax(logits(1)[0], -1)
    assert outcome.logprobs.logprob == pytest.approx(float(own[4]))
    assert outcome.logprobs.rank == int((own > own[4]).sum()) + 1
