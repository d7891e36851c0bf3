"""Constraints to grammars: what is refused and how, what it may cost, what is kept."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest

from braid.core.constraint import Constraint, ConstraintKind
from braid.core.errors import BraidError, EngineDeadError, InvalidParameterError, OverloadedError
from braid.engine import guidance
from braid.engine.grammar import MAX_QUEUED, OWN_SHARE, Grammar, GrammarCache, Grammars, estimate_bytes
from braid.engine.guidance import Vocabulary
from braid.engine.rehearsal import Rehearsal

from .conftest import SMALL

SIZE = 270
END = frozenset({257, 258})


def vocabulary() -> Vocabulary:
    """All bytes, a begin token, two end tokens, and ids of the model that stand for nothing."""
    tokens = [bytes([byte]) for byte in range(256)] + [b"<|begin|>", b"<|im_end|>", b"<|end|>"]
    tokens += [b""] * (SIZE - len(tokens))
    return Vocabulary(tokens, frozenset({256}), END, lambda text: list(text.encode()))


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    made = Grammars(vocabulary)
    yield made
    made.close()


def constraint(kind: str, source: object) -> Constraint:
    text = source if isinstance(source, str) else json.dumps(source)
    return Constraint(kind=ConstraintKind(kind), source=text, param="response_format")


def build(grammars: Grammars, kind: str, source: object) -> Grammar:
    return grammars.compile(constraint(kind, source)).result(60)


def allowed(matcher) -> set[int]:  # type: ignore[no-untyped-def]
    bits = np.unpackbits(np.frombuffer(matcher.allowed(), np.uint8), bitorder="little")
    return {int(id) for id in bits.nonzero()[0]}


def test_a_matcher_follows_its_grammar_to_any_end_token(grammars: Grammars) -> None:
    matcher = build(grammars, "regex", "a[0-9]").start()
    assert allowed(matcher) == {ord("a")}
    matcher.consume(ord("a"))
    assert allowed(matcher) == set(b"0123456789")
    matcher.consume(ord("4"))
    assert allowed(matcher) == END


def test_where_the_output_may_end_or_go_on_both_are_allowed(grammars: Grammars) -> None:
    matcher = build(grammars, "regex", "a+").start()
    matcher.consume(ord("a"))
    assert allowed(matcher) == {ord("a")} | END


def test_ids_beyond_the_tokenizer_are_never_allowed(grammars: Grammars) -> None:
    matcher = build(grammars, "lark", "start: /(.|\\n)*/ | <[259-269]> | <[^0]>").start()
    assert max(allowed(matcher)) == 258


def test_a_token_against_the_grammar_is_an_error(grammars: Grammars) -> None:
    matcher = build(grammars, "regex", "a[0-9]").start()
    matcher.consume(ord("a"))
    with pytest.raises(BraidError, match="as response_format demands"):
        matcher.consume(ord("x"))


@pytest.mark.parametrize(
    "encode", [lambda text: [], lambda text: list(f" {text}".encode()), lambda text: [999]]
)
def test_a_tokenizer_that_changes_text_is_not_trusted(encode) -> None:  # type: ignore[no-untyped-def]
    grammars = Grammars(lambda: vocabulary()._replace(encode=encode))
    matcher = build(grammars, "regex", "once").start()
    for byte in b"once":
        assert allowed(matcher) == {byte}
        matcher.consume(byte)
    grammars.close()


def test_matchers_of_one_grammar_are_independent(grammars: Grammars) -> None:
    grammar = build(grammars, "regex", "(ab)+")
    first, second = grammar.start(), grammar.start()
    first.consume(ord("a"))
    assert allowed(first) == {ord("b")}
    assert allowed(second) == {ord("a")}


TOOL_CALL = """
start: TEXT | TEXT? call+ <|im_end|>
TEXT: /[^<]+/
call: "<tool_call>" %json {"type": "object", "properties": {"name": {"const": "look"}}, "required": ["name"],
  "additionalProperties": false} "</tool_call>"
