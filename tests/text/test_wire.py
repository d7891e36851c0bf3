"""Grammars: whatever they let a model write is read back as calls that fit the tools' schemas."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from braid.core.constraint import Constraint, ConstraintKind
from braid.core.errors import InvalidParameterError
from braid.text.format_data import by_name, formats
from braid.text.model_format import TemplateFormat
from braid.text.reply import CallArguments, CallEnd, CallStart, Content, Reasoning
from braid.text.tools import Tool, ToolChoice
from braid.text.wire import wire_of

WEATHER = Tool(
    name="get_weather",
    strict=True,
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 12},
            "unit": {"enum": ["C", "F"]},
            "days": {"type": "integer", "minimum": 0, "maximum": 99},
            "exact": {"type": "boolean"},
            "place": {"$ref": "#/$defs/place"},
        },
        "required": ["city", "unit", "place"],
        "additionalProperties": False,
        "$defs": {
            "place": {
                "type": "object",
                "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}},
                "required": ["x"],
                "additionalProperties": False,
            }
        },
    },
)
SHELL = Tool(
    name="bash",
    parameters={
        "type": "object",
        "properties": {"command": {"type": "string", "maxLength": 12}},
        "required": ["command"],
        "additionalProperties": False,
    },
)
TOOLS = (WEATHER, SHELL)
VALIDATORS = {tool.name: jsonschema.Draft202012Validator(tool.parameters) for tool in TOOLS}
SPECIAL = (
    "<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]",
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>",
    "<|channel|>", "<|message|>", "<|call|>", "<|end|>", "<|start|>", "<|constrain|>", "<|return|>",
)  # fmt: skip
EOS = 256
NAMES = [name for name, data in formats().items() if data.wire is not None]
ANSWER = Constraint(
    kind=ConstraintKind.JSON_SCHEMA,
    source='{"type":"object","properties":{"n":{"type":"integer","minimum":0,"maximum":9}},"required":["n"],'
    '"additionalProperties":false}',
)


class Vocabulary:
    """All bytes, an end token, and perhaps the markers as special tokens."""

    def __init__(self, special: Sequence[str]) -> None:
        self.special = tuple(special)
        self.tokens = (
            [bytes([byte]) for byte in range(256)] + [b"<eos>"] + [text.encode() for text in special]
        )
        self.special_token_ids = frozenset(range(EOS, len(self.tokens)))
        self.eos_token_ids = frozenset({EOS})
        self.eos_token_id, self.bos_token_id = EOS, None

    def __call__(self, text: bytes) -> list[int]:
        return list(text)

    def token_id(self, token: str) -> int | None:
        return EOS + 1 + self.special.index(token) if token in self.special else None

    def token_text(self, id: int) -> str:
        return self.tokens[id].decode()


class LLVocabulary(Vocabulary):
    special_token_ids: Any

    def __init__(self, special: Sequence[str]) -> None:
        super().__init__(special)
        self.special_token_ids = sorted(self.special_token_ids)


VOCABULARIES = {"text": (), "special": SPECIAL}
TOKENIZERS = {kind: LLTokenizer(TokenizerWrapper(LLVocabulary(s))) for kind, s in VOCABULARIES.items()}


def make(name: str, kind: str, *, reasons: bool = True) -> TemplateFormat:
    data = by_name(name)
    return TemplateFormat(
        name, data.template, wire_of(data.wire), Vocabulary(VOCABULARIES[kind]),
        reasons=reasons, call_id=data.call_id, shell=data.shell,
    )  # fmt: skip


def sample(source: str, kind: str, seed: int, limit: int = 900) -> str:
    """A random text of the grammar, in which what may end something is likely."""
    rng, tokenizer = random.Random(seed), TOKENIZERS[kind]
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(source))
    assert not matcher.is_error(), f"{matcher.get_error()}\n{source}"
    data = b""
    for _ in range(limit):
        if matcher.is_stopped():
            break
        ids = _allowed(matcher, tokenizer.vocab_size)
        if EOS in ids and (ids == [EOS] or rng.random() < 0.3):
            break
        id = _choose(rng, [id for id in ids if id != EOS], data)
        assert matcher.consume_token(id)
        data += bytes([id]) if id < EOS else VOCABULARIES[kind][id - EOS - 1].encode()
    else:
        return ""
    assert matcher.is_accepting()
    return data.decode()


def _allowed(matcher: LLMatcher, size: int) -> list[int]:
    bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
    return [int(id) for id in np.flatnonzero(bits[:size])]


ENDINGS = ["\n</parameter>\n", "</arg_value>\n", "</think>", "\n```"]
BEGUN = [
    (end[:length].encode(), ord(end[length]))
    for length in range(12, 0, -1)
    for end in ENDINGS
    if length < len(end)
]
"""What of an ending may stand there, the longest first, and its next character."""


def _choose(rng: random.Random, ids: list[int], data: bytes) -> int:
    """One of the tokens, such that texts come to an end: a closing marker that has begun goes on."""
    going = [(begun, id) for begun, id in BEGUN if data.endswith(begun) and id in ids]
    if going:
        return rng.choice([id for begun, id in going if len(begun) == len(going[0][0])])
    special = [id for id in ids if id > EOS]
    if special and rng.random() < 0.4:
        return rng.choice(special)
    good = [id for id in ids if 32 < id < 127 and chr(id) not in "<`"]
    closing = [id for id in ids if id < 127 and chr(id) in '"}]<\n`']
    if closing and rng.random() < 0.3:
        return rng.choice(closing)
    return rng.choice(good or [id for id in ids if id < 128] or ids)


def read(format_: TemplateFormat, text: str, prompt: str = "") -> tuple[str, str, list[tuple[str, Any]]]:
    reader = format_.reader(prompt=prompt, tools=TOOLS)
    parts = [*reader.feed(text), *reader.finish()]
    calls: list[tuple[str, str]] = []
    ended = 0
    for part in parts:
        if isinstance(part, CallStart):
            calls.append((part.name, ""))
        elif isinstance(part, CallArguments):
            calls[-1] = (calls[-1][0], calls[-1][1] + part.text)
        ended += isinstance(part, CallEnd)
    assert ended == len(calls)
    content = "".join(part.text for part in parts if isinstance(part, Content))
    reasoning = "".join(part.text for part in parts if isinstance(part, Reasoning))
    return reasoning, content, [(name, json.loads(text)) for name, text in calls]


def grammar(format_: TemplateFormat, **asked: Any) -> str:
    wanted = {
        "tools": TOOLS,
        "choice": ToolChoice("auto"),
        "parallel": True,
        "answer": None,
        "prompt": "",
    } | asked
    constraint = format_.constraint(**wanted)
    assert constraint is not None
    assert constraint.kind is ConstraintKind.LARK
    return constraint.source


def check(calls: Sequence[tuple[str, Any]]) -> None:
    for name, arguments in calls:
        VALIDATORS[name].validate(arguments)


@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("name", NAMES)
def test_demanded_calls_are_read_back(name: str, kind: str) -> None:
    format_ = make(name, kind)
    source = grammar(format_, choice=ToolChoice("required"))
    seen = 0
    for seed in range(12):
        text = sample(source, kind, seed)
        if text:
            _, content, calls = read(format_, text)
            assert calls, text
            assert content == "", text
            check(calls)
            seen += 1
    assert seen >= 4


@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("name", NAMES)
def test_a_named_call_alone(name: str, kind: str) -> None:
    format_ = make(name, kind, reasons=False)
    source = grammar(format_, choice=ToolChoice("required", ("bash",)), parallel=False)
    for seed in range(4):
        text = sample(source, kind, seed)
        if text:
            reasoning, content, calls = read(format_, text)
            assert [call for call, _ in calls] == ["bash"], text
            assert (reasoning if name != "harmony" else "", content) == ("", "")
            check(calls)


@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("name", NAMES)
def test_an_answer_or_calls(name: str, kind: str) -> None:
    format_ = make(name, kind)
    source = grammar(format_, answer=ANSWER)
    kinds = set()
    for seed in range(16):
        text = sample(source, kind, seed)
        if text:
            _, content, calls = read(format_, text)
            check(calls)
            if not calls:
                assert json.loads(content)["n"] in range(10), text
            kinds.add(bool(calls))
    assert False in kinds
    assert _accepts(source, kind, _answer(name, '{"n": 3}'))
    assert _accepts(source, kind, _answer(name, '{"n":3}'))


def _answer(name: str, text: str) -> str:
    return f"<|channel|>final<|message|>{text}" if name == "harmony" else text


def _accepts(source: str, kind: str, text: str) -> bool:
    matcher = LLMatcher(TOKENIZERS[kind], LLMatcher.grammar_from_lark(source))
    pattern = "|".join(map(re.escape, VOCABULARIES[kind])) or "(?!)"
    vocabulary = Vocabulary(VOCABULARIES[kind])
    at, ids = 0, []
    for match in re.finditer(pattern, text):
        ids += [*text[at : match.start()].encode(), vocabulary.token_id(match[0])]
        at = match.end()
    ids += text[at:].encode()
    return matcher.consume_tokens(ids) and matcher.is_accepting()


@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("name", [name for name in NAMES if name != "bash"])
def test_strict_tools_are_held_to_their_schema_where_calls_are_free(name: str, kind: str) -> None:
    format_ = make(name, kind)
    source = grammar(format_)
    call = grammar(
        make(name, kind, reasons=False), choice=ToolChoice("required", ("get_weather",)), parallel=False
    )
    texts = (sample(call, kind, seed) for seed in range(99))
    written = next(text for text in texts if text and "</think>" not in text)
    assert _accepts(source, kind, written), written
    assert _accepts(source, kind, _answer(name, "Just text, <b> and more."))
    wrong = written.replace('"unit"', '"wrong"').replace("unit", "wrong")
    assert wrong != written
    assert not _accepts(source, kind, wrong), wrong


@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("name", ["hermes", "deepseek_v3", "glm45", "reasoning"])
def test_an_answer_follows_thinking(name: str, kind: str) -> None:
    format_ = make(name, kind)
    prompt = "<|im_start|>assistant\n<think>\n"
    for answer in (
        ANSWER,
        Constraint(kind=ConstraintKind.REGEX, source=r"a/b\n(c|\d+)"),
        Constraint(kind=ConstraintKind.LARK, source='start: "x" other\nother: /[0-9]+/'),
    ):
        opened = grammar(format_, tools=(), answer=answer, prompt=prompt)
        maybe = grammar(format_, tools=(), answer=answer)
        right = {"json_schema": '{"n":1}', "regex": "a/b\nc", "lark": "x12"}[answer.kind]
        assert _accepts(opened, kind, f"Hm.\n</think>\n\n{right}")
        assert not _accepts(opened, kind, right)
        assert _accepts(maybe, kind, f"<think>Hm.\n</think>\n\n{right}")
        assert _accepts(maybe, kind, right)
        assert not _accepts(maybe, kind, "nonsense")
    no_thinking = make(name, kind, reasons=False)
    assert (
        no_thinking.constraint(tools=(), choice=ToolChoice(), parallel=True, answer=ANSWER, prompt="")
        is ANSWER
    )


def test_nothing_is_held_where_all_is_allowed() -> None:
    format_ = make("hermes", "text")
    free = {"parallel": True, "answer": None, "prompt": ""}
    assert format_.constraint(tools=(SHELL,), choice=ToolChoice("auto"), **free) is None
    assert format_.constraint(tools=TOOLS, choice=ToolChoice("none"), **free) is None
    assert format_.constraint(tools=(), choice=ToolChoice("auto"), **free) is None


def test_what_cannot_be_demanded_is_refused() -> None:
    free = {"parallel": True, "answer": None, "prompt": ""}
    with pytest.raises(InvalidParameterError, match="tool-call-parser"):
        make("reasoning", "text").constraint(tools=TOOLS, choice=ToolChoice("required"), **free)
    with pytest.raises(InvalidParameterError, match="missing"):
        make("hermes", "text").constraint(tools=TOOLS, choice=ToolChoice("required", ("missing",)), **free)
    big = Tool(name="big", parameters={"type": "object", "description": "x" * (300 << 10)})
    with pytest.raises(InvalidParameterError, match="bytes"):
        make("hermes", "text").constraint(tools=(big,), choice=ToolChoice("required"), **free)


def test_a_token_that_ends_the_output_is_left_to_the_engine() -> None:
    vocabulary = Vocabulary(SPECIAL)
    end = vocabulary.token_id("<|call|>")
    assert end is not None
    vocabulary.eos_token_ids = frozenset({end})
    data = by_name("harmony")
    format_ = TemplateFormat("harmony", data.template, wire_of(data.wire), vocabulary, reasons=False)
    source = grammar(format_, choice=ToolChoice("required", ("bash",)))
    assert f"<[{end}]>" not in source
    text = sample(source, "special", 1)
    assert [name for name, _ in read(format_, text)[2]] == ["bash"]
    assert _accepts(
        source,
        "special",
        '<|channel|>commentary to=functions.bash <|constrain|>json<|message|>{"command": ""}',
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "parameters",
    [
        {"required": 5, "properties": {"a": {"type": "string"}}},
        {"properties": {"a": {"enum": 5}, "b": {"anyOf": 5}, "c": {"oneOf": {}}, "d": {"type": {}}, "e": 1}},
        {"properties": [1], "required": {}},
    ],
)
def test_schemas_that_are_none_are_left_to_the_engine_to_refuse(
    name: str, parameters: dict[str, Any]
) -> None:
    asked = {"choice": ToolChoice("required"), "parallel": True, "answer": None, "prompt": ""}
    tool = Tool(name="bash", parameters={**parameters, "command": {}})
    format_ = make(name, "text")
    if name != "bash":
        assert format_.constraint(tools=(tool,), **asked) is not None
    format_.reader(prompt="", tools=(tool,))


def test_long_references_are_not_followed() -> None:
    """Each was split for each property: minutes for a body of 1 MB."""
    defined = {"$defs": {"a": {"$ref": "#/" + "a/" * 200_000}}}
    tool = Tool(
        name="t", parameters={**defined, "properties": {f"p{i}": {"$ref": "#/$defs/a"} for i in range(3000)}}
    )
    reader = make("glm45", "text").reader(prompt="", tools=(tool,))
    assert reader.feed("x") == [Content("x")]
