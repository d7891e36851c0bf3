"""However prefill and decode share the machine, and however often that changes: the same tokens, nothing lost."""

from __future__ import annotations

import queue
import random
import threading
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from braid import LLM, SamplingParams
from braid.core.config import EngineConfig
from braid.core.constraint import Constraint, ConstraintKind
from braid.core.faults import Fault, Faults
from braid.core.program import ProgramRef
from braid.core.request import Delta, Slo, TokenLogprobs
from braid.engine import llm as llm_module
from braid.engine.build import build_engine
from braid.engine.llm import RequestOutput
from braid.engine.protocol import GenerateRequest
from braid.policy.phases.auto import Auto
from braid.policy.phases.fixed import Fixed, Layered, Mixed, PrefillFirst, Static
from braid.policy.phases.policy import Demand, Division, Phases
from braid.sched.config import DECODE, MIXED, PREFILL
from braid.sched.scheduler import Scheduler

from .conftest import assert_nothing_left, small_llm

NUM_UNITS = 2
BLOCK_BYTES = 4 * 2 * 2 * 64 * 4
TIGHT = {"kv_cache_memory": 40 * BLOCK_BYTES, "max_model_len": 120, "max_num_batched_tokens": 24}
"""40 blocks of 4 tokens: two long requests cannot both finish without a preemption."""


class Restless(Fixed):
    """Decides otherwise whenever it is asked, by lot: lanes or none, their sizes, and how much of a prompt."""

    name = "restless"
    is_split = True

    def __init__(self, seed: int = 0) -> None:
        self._lot = random.Random(seed)
        self.drawn: set[Division] = set()

    def divide(self, demand: Demand) -> Division:
        lot = self._lot
        prefill, decode = lot.randint(1, demand.num_units), lot.randint(1, demand.num_units)
        size = lot.choice((1, 5, 16, 64))
        division = Division(
            lot.random() < 0.4,
            prefill,
            decode,
            size,
            is_prefill_first=lot.random() < 0.5,
            num_layers=lot.randint(0, 1),
        )
        self.drawn.add(division)
        return division


POLICIES: dict[str, type[Phases] | Any] = {
    "mixed": Mixed,
    "mixed:8": lambda: Mixed(8),
    "layered": Layered,
    "prefill-first": PrefillFirst,
    "static:50/50": lambda: Static(50, 50),
    "static:100/100": lambda: Static(100, 100, max_prefill=16),
    "split": lambda: Auto(can_mix=False),
    "auto": Auto,
    "auto, hurried": lambda: Auto(Slo(ttft_s=1.0, tbt_s=0.0005)),
    "restless": Restless,
}
SPLIT = ("static:50/50", "static:100/100", "split")
"""In these every step belongs to one phase, and with layers every forward pass does."""


