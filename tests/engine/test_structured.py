"""Outputs of a model that knows nothing are held to schemas, regular expressions and grammars, in any company."""

from __future__ import annotations

import json
import queue
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from braid import LLM, SamplingParams
from braid.core.constraint import Constraint, ConstraintKind
from braid.core.errors import BraidError, InvalidParameterError
from braid.core.request import Delta
from braid.engine.protocol import GenerateRequest
from braid.runner.constraint import Masks

from .conftest import assert_nothing_left, small_llm

TIGHT = 40 * 4 * 2 * 2 * 64 * 4
COMPACT = {"x-guidance": {"whitespace_flexible": False}}
"""A model that knows nothing would write blanks for ever where it may."""
WORD = {"type": "string", "maxLength": 5}
AGE = {"type": "integer", "minimum": 0, "maximum": 120}


def closed(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS: list[dict[str, Any]] = [
    closed(name=WORD, age=AGE),
    closed(a=closed(b=closed(c={"type": "boolean"}))),
    {"type": "array", "items": AGE, "minItems": 1, "maxItems": 4},
    {"type": "array", "items": {"enum": ["x", "y"]}, "minItems": 3, "maxItems": 3},
    {"enum": ["red", "green", "blue", 7, None, True]},
    {"const": {"fixed": [1, 2, "three"]}},
    {"type": "boolean"},
    {"type": "null"},
    AGE,
    {"type": "number", "minimum": -1, "maximum": 1, "multipleOf": 0.25},
    WORD,
    {"type": "string", "minLength": 3, "maxLength": 3},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    {"type": "string", "format": "ipv4"},
    {"type": "string", "format": "uuid"},
    {"anyOf": [AGE, closed(kind={"const": "a"}, size=AGE), {"type": "null"}]},
    {"type": "object", "properties": {"a": AGE, "b": WORD}, "additionalProperties": False},
    {
        "$defs": {"point": closed(x=AGE, y=AGE)},
        "type": "array",
        "items": {"$ref": "#/$defs/point"},
        "maxItems": 2,
    },
    {"type": "array", "prefixItems": [AGE, {"type": "boolean"}], "items": False, "minItems": 2},
    {"allOf": [{"type": "integer", "minimum": 5}, {"maximum": 9}]},
    closed(tool={"enum": ["read", "write"]}, path={"type": "string", "pattern": "^/[a-z]{1,6}$"}),
]
REGEXES = [
    r"[0-9]{4}-[0-9]{2}",
    r"(yes|no|maybe)",
    r"a{2,5}b?",
    r"[^a-z]{6}",
    r"(\(\d{3}\) )?\d{3}-\d{4}",
    r"[α-ω]{3}",
    r"x",
]
TOOLS = """
start: (TEXT call | call) <|im_end|>
TEXT: /[a-z ]{0,8}/
call: "<tool>" %json {"type": "object", "properties": {"n": {"type": "integer", "maximum": 99, "minimum": 0}},
  "required": ["n"], "additionalProperties": false, "x-guidance": {"whitespace_flexible": false}} "</tool>"
"""


def schema(source: dict[str, Any]) -> Constraint:
    return Constraint(kind=ConstraintKind.JSON_SCHEMA, source=json.dumps(source | COMPACT))


def regex(source: str) -> Constraint:
    return Constraint(kind=ConstraintKind.REGEX, source=source)


def lark(source: str) -> Constraint:
    return Constraint(kind=ConstraintKind.LARK, source=source)


ALL = [schema(source) for source in SCHEMAS] + [regex(source) for source in REGEXES] + [lark(TOOLS)]
GREEDY = {"temperature": 0}
SEEDED = {"temperature": 1.3, "seed": 11, "top_p": 0.95}


def params(constraint: Constraint | None, **options: Any) -> SamplingParams:
    return SamplingParams(constraint=constraint, **({"max_tokens": 110} | options))


def check(constraint: Constraint, text: str) -> None:
    if constraint.kind is ConstraintKind.JSON_SCHEMA:
        jsonschema.Draft202012Validator(
            json.loads(constraint.source), format_checker=jsonschema.FormatChecker()
        ).validate(json.loads(text))
    elif constraint.kind is ConstraintKind.REGEX:
        assert re.fullmatch(constraint.source, text), (constraint.source, text)
    else:
        assert re.fullmatch(r'[a-z ]{0,8}<tool>\{"n":\d{1,2}\}</tool>', text), text


class LateWorker:
    """Computes masks only every ``every``-th time that somebody waits for one."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._jobs: deque[Callable[[], None]] = deque()
        self.asked = 0

    def submit(self, job: Callable[[], None], cost: float = 0.0) -> None:
        self._jobs.append(job)

    def wait(self, done: Callable[[], bool], seconds: float) -> None:
        self.asked += 1
        if self.asked % self._every == 0:
            while self._jobs:
                self._jobs.popleft()()

    def replace(self) -> None:
        raise AssertionError("no mask runs here")

    def close(self) -> None:
        self._jobs.clear()


@pytest.fixture(scope="module")
def engine(tiny_llama: Path) -> Iterator[LLM]:
    with small_llm(tiny_llama) as made:
        yield made


@pytest.fixture(autouse=True)
def nothing_left(engine: LLM) -> Iterator[None]:
    yield
    assert_nothing_left(engine)
    assert len(engine._core.runner.masks) == 0
    assert not engine._core._compiling


@pytest.fixture(scope="module")
def alone(engine: LLM) -> dict[str, list[tuple[int, ...]]]:
    """Every constraint's output when nothing else runs, greedy and seeded."""
    return {
        name: [engine.generate(f"Item {i}", params(c, **options))[0].token_ids for i, c in enumerate(ALL)]
        for name, options in (("greedy", GREEDY), ("seeded", SEEDED))
    }


def generate(llm: LLM, options: dict[str, Any]) -> list[tuple[int, ...]]:
    prompts = [f"Item {index}" for index in range(len(ALL))]
    return [output.token_ids for output in llm.generate(prompts, [params(c, **options) for c in ALL])]


@pytest.mark.parametrize("options", [GREEDY, SEEDED, {"temperature": 2.0, "seed": 3, "top_k": 40}])
def test_outputs_always_validate(engine: LLM, options: dict[str, Any]) -> None:
    prompts = [f"Item {index}" for index in range(len(ALL))]
    outputs = engine.generate(prompts, [params(constraint, **options) for constraint in ALL])
    for constraint, output in zip(ALL, outputs, strict=True):
        assert output.finish_reason == "stop", (constraint.source, output.text)
        check(constraint, output.text)


@pytest.mark.parametrize("name", ["greedy", "seeded"])
def test_outputs_do_not_depend_on_company(
    engine: LLM, alone: dict[str, list[tuple[int, ...]]], name: str
) -> None:
    assert generate(engine, GREEDY if name == "greedy" else SEEDED) == alone[name]


def test_outputs_survive_preemption(tiny_llama: Path, engine: LLM) -> None:
    prompts = [[index + 1] * 20 for index in range(6)]
    wanted = [params(regex(f"([a-f]{{2}} ?){{2{index},40}}"), **SEEDED, max_tokens=60) for index in range(6)]
    expected = [engine.generate([p], [w])[0].token_ids for p, w in zip(prompts, wanted, strict=True)]
    with small_llm(tiny_llama, kv_cache_memory=TIGHT, max_model_len=120, max_num_batched_tokens=24) as tight:
        outputs = tight.generate(prompts, wanted)
        assert tight.stats().num_preemptions > 0
        assert_nothing_left(tight)
    assert [output.token_ids for output in outputs] == expected


@pytest.mark.parametrize("every", [2, 5])
def test_outputs_survive_late_masks(
    tiny_llama: Path, alone: dict[str, list[tuple[int, ...]]], every: int
) -> None:
    worker = LateWorker(every)
    with small_llm(tiny_llama) as late:
        late._core.runner.masks = Masks(torch.device("cpu"), worker=worker)
        assert generate(late, GREEDY) == alone["greedy"]
        steps = late.stats().num_steps
        assert_nothing_left(late)
    assert worker.asked > steps / 2


def test_others_keep_their_tokens_beside_constraints_and_late_masks(tiny_llama: Path, engine: LLM) -> None:
    free = [params(None, **options, max_tokens=40, ignore_eos=True) for options in (GREEDY, SEEDED)] * 2
    prompts = [f"Free {index}" for index in range(len(free))]
    expected = [output.token_ids for output in engine.generate(prompts, free)]
    with small_llm(tiny_llama) as late:
        late._core.runner.masks = Masks(torch.device("cpu"), worker=LateWorker(3))
        held = [params(constraint, **SEEDED) for constraint in ALL[:4]]
        outputs = late.generate([*prompts, *["Held"] * 4], [*free, *held])
        assert [output.token_ids for output in outputs[:4]] == expected
        for constraint, output in zip(ALL, outputs[4:], strict=False):
            check(constraint, output.text)


def test_the_grammar_wins_over_ignore_eos_and_min_tokens(engine: LLM) -> None:
    for options in ({"ignore_eos": True}, {"min_tokens": 50}):
        output = engine.generate("Say", params(regex("ab{3}"), temperature=0, **options))[0]
        assert (output.text, output.finish_reason) == ("abbb", "stop")


def test_min_tokens_and_ignore_eos_lengthen_what_the_grammar_leaves_open(engine: LLM) -> None:
    short = regex("a{1,30}")
    greedy = len(engine.generate("Say", params(short, temperature=0, logit_bias={258: 100.0}))[0].text)
    least = len(
        engine.generate("Say", params(short, temperature=0, logit_bias={258: 100.0}, min_tokens=7))[0].text
    )
    most = len(
        engine.generate("Say", params(short, temperature=0, logit_bias={258: 100.0}, ignore_eos=True))[0].text
    )
    assert (greedy, least, most) == (1, 7, 30)


def test_max_tokens_ends_an_output_before_its_grammar(engine: LLM) -> None:
    output = engine.generate("Say", params(regex("a{50}"), temperature=0, max_tokens=20))[0]
    assert (output.text, output.finish_reason) == ("a" * 20, "length")


def test_penalties_and_logprobs_go_with_a_constraint(engine: LLM) -> None:
    wanted = params(regex("[ab]{12}"), temperature=0, repetition_penalty=1.5, logprobs=3)
    output = engine.generate("Say", wanted)[0]
    assert re.fullmatch("[ab]{12}", output.text)
    assert output.logprobs is not None
    assert all(entry.logprob <= 0 and len(entry.top) == 3 for entry in output.logprobs)
    assert any(entry.rank > 1 for entry in output.logprobs)


def test_prompt_logprobs_go_with_late_masks(tiny_llama: Path, engine: LLM) -> None:
    """The first token of the output is deferred while the prompt has already been weighed."""
    prompt = tuple(range(1, 10))
    wanted = params(regex("ab"), temperature=0, prompt_logprobs=1)
    with small_llm(tiny_llama) as late:
        late._core.runner.masks = Masks(torch.device("cpu"), worker=LateWorker(4))
        deltas = run(late, [GenerateRequest("weighed", prompt, wanted)])["weighed"]
    expected = run(engine, [GenerateRequest("weighed", prompt, wanted)])["weighed"]
    assert deltas[0].prompt_logprobs == expected[0].prompt_logprobs
    assert deltas[0].prompt_logprobs is not None


def run(llm: LLM, requests: Sequence[GenerateRequest]) -> dict[str, list[Delta]]:
    """Everything that comes of requests sent at once; refusals fail the test."""
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for request in requests:
        llm._core.submit(request, inbox.put, inbox.put)
    deltas: dict[str, list[Delta]] = {request.request_id: [] for request in requests}
    left = len(requests)
    while left:
        item = inbox.get(timeout=60)
        assert isinstance(item, Delta), item
        deltas[item.request_id].append(item)
        left -= item.finish_reason is not None
    return deltas


# -- what goes wrong ---------------------------------------------------------------------------------------


def test_a_refused_constraint_names_its_field(engine: LLM) -> None:
    wrong = Constraint(kind=ConstraintKind.REGEX, source="a(?=b)", param="guided_regex")
    with pytest.raises(InvalidParameterError, match="look-around") as caught:
        engine.generate("Say", params(wrong))
    assert caught.value.param == "guided_regex"


def test_a_grammar_that_fails_on_the_way_ends_its_request_alone(engine: LLM) -> None:
    ambiguous = lark('start: s\ns: s s s | s s | "a" | "b" | ""')
    requests = [
        GenerateRequest("bad", (1, 2), params(ambiguous, temperature=0, ignore_eos=True, max_tokens=240)),
        GenerateRequest("good", (1, 2), params(regex("[ab]{200}"), temperature=0, max_tokens=210)),
    ]
    alone = run(engine, requests[1:])["good"]
    outcome = run(engine, requests)
    bad, good = outcome["bad"][-1], outcome["good"]
    assert bad.finish_reason == "error"
    assert "response_format" in (bad.error or "")
    assert [delta.token_ids for delta in good] == [delta.token_ids for delta in alone]


def test_an_abort_while_compiling_leaves_nothing(engine: LLM) -> None:
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    big = schema(closed(**{f"field_{index}": WORD for index in range(400)}))
    for round in range(5):
        request = GenerateRequest(f"gone-{round}", (1, 2, 3), params(big))
        engine._core.submit(request, heard.put, heard.put)
        engine._core.abort(request.request_id)
        engine._core.submit(request._replace(params=params(regex("ab"))), heard.put, heard.put)
        while (item := heard.get(timeout=60)).finish_reason is None:
            assert isinstance(item, Delta)
        assert item.finish_reason == "stop"
    assert heard.empty()


def test_an_abort_in_mid_output_leaves_nothing(engine: LLM) -> None:
    first: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for round in range(3):
        request = GenerateRequest(f"half-{round}", (1, 2, 3), params(regex("a{200}"), max_tokens=200))
        engine._core.submit(request, first.put, first.put)
        assert isinstance(first.get(timeout=60), Delta)
        engine._core.abort(request.request_id)


def test_an_id_that_is_being_compiled_is_taken(engine: LLM) -> None:
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    request = GenerateRequest("twice", (1, 2), params(regex("taken"), temperature=0))
    engine._core.submit(request, lambda delta: None, heard.put)
    engine._core.submit(request, heard.put, heard.put)
    assert "already running" in str(heard.get(timeout=60))
    run(engine, [request._replace(request_id="other")])


def test_closing_the_engine_ends_every_thread_and_process(tiny_llama: Path) -> None:
    heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
    llm = small_llm(tiny_llama)
    llm.generate("Say", params(regex("ab")))
    child = llm._core._grammars._rehearsal._process  # type: ignore[union-attr]
    for index in range(3):
        wanted = params(regex(f"[a-f]{{100,{110 + index}}}"), ignore_eos=True)
        llm._core.submit(GenerateRequest(f"r{index}", (1, 2), wanted), lambda delta: None, heard.put)
    llm.close()
    assert all(isinstance(heard.get(timeout=60), BraidError) for _ in range(3))
    assert child.poll() is not None  # type: ignore[union-attr]
    assert len(llm._core.runner.masks) == 0
    assert not llm._core._grammars._thread.is_alive()  # type: ignore[union-attr]


# -- a real model ------------------------------------------------------------------------------------------


def test_the_default_model_fills_schemas_in() -> None:
    tags = {"type": "array", "items": WORD, "maxItems": 3}
    people = closed(name={"type": "string", "maxLength": 20}, age=AGE, tags=tags)
    wanted = [schema(people), regex(r"[A-Z][a-z]+, [A-Z][a-z]+"), schema(SCHEMAS[20])]
    with LLM(max_model_len=512, max_num_seqs=4) as llm:
        question = [{"role": "user", "content": "Describe a person called Alice."}]
        outputs = [llm.chat(question, params(c, temperature=0, max_tokens=120)) for c in wanted]
        assert len(llm._core.runner.masks) == 0
    for constraint, output in zip(wanted, outputs, strict=True):
        if output.finish_reason == "stop":
            check(constraint, output.text)
    assert [output.finish_reason for output in outputs].count("stop") >= 2
    assert json.loads(outputs[0].text)["name"]