"""


@pytest.mark.parametrize("end", ["<|im_end|>", "<[257]>"])
def test_lark_grammars_name_special_tokens_and_hold_schemas(grammars: Grammars, end: str) -> None:
    matcher = build(grammars, "lark", TOOL_CALL.replace("<|im_end|>", end)).start()
    for byte in b'<tool_call>{"name": "look"}</tool_call>':
        assert byte in allowed(matcher)
        matcher.consume(byte)
    assert allowed(matcher) == {ord("<"), 257}
    matcher.consume(257)
    assert allowed(matcher) == END


def test_special_tokens_are_not_spelled_out(grammars: Grammars) -> None:
    matcher = build(grammars, "lark", 'start: "x" <|im_end|> "y"').start()
    matcher.consume(ord("x"))
    assert allowed(matcher) == {257}


# -- what is refused ---------------------------------------------------------------------------------------

WRONG = [
    ("regex", "a(?=b)", "look-around"),
    ("regex", "(?<=a)b", "look-around"),
    ("regex", "(unclosed", "unclosed"),
    ("regex", "(" * 3000 + "a" + ")" * 3000, ""),
    ("json_schema", {"not": {"type": "string"}}, "not"),
    ("json_schema", {"type": "string", "format": "nonsense"}, "Unknown format"),
    ("json_schema", '{"type":', ""),
    ("json_schema", '"text"', ""),
    ("json_schema", {"$ref": "#"}, "no output"),
    ("json_schema", {"$ref": "https://example.com/schema"}, ""),
    ("json_schema", {"type": "string", "pattern": "a(?!b)"}, ""),
    ("json_schema", '{"items":' * 5000 + "{}" + "}" * 5000, "recursion limit"),
    ("lark", "start: missing", "missing"),
    ("lark", "start: <|nobody|>", "nobody"),
    ("lark", "start: " + "(" * 20_000 + '"a"' + ")" * 20_000, "deeply nested"),
]


@pytest.mark.parametrize(("kind", "source", "words"), WRONG)
def test_what_cannot_be_enforced_is_refused_in_short(
    grammars: Grammars, kind: str, source: object, words: str
) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        build(grammars, kind, source)
    assert caught.value.param == "response_format"
    text = str(caught.value)
    assert words in text
    assert len(text) < 350
    assert "\n" not in text


def test_an_error_does_not_repeat_the_source(grammars: Grammars) -> None:
    secret = "customer-4711-has-a-very-private-diagnosis"
    for kind, source in (
        ("regex", f"({secret}(?=x)"),
        ("json_schema", {"type": "string", "pattern": f"{secret}(?=x)"}),
        ("json_schema", {"type": "object", "properties": {secret: {"not": {}}}}),
        ("lark", f'start: "{secret}" nothing'),
    ):
        with pytest.raises(InvalidParameterError) as caught:
            build(grammars, kind, source)
        assert "diagnosis" not in str(caught.value)


HOSTILE = [
    ("regex", "(a+)+b"),
    ("regex", "(a|b)*a(a|b){25}"),
    ("regex", "((a{1,1000}){1,1000}){1,1000}"),
    ("regex", "(.*a){30}.*"),
    ("regex", ".{0,5000}a.{0,5000}b"),
    ("regex", "(a?){3000}a{3000}"),
    ("regex", "|".join(f"{index:x}.*" for index in range(20_000))),
    ("json_schema", {"type": "array", "minItems": 10**9, "items": {"type": "integer"}}),
    ("json_schema", {"type": "string", "maxLength": 10**9}),
    ("json_schema", {"$defs": {"n": {"type": "array", "items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"}),
    ("json_schema", {"type": "object", "properties": {f"p{index}": {} for index in range(9_000)}}),
    ("json_schema", {"allOf": [{"anyOf": [{"minLength": i}, {"maxLength": 99 + i}]} for i in range(40)]}),
    ("lark", "start: s\ns: s s s | s s | " + " | ".join(f'"{letter}"' for letter in "abcdef") + ' | ""'),
    ("lark", 'start: ("a"{1,1000}){1,1000}'),
    ("json_schema", {"enum": [f"{index:x}" for index in range(27_000)]}),
    ("lark", "start: (" + " | ".join(f"T{i}" for i in range(900)) + ")*\n"
     + "\n".join(f"T{i}: /.*x{i}[a-f]*/" for i in range(900))),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "source"), HOSTILE)
def test_hostile_constraints_are_refused_or_bounded(grammars: Grammars, kind: str, source: object) -> None:
    """Whatever is accepted can be followed for a while, or says that it cannot."""
    with contextlib.suppress(BraidError):
        matcher = build(grammars, kind, source).start()
        for _ in range(40):
            choices = sorted(allowed(matcher) - END)
            if not choices:
                break
            matcher.consume(choices[0])
    assert allowed(build(grammars, "regex", "b").start()) == {ord("b")}


def short(number: int) -> str:
    """A rule's name in four letters."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    return "r" + "".join(letters[number // 36**place % 36] for place in range(3))


KILLERS = {
    "a chain of rules that overflows the stack": "\n".join(
        f"{short(i)}:{short(i + 1)}" for i in range(25_500)
    ).replace(short(0), "start", 1)
    + f'\n{short(25_500)}:"a"',
    "intersections that take for ever": "start: A\nA: " + " & ".join(f"/.*{i}.*/" for i in range(250)),
}


@pytest.mark.parametrize("name", KILLERS)
def test_a_constraint_that_kills_the_compiler_harms_nobody(name: str) -> None:
    grammars = Grammars(vocabulary)
    try:
        with pytest.raises(InvalidParameterError, match="response_format cannot be enforced"):
            build(grammars, "lark", KILLERS[name])
        assert allowed(build(grammars, "regex", "b").start()) == {ord("b")}
    finally:
        grammars.close()