def with_policy(model: Path, policy: Phases, **options: Any) -> LLM:
    """An engine that asks ``policy``, on two cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("braid.engine.build.phases_policy", lambda *_, **__: policy)
        return small_llm(model, **({"threads": NUM_UNITS} | options))


@pytest.fixture(scope="module")
def plain(tiny_llama: Path) -> Iterator[LLM]:
    """What the others are compared with."""
    with with_policy(tiny_llama, Mixed()) as engine:
        yield engine
        assert_nothing_left(engine)


@pytest.fixture(params=list(POLICIES))
def policy(request: pytest.FixtureRequest) -> Phases:
    made: Phases = POLICIES[request.param]()
    return made


# -- the same answers ----------------------------------------------------------------------------------------

SHARED = list(range(30, 78))
WORD = Constraint(kind=ConstraintKind.REGEX, source=r"[a-f]{3,9}(-[0-9]{2,5}){1,3}")
MANNERS: list[dict[str, Any]] = [
    {"temperature": 0, "ignore_eos": True},
    {"temperature": 0, "logprobs": 3, "ignore_eos": True},
    {"temperature": 0, "presence_penalty": 1.1, "frequency_penalty": 0.7, "repetition_penalty": 1.3},
    {"temperature": 1.1, "seed": 5, "top_p": 0.9, "logprobs": 0},
    {"temperature": 0, "constraint": WORD, "max_tokens": 40},
    {"temperature": 0, "prompt_logprobs": 2, "logprobs": 1},
    {"temperature": 0, "min_tokens": 9, "logit_bias": {65: 5.0, 66: -100.0}},
    {"temperature": 0.9, "seed": 8, "min_p": 0.05, "constraint": WORD, "max_tokens": 40},
]


def asked() -> list[tuple[list[int], SamplingParams]]:
    """Of every kind one with a long prompt that begins as others do, and one with a short prompt of its own."""
    wanted = []
    for number, manner in enumerate(MANNERS):
        own = [100 + number, *random.Random(number).choices(range(256), k=20)]
        params = SamplingParams(**({"max_tokens": 14} | manner))
        wanted += [(SHARED[: 16 + 4 * number] + own, params), (own[: 1 + 2 * number], params)]
    return wanted


def two_turns(llm: LLM) -> list[list[RequestOutput]]:
    """What many begin with; then all at once; then again, each with its history."""
    llm.generate([SHARED], SamplingParams(temperature=0, max_tokens=1))
    wanted = asked()
    params = [each for _, each in wanted]
    first = llm.generate([prompt for prompt, _ in wanted], params)
    histories = [[*output.prompt_token_ids, *output.token_ids, 7, 8, 9] for output in first]
    return [first, llm.generate(histories, params)]


@pytest.fixture(scope="module")
def expected(plain: LLM) -> list[list[RequestOutput]]:
    return two_turns(plain)


def test_answers_and_prefix_hits_are_the_same(
    tiny_llama: Path, policy: Phases, expected: list[list[RequestOutput]]
) -> None:
    with with_policy(tiny_llama, policy) as llm:
        turns = two_turns(llm)
        assert_nothing_left(llm)
        hits = llm.stats().prefix_hits
    for outputs, wanted in zip(turns, expected, strict=True):
        for output, other in zip(outputs, wanted, strict=True):
            assert output.token_ids == other.token_ids
            assert output.text == other.text
            assert output.finish_reason == other.finish_reason
            assert output.num_cached_tokens == other.num_cached_tokens
            same_weights(output.logprobs, other.logprobs)
            same_weights(output.prompt_logprobs, other.prompt_logprobs)
    assert hits == sum(output.num_cached_tokens for outputs in expected for output in outputs) > 700


def test_what_many_ask_at_once_is_computed_once(tiny_llama: Path, policy: Phases) -> None:
    """Whoever asks while another one fills the blocks waits for them, and for nothing else."""
    with with_policy(tiny_llama, policy) as llm:
        prompt = random.Random(5).choices(range(256), k=90)
        outputs = llm.generate([prompt] * 6, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
        assert sorted(output.num_cached_tokens for output in outputs) == [0, *[88] * 5]
        assert len({output.token_ids for output in outputs}) == 1
        assert_nothing_left(llm)


def same_weights(
    found: Sequence[TokenLogprobs | None] | None, wanted: Sequence[TokenLogprobs | None] | None
) -> None:
    """Teams of other sizes add up in another order."""
    assert (found is None) == (wanted is None)
    for one, other in zip(found or (), wanted or (), strict=True):
        assert (one is None) == (other is None)
        if one is None or other is None:
            continue
        assert one.token_id == other.token_id
        assert one.logprob == pytest.approx(other.logprob, abs=1e-3)
        assert [pair[1] for pair in one.top] == pytest.approx([pair[1] for pair in other.top], abs=1e-3)


def test_answers_survive_preemption(tiny_llama: Path, plain: LLM, policy: Phases) -> None:
    prompts = [[index + 1] * 20 for index in range(6)]
    greedy = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    lot = SamplingParams(temperature=1.2, seed=9, max_tokens=60, ignore_eos=True)
    with with_policy(tiny_llama, policy, **TIGHT) as llm:
        outputs = [llm.generate(prompts, params) for params in (greedy, lot)]
        assert llm.stats().num_preemptions > 0
        assert_nothing_left(llm)
    for found, params in zip(outputs, (greedy, lot), strict=True):
        wanted = plain.generate(prompts, params)
        assert [output.token_ids for output in found] == [output.token_ids for output in wanted]


def test_every_kind_of_step_has_run(tiny_llama: Path) -> None:
    """What the tests above rest on: the restless policy has drawn lanes of every size, and mixed steps."""
    policy = Restless()
    with with_policy(tiny_llama, policy) as llm:
        seen = steps_of(llm)
        two_turns(llm)
    assert len(policy.drawn) > 30
    assert {lane for lane, _ in seen} == {MIXED, PREFILL, DECODE}
    assert {units for _, units in seen} == {1, 2}
    assert {units for lane, units in seen if lane == PREFILL} == {1, 2}


def steps_of(llm: LLM) -> list[tuple[str, int]]:
    """Lane and units of every step from now on."""
    seen: list[tuple[str, int]] = []
    runner = llm._core.runner
    execute = runner.execute

    def noted(plan: Any) -> Any:
        seen.append((plan.lane, plan.units))
        return execute(plan)

    runner.execute = noted  # type: ignore[method-assign]
    return seen


def test_lanes_compute_at_the_same_time(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of one lane begins and ends while one of the other is under way: held up until that has happened."""
    faults = Faults([Fault(point="forward", phase=PREFILL, first=2)], sleep=lambda seconds: None)
    with faulty(tiny_llama, faults, Static(50, 50), monkeypatch) as llm:
        deltas: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def hold_up(point: str, phase: str = "") -> None:
            if phase == PREFILL and num_prefills.pop():
                for _ in range(5):  # five tokens of the other, while this step is under way
                    deltas.get(timeout=60)

        num_prefills = [True, False]
        faults.visit = hold_up  # type: ignore[method-assign]
        params = SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)
        llm._core.submit(GenerateRequest("running", (1, 2, 3), params), deltas.put, deltas.put)
        deltas.get(timeout=60)
        assert len(llm.generate([[9] * 30], SamplingParams(max_tokens=2))[0].token_ids) == 2
        assert num_prefills == []
        llm._core.abort("running")
        assert_nothing_left(llm)


