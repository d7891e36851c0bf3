"""Which format is taken for which model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from braid.core.errors import CheckpointError, InvalidParameterError
from braid.text.detect import detect_format, warm_up
from braid.text.format_data import by_name, formats
from braid.text.reply import CallArguments, CallEnd, CallStart, Content
from braid.text.reply_format import PlainFormat
from braid.text.tools import Tool


class Tokens:
    eos_token_ids: frozenset[int] = frozenset()

    def __init__(self, *special: str) -> None:
        self.special = special
        self.special_token_ids = frozenset(range(len(special)))

    def token_id(self, token: str) -> int | None:
        return self.special.index(token) if token in self.special else None

    def token_text(self, id: int) -> str:
        return self.special[id]


SHOWN = {
    "hermes": "{{ tools }} '<tool_call>\\n{\"name\": \"'",
    "qwen3_coder": "{{ tools }} '<tool_call>\\n<function=' '<parameter='",
    "glm45": "{{ tools }} '<tool_call>' '<arg_key>' '<arg_value>'",
    "deepseek_v3": "{% if tools %}'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + type + '<｜tool▁sep｜>' + name",
    "deepseek_v31": "{% if tools %}'<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>'+ name + '<｜tool▁sep｜>'+ args",
    "mistral": "{% if tools %}[TOOL_CALLS] name [ARGS]",
    "mistral_list": "{% if tools %}[TOOL_CALLS] [",
    "llama3_json": "{% if tools %}<|python_tag|> {\"name\": ..., \"parameters\": ...}",
    "harmony": "{{ tools }} <|start|>assistant<|channel|>analysis<|message|>",
    "gemma": "{{ tools }} <start_function_call>call:",
    "reasoning": "{{ tools }} some other way",
}  # fmt: skip


@pytest.mark.parametrize("name", SHOWN)
def test_the_chat_template_shows_the_format(name: str) -> None:
    assert detect_format(SHOWN[name], Tokens()).name == name


@pytest.mark.parametrize(
    ("tokens", "name"),
    [
        (["<tool_call>"], "hermes"),
        (["[TOOL_CALLS]"], "mistral_list"),
        (["[TOOL_CALLS]", "[ARGS]"], "mistral"),
        (["<|channel|>", "<|message|>"], "harmony"),
        (["<｜tool▁calls▁begin｜>"], "deepseek_v3"),
        ([], "none"),
    ],
)
def test_without_a_chat_template_the_vocabulary_shows_it(tokens: list[str], name: str) -> None:
    assert detect_format(None, Tokens(*tokens)).name == name


def test_a_template_that_knows_no_tools_is_read_as_it_was_told() -> None:
    assert detect_format("{{ messages }}", Tokens()).name == "hermes"


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("hermes", "hermes"),
        ("qwen3_coder", "qwen3_coder"),
        ("qwen3-xml", "qwen3_coder"),
        ("llama3_json", "llama3_json"),
        ("mistral", "mistral"),
        ("deepseek_v3", "deepseek_v3"),
        ("deepseek_v31", "deepseek_v31"),
        ("glm45", "glm45"),
        ("openai", "harmony"),
        ("HERMES", "hermes"),
        ("none", "none"),
    ],
)
def test_a_name_wins(alias: str, name: str) -> None:
    assert detect_format(SHOWN["gemma"], Tokens(), name=alias).name == name


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        InvalidParameterError, match=r"'nonsense' is not known; known: .*hermes.*none.*openai"
    ):
        detect_format(None, Tokens(), name="nonsense")


def test_names_and_aliases_are_unique() -> None:
    names = [name for data in formats().values() for name in (data.name, *data.aliases)]
    assert len(names) == len(set(names))
    assert all(by_name(name) for name in names)


def test_special_tokens_are_those_that_the_format_reads() -> None:
    tokens = Tokens("<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>", "<|other|>")
    wanted = {"<tool_call>", "</tool_call>", "<think>", "</think>"}
    assert detect_format(SHOWN["hermes"], tokens).special_tokens == wanted
    assert "<|channel|>" in detect_format(SHOWN["harmony"], Tokens("<|channel|>")).special_tokens


OWN = {
    "start_anchor": "<bot>",
    "fields": {
        "content": {},
        "tool_calls": {
            "open": "<<call>>",
            "close": "<<end>>",
            "repeats": True,
            "content": "kv-lines",
            "transform": {"function": {"name": "note", "arguments": "{content}"}},
        },
    },
}


def folder_with(root: Path, template: object) -> Path:
    (root / "tokenizer_config.json").write_text(json.dumps({"response_template": template}))
    return root


def test_a_checkpoints_own_response_template_wins(tmp_path: Path) -> None:
    own = detect_format(SHOWN["hermes"], Tokens(), folder_with(tmp_path, OWN))
    warm_up(own)
    reader = own.reader(prompt="<bot>", tools=(Tool(name="note"),))
    parts = [*reader.feed("Yes. <<call>>a: 1\nb: x<<end>><tool_call>"), *reader.finish()]
    texts = [part for part in parts if not isinstance(part, CallStart)]
    assert texts == [
        Content("Yes."),
        CallArguments(0, '{"a": "1", "b": "x"}'),
        CallEnd(0),
        Content(" <tool_call>"),
    ]
    assert detect_format(SHOWN["hermes"], Tokens(), tmp_path, "none").name == PlainFormat.name


@pytest.mark.parametrize("template", [{"fields": {}}, {"fields": {"content": {"open_pattern": "("}}}, {}, []])
def test_a_broken_response_template_is_told_at_the_start(tmp_path: Path, template: object) -> None:
    with pytest.raises(CheckpointError, match="response_template"):
        detect_format(None, Tokens(), folder_with(tmp_path, template))


def test_a_folder_without_one_changes_nothing(tmp_path: Path) -> None:
    assert detect_format(SHOWN["hermes"], Tokens(), tmp_path).name == "hermes"
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert detect_format(SHOWN["hermes"], Tokens(), tmp_path).name == "hermes"