def test_time_is_bounded_by_killing_the_process() -> None:
    rehearsal = Rehearsal(vocabulary(), seconds=0.0)
    with pytest.raises(InvalidParameterError, match="too much time"):
        rehearsal.check(constraint("lark", KILLERS["intersections that take for ever"]))
    assert rehearsal._process is None
    rehearsal.close()
    with pytest.raises(BraidError, match="closed"):
        rehearsal.check(constraint("regex", "a"))


def test_a_process_that_was_killed_between_two_constraints_is_replaced() -> None:
    rehearsal = Rehearsal(vocabulary())
    rehearsal.check(constraint("regex", "a"))
    first = rehearsal._process
    assert first is not None
    first.kill()
    first.wait()
    rehearsal.check(constraint("regex", "a"))
    assert rehearsal._process is not first
    rehearsal.close()


def test_an_answer_that_is_none_does_not_stand_for_the_next_constraint() -> None:
    """Whatever a library prints comes between question and answer: nothing read after it could be trusted."""
    rehearsal = Rehearsal(vocabulary())
    rehearsal.check(constraint("regex", "a"))
    first = rehearsal._process
    rehearsal._lines.put(b"warning: something\n")
    with pytest.raises(InvalidParameterError):
        rehearsal.check(constraint("regex", "b"))
    rehearsal.check(constraint("regex", "c"))
    assert rehearsal._process is not first
    rehearsal.close()


def test_a_panic_while_compiling_is_one_requests_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        pass

    grammars = Grammars(vocabulary)
    build(grammars, "regex", "before")

    def panic(*args: object) -> None:
        raise Panic("injected")

    with monkeypatch.context() as patch:
        patch.setattr(guidance, "compile_constraint", panic)
        with pytest.raises(BraidError, match="could not be compiled"):
            build(grammars, "regex", "during")
    build(grammars, "regex", "during")
    grammars.close()


def test_a_vocabulary_without_an_end_is_refused() -> None:
    grammars = Grammars(lambda: vocabulary()._replace(end=frozenset()))
    with pytest.raises(InvalidParameterError, match="no end token"):
        build(grammars, "regex", "a")
    grammars.close()


def test_a_tokenizer_that_cannot_be_read_is_told() -> None:
    def broken() -> Vocabulary:
        raise RuntimeError("injected")

    grammars = Grammars(broken)
    with pytest.raises(BraidError, match="could not be compiled"):
        build(grammars, "regex", "a")
    grammars.close()


# -- what is kept ------------------------------------------------------------------------------------------


def test_equal_constraints_are_compiled_once(grammars: Grammars) -> None:
    wanted = constraint("regex", "once")
    futures = [grammars.compile(wanted) for _ in range(5)]
    assert len({id(future.result(60)) for future in futures}) == 1
    assert grammars.compile(wanted).done()


def test_the_cache_forgets_the_least_recently_used() -> None:
    cache = GrammarCache(max_bytes=100)
    values = {name: object() for name in "abcd"}
    for name in "abc":
        cache.put(name.encode(), values[name], 33)  # type: ignore[arg-type]
    assert cache.get(b"a") is values["a"]
    cache.put(b"d", values["d"], 33)  # type: ignore[arg-type]
    assert cache.get(b"b") is None
    assert cache.get(b"a") is values["a"]
    assert (len(cache), cache.num_bytes) == (3, 99)
    cache.put(b"e", values["a"], 101)  # type: ignore[arg-type]
    assert cache.get(b"e") is None
    assert cache.num_bytes == 99


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def follow_different(grammars: Grammars, numbers: range) -> None:
    """Compile a different schema for each number, use it a little, and forget it."""
    for number in numbers:
        names = [f"field_{number}_{index}" for index in range(10)]
        properties = {name: {"type": "string", "pattern": f"^[a-z]{{1,{number % 9 + 1}}}$"} for name in names}
        schema = {"type": "object", "properties": properties, "required": names[:5]}
        matcher = build(grammars, "json_schema", schema).start()
        for _ in range(3):
            matcher.consume(min(allowed(matcher) - END))


def check_memory(count: int) -> None:
    grammars = Grammars(vocabulary, cache_bytes=4 << 20)
    follow_different(grammars, range(100))
    before = resident_bytes()
    follow_different(grammars, range(100, count))
    assert grammars.cache.num_bytes <= 4 << 20
    assert len(grammars.cache) < 20
    assert resident_bytes() - before < 24 << 20
    grammars.close()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_different_schemas_do_not_pile_up() -> None:
    check_memory(600)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ten_thousand_different_schemas_do_not_pile_up() -> None:
    check_memory(10_000)