def test_a_step_of_prompts_takes_the_cores_that_decodes_leave(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its forward pass is held up until nobody decodes any more."""
    faults = Faults([Fault(point="forward", phase=PREFILL, first=2)], sleep=lambda seconds: None)
    with faulty(tiny_llama, faults, Static(50, 50), monkeypatch) as llm:
        runner, threads, told = llm._core.runner, list[int](), threading.Event()

        def hold_up(point: str, phase: str = "") -> None:
            if point == "forward" and phase == PREFILL and not threads:
                threads.append(torch.get_num_threads())
                assert told.wait(60)

        def layer(block: Any, inputs: Any, output: Any) -> None:
            if len(threads) == 1 and told.is_set():  # the other lane has nothing left to do
                threads.append(torch.get_num_threads())

        def reshare(lane: str, units: int) -> None:
            pass_on(lane, units)
            if (lane, units) == (PREFILL, NUM_UNITS):
                told.set()

        pass_on, runner.reshare = runner.reshare, reshare  # type: ignore[method-assign]
        deltas: queue.SimpleQueue[Any] = queue.SimpleQueue()
        params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
        llm._core.submit(GenerateRequest("running", (1, 2, 3), params), deltas.put, deltas.put)
        deltas.get(timeout=60)
        runner._model.blocks[0].register_forward_hook(layer)
        faults.visit = hold_up  # type: ignore[method-assign]
        assert len(llm.generate([[9] * 30], SamplingParams(max_tokens=2))[0].token_ids) == 2
        assert threads == [1, NUM_UNITS]
        assert_nothing_left(llm)


# -- what goes wrong -----------------------------------------------------------------------------------------


def faulty(model: Path, faults: Faults, policy: Phases, monkeypatch: pytest.MonkeyPatch) -> LLM:
    def build(config: EngineConfig, **rest: Any) -> Any:
        return build_engine(config, **(rest | {"faults": faults}))

    monkeypatch.setattr(llm_module, "build_engine", build)
    return with_policy(model, policy)


PARAMS = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
PROMPTS = [tuple(random.Random(number).choices(range(256), k=3 + 9 * number)) for number in range(7)]


@pytest.mark.parametrize("name", [*SPLIT, "layered"])
@pytest.mark.parametrize("point", ["forward", "head"])
@pytest.mark.parametrize("phase", [PREFILL, DECODE])
def test_a_step_that_fails_in_a_lane_costs_one_request(
    tiny_llama: Path, plain: LLM, name: str, point: str, phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step fails, and then the first of its requests when it runs alone."""
    faults = Faults([Fault(point=point, phase=phase, first=2, count=2)])
    with faulty(tiny_llama, faults, POLICIES[name](), monkeypatch) as llm:
        answers = answer(llm, PROMPTS)
        again = answer(llm, PROMPTS)
        assert_nothing_left(llm)
        llm._core._loop.post(lambda scheduler, now: scheduler.check_integrity()).result(timeout=60)
    assert not faults.unstruck
    wanted = [list(output.token_ids) for output in plain.generate([list(ids) for ids in PROMPTS], PARAMS)]
    failed = [number for number, (_, reason) in enumerate(answers) if reason == "error"]
    assert len(failed) == 1
    assert [tokens for tokens, reason in answers if reason == "length"] == [
        tokens for number, tokens in enumerate(wanted) if number not in failed
    ]
    assert again == [(tokens, "length") for tokens in wanted]


def answer(llm: LLM, prompts: Sequence[tuple[int, ...]]) -> list[tuple[list[int], str]]:
    """Tokens and how it ended, of all prompts at once."""
    inbox: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    for index, prompt in enumerate(prompts):

        def put(item: Any, index: int = index) -> None:
            inbox.put((index, item))

        llm._core.submit(GenerateRequest(f"{index}", prompt, PARAMS), put, put)
    answers: list[tuple[list[int], str]] = [([], "") for _ in prompts]
    while not all(reason for _, reason in answers):
        index, delta = inbox.get(timeout=60)
        answers[index] = ([*answers[index][0], *delta.token_ids], delta.finish_reason or "")
    return answers


class Stream(NamedTuple):
    """One request of a storm."""

    prompt: tuple[int, ...]
    tokens: list[int]
    ends: list[str]


BEGUN = "begun"
"""Some layers of a chunk are computed, or the last are under way."""


class Storm:
    """Requests come and go without end; aborts strike them in a given state, between two steps."""

    def __init__(self, llm: LLM, seed: int) -> None:
        self._core = llm._core
        self._lot = random.Random(seed)
        self.streams: dict[str, Stream] = {}
        self.aborted: set[str] = set()
        self.struck: Counter[str] = Counter()

    def ask(self) -> None:
        lot, name = self._lot, f"s{len(self.streams)}"
        shared = SHARED[: lot.choice((0, 0, 16, 40))]
        stream = Stream((*shared, *lot.choices(range(256), k=lot.randint(1, 50))), [], [])
        self.streams[name] = stream

        def take(delta: Delta) -> None:
            stream.tokens.extend(delta.token_ids)
            if delta.finish_reason is not None:
                stream.ends.append(delta.finish_reason.value)

        self._core.submit(GenerateRequest(name, stream.prompt, PARAMS), take, take_error)

    def strike(self, state: str) -> None:
        """Abort one that is in this state, if there is any."""
        name = self._core._loop.post(lambda scheduler, now: self._strike(scheduler, now, state)).result(60)
        if name is not None:
            self.aborted.add(name)
            self.struck[state] += 1

    def _strike(self, scheduler: Scheduler, now: float, state: str) -> str | None:
        scheduler.check_integrity()
        waiting = [entry.request.request_id for entry in scheduler._waiting]
        running = [
            (entry.request.request_id, BEGUN if entry.begun else entry.lane or "between")
            for entry in scheduler._running
        ]
        names = waiting if state == "waiting" else [name for name, lane in running if lane == state]
        if not names:
            return None
        name = self._lot.choice(names)
        self._core._abort(name, now)
        scheduler.check_integrity()
        return name

    def wait(self) -> None:
        """Until none is left."""
        for _ in range(100_000):
            if not self._core._loop.post(lambda scheduler, now: scheduler.has_unfinished).result(60):
                return
        raise AssertionError("some request never ends")


def take_error(error: Exception) -> None:
    raise AssertionError("a request of the storm was refused") from error


LANES = {
    "mixed:8": (MIXED,),
    "layered": (MIXED, BEGUN),
    "prefill-first": (MIXED,),
    "static:50/50": (PREFILL, DECODE),
    "static:100/100": (PREFILL, DECODE),
    "restless": (MIXED, PREFILL, DECODE),
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(name, options, id=f"{name}-{size}")
        for name in LANES
        for size, options in (("roomy", {}), ("tight", TIGHT))
        if (name, size) != ("layered", "tight")  # there, hardly anything is ever begun
    ],
)
def test_aborts_in_every_state_harm_nobody_else(
    tiny_llama: Path, plain: LLM, name: str, options: dict[str, Any]
) -> None:
    states = ("waiting", "between", *LANES[name])
    with with_policy(tiny_llama, POLICIES[name](), **options) as llm:
        storm = Storm(llm, seed=3)
        for number in range(1500):
            if number % 3 == 0 and len(storm.streams) < 120:
                storm.ask()
            if all(storm.struck[state] >= 3 for state in states):
                break
            if len(storm.aborted) < len(storm.streams) // 2:
                storm.strike(min(states, key=lambda state: storm.struck[state]))
        storm.wait()
        assert_nothing_left(llm)
    assert all(storm.struck[state] >= 3 for state in states), storm.struck
    kept = [stream for key, stream in storm.streams.items() if key not in storm.aborted]
    assert len(kept) >= len(storm.streams) // 2
    wanted = plain.generate([list(stream.prompt) for stream in kept], PARAMS)
    assert [stream.tokens for stream in kept] == [list(output.token_ids) for output in wanted]
    assert all(stream.ends == ["length"] for stream in kept)


def test_what_layers_left_goes_with_its_request(tiny_llama: Path) -> None:
    """Nobody keeps the tensors of an aborted chunk, though no other step follows."""
    with with_policy(tiny_llama, Layered()) as llm:
        core = llm._core

        def strike(scheduler: Scheduler, now: float) -> weakref.ref[Any] | None:
            begun = next((entry for entry in scheduler._running if entry.begun is not None), None)
            if begun is None or begun.begun is None:
                return None
            carry: Any = begun.begun.carry
            left = weakref.ref(carry.x_ND)
            for name in list(core._sinks):
                core._abort(name, now)
            return left

        heard: queue.SimpleQueue[Delta] = queue.SimpleQueue()
        params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
        core.submit(GenerateRequest("stream", (1, 2, 3), params), heard.put, take_error)
        heard.get(timeout=60)
        for number in range(40):  # one of which is met between its layers
            prompt = tuple(random.Random(number).choices(range(256), k=50))
            core.submit(GenerateRequest(f"long-{number}", prompt, params), heard.put, take_error)
        struck = next(filter(None, (core._loop.post(strike).result(60) for _ in range(5000))))
        assert_nothing_left(llm)
        assert all(core._loop.post(lambda scheduler, now: True).result(60) for _ in range(20))
        assert struck() is None