def test_the_estimate_grows_with_the_source_and_with_classes() -> None:
    small, large = constraint("regex", "a"), constraint("regex", "a" * 1000)
    assert estimate_bytes(small) < estimate_bytes(large)
    assert estimate_bytes(constraint("regex", r"\w")) > estimate_bytes(small) + 500_000


# -- waiting, losing interest, closing ---------------------------------------------------------------------


class Gate:
    """A vocabulary that is not ready before the gate opens."""

    def __init__(self) -> None:
        self.open = Event()

    def __call__(self) -> Vocabulary:
        assert self.open.wait(60)
        return vocabulary()


def test_the_caller_never_waits_and_the_queue_is_bounded() -> None:
    gate = Gate()
    grammars = Grammars(gate)
    waiting = [grammars.compile(constraint("regex", f"a{index}")) for index in range(MAX_QUEUED)]
    grammars.compile(constraint("regex", "a1"))
    with pytest.raises(OverloadedError, match="wait to be compiled"):
        grammars.compile(constraint("regex", "one too many"))
    for future in waiting[1:]:
        future.cancel()
    gate.open.set()
    assert allowed(waiting[0].result(60).start()) == {ord("a")}
    grammars.close()


def test_owners_take_turns_and_have_shares() -> None:
    """One owner's constraints, however many and slow, are no queue for another's."""
    gate = Gate()
    grammars = Grammars(gate)
    done: list[str] = []

    def ask(owner: str, source: str) -> Future[Grammar]:
        future = grammars.compile(constraint("regex", source), owner)
        future.add_done_callback(lambda _: done.append(owner + source))
        return future

    first = [ask("a", f"a{index}") for index in range(MAX_QUEUED // OWN_SHARE)]
    with pytest.raises(OverloadedError, match="wait to be compiled"):
        ask("a", "one too many")
    others = [ask("b", "a0"), ask("c", "c")]
    gate.open.set()
    for future in [*first, *others]:
        future.result(60)
    assert {"ba0", "cc"} <= set(done[:4])
    assert len(grammars.cache) == len(first) + 1
    grammars.close()


def test_what_nobody_wants_any_more_is_not_compiled() -> None:
    gate = Gate()
    grammars = Grammars(gate)
    first = grammars.compile(constraint("regex", "first"))
    dropped = grammars.compile(constraint("regex", "dropped"))
    last = grammars.compile(constraint("regex", "last"))
    assert dropped.cancel()
    gate.open.set()
    first.result(60), last.result(60)
    assert len(grammars.cache) == 2
    assert not grammars._jobs
    again = grammars.compile(constraint("regex", "dropped"))
    assert isinstance(again.result(60), Grammar)
    grammars.close()


def test_closing_tells_those_who_wait() -> None:
    gate = Gate()
    grammars = Grammars(gate)
    futures: list[Future[Grammar]] = [grammars.compile(constraint("regex", f"{index}")) for index in range(3)]
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(grammars.close)
        for future in futures:
            with pytest.raises(EngineDeadError):
                future.result(60)
        gate.open.set()
        closing.result(60)
    with pytest.raises(EngineDeadError):
        grammars.compile(constraint("regex", "late"))


# -- where llguidance is not installed ---------------------------------------------------------------------

WITHOUT = """
import sys

looked_for = []

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "llguidance":
            looked_for.append(name)
            raise ModuleNotFoundError("not installed here", name=name)

sys.meta_path.insert(0, Blocker())
from braid import LLM, SamplingParams
from braid.core.constraint import Constraint, ConstraintKind
from braid.core.errors import InvalidParameterError

constraint = Constraint(kind=ConstraintKind.REGEX, source="a")
with LLM({model!r}, **{options!r}) as llm:
    llm.generate("Hello", SamplingParams(max_tokens=2))
    assert not looked_for, "it would be loaded without a constraint"
    assert llm._core._grammars._thread is None
    try:
        llm.generate("Hello", SamplingParams(constraint=constraint))
    except InvalidParameterError as error:
        print(error.param, error)
    assert looked_for
    print(len(llm.generate("Hello", SamplingParams(max_tokens=5, ignore_eos=True))[0].token_ids))
"""


def test_only_constraints_load_llguidance_and_without_it_everything_else_works(tiny_llama: Path) -> None:
    script = textwrap.dedent(WITHOUT).format(model=str(tiny_llama), options=SMALL)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("response_format ")
    assert "pip install 'llguidance" in first
    assert second == "5"


def test_limits_are_those_that_llguidance_knows() -> None:
    import llguidance

    limits = llguidance.LLParserLimits(**guidance.LIMITS)  # type: ignore[arg-type]
    assert {name: getattr(limits, name) for name in guidance.LIMITS} == dict(guidance.LIMITS)