# -- tiers below ---------------------------------------------------------------------------------------------


def conversation(llm: LLM) -> list[list[int]]:
    """Four programs that take turns, all at once in every round; every answer."""
    histories = [[10 + index] * 30 for index in range(4)]
    answers: list[list[int]] = []
    for number in range(4):
        said = one_round(llm, number, histories)
        answers += said
        for index, history in enumerate(histories):
            history += [*said[index], 100 + number, 50 + index, 60, 61, 62]
    return answers


def one_round(llm: LLM, number: int, histories: list[list[int]]) -> list[list[int]]:
    inbox: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    for index, history in enumerate(histories):

        def put(item: Any, index: int = index) -> None:
            inbox.put((index, item))

        program = ProgramRef(owner="o", program=str(index))
        request = GenerateRequest(f"{index}-{number}", tuple(history), params, program=program)
        llm._core.submit(request, put, put)
    said: list[list[int]] = [[] for _ in histories]
    left = len(histories)
    while left:
        index, delta = inbox.get(timeout=60)
        said[index] += delta.token_ids
        left -= delta.finish_reason is not None
    return said


def test_blocks_from_a_tier_below_are_the_same(
    tiny_llama: Path, tmp_path: Path, plain: LLM, policy: Phases, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool of 44 blocks, and a disk that is asked whenever it has anything."""
    monkeypatch.setattr("braid.policy.agents.costs.LearntCosts.reload_s", lambda self, num_blocks: 0.0)
    short = {"kv_cache_memory": 44 * BLOCK_BYTES, "max_model_len": 160, "max_num_seqs": 4}
    with with_policy(tiny_llama, policy, **short, kv_disk=1 << 20, kv_disk_path=str(tmp_path)) as llm:
        assert conversation(llm) == conversation(plain)
        assert_nothing_left(llm)
        assert llm.stats().tiers["disk"]["failed"] == 0
        assert llm.stats().tiers["disk"]["loaded"] > 0
