"""Templates that know no tools still carry an agent's loop."""

from __future__ import annotations

import json
from typing import Any

import pytest

from braid.core.errors import InvalidParameterError
from braid.text.detect import detect_format
from braid.text.reply import CallArguments, CallEnd, CallStart
from braid.text.template import ChatTemplate
from braid.text.tokenizer import Tokenizer
from braid.text.tools import Tool

PLAIN = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
PARTS = "{% for m in messages %}[{{ m.role }}]{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}[{{ m.role }}]{{ m.content }}\n{% endfor %}"
)
NATIVE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}"
    "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ c.function.name }}{% endfor %}{% endfor %}"
)
TOOL = Tool(
    name="ls",
    description="List <files>.",
    parameters={"type": "object", "properties": {"path": {"type": "string"}}},
)
TOOLS = [TOOL.as_openai()]
CALL = {"id": "c1", "type": "function", "function": {"name": "ls", "arguments": '{"path": "/é"}'}}
LOOP: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is there?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "a b"},
    {"role": "tool", "tool_call_id": "c1", "content": "c"},
    {"role": "user", "content": "And now?"},
]
CALL_TEXT = '<tool_call>\n{"name": "ls", "arguments": {"path": "/é"}}\n</tool_call>'


def test_the_whole_loop_is_written_as_text() -> None:
    text = ChatTemplate(PLAIN).render(LOOP, tools=TOOLS)
    system, rest = text.split("\n[user]What is there?\n")
    assert system.startswith("[system]Be brief.\n\n")
    assert json.dumps(TOOLS[0], ensure_ascii=False) in system
    assert rest == (
        f"[assistant]{CALL_TEXT}\n{CALL_TEXT}\n"
        "[user]<tool_response>\na b\n</tool_response>\n<tool_response>\nc\n</tool_response>\n"
        "[user]And now?\n[assistant]"
    )


def test_a_conversation_without_tools_stays_as_it_is() -> None:
    assert ChatTemplate(PLAIN).render(LOOP[:2]) == "[system]Be brief.\n[user]What is there?\n[assistant]"
    without = ChatTemplate(PLAIN).render(LOOP)
    assert "<tools>" not in without
    assert CALL_TEXT in without


def test_tools_without_a_system_message_get_one() -> None:
    text = ChatTemplate(PLAIN).render(LOOP[1:2], tools=TOOLS)
    assert text.startswith("[system]You can call functions")


def test_content_as_parts() -> None:
    text = ChatTemplate(PARTS).render(LOOP, tools=TOOLS)
    assert text.startswith("[system]Be brief.\n\nYou can call")
    assert f"[assistant]{CALL_TEXT}\n{CALL_TEXT}[user]<tool_response>\na b" in text


def test_roles_that_must_alternate_and_no_system_message() -> None:
    text = ChatTemplate(NO_SYSTEM).render(LOOP[1:], tools=TOOLS)
    assert text.startswith("[user]You can call functions")
    assert "What is there?\n[assistant]" in text
    assert text.endswith("</tool_response>\n\nAnd now?\n")


def test_a_template_that_shows_calls_keeps_its_own_form() -> None:
    text = ChatTemplate(NATIVE).render(LOOP, tools=TOOLS)
    assert "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>ls" in text
    assert "[tool]a b" in text
    assert "<｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json" in text
    assert "<tool_call>" not in text


def test_the_messages_of_the_caller_stay_untouched() -> None:
    before = json.dumps(LOOP)
    ChatTemplate(NO_SYSTEM).render(LOOP[1:], tools=TOOLS)
    assert json.dumps(LOOP) == before


def test_the_default_model_runs_a_loop(smollm: Tokenizer) -> None:
    template = ChatTemplate(smollm.chat_template, bos_token=smollm.bos_token, eos_token=smollm.eos_token)
    prompt = template.render(LOOP, tools=TOOLS)
    assert prompt.endswith("<|im_start|>assistant\n")
    assert CALL_TEXT in prompt
    reply_format = detect_format(smollm.chat_template, smollm)
    assert reply_format.name == "hermes"
    reader = reply_format.reader(prompt=prompt, tools=(TOOL,))
    parts = [*reader.feed(CALL_TEXT), *reader.finish()]
    assert [type(part) for part in parts] == [CallStart, CallArguments, CallEnd]


MISTRAL = (
    "{% for m in messages %}{% for c in m.tool_calls or [] %}{% if c.id|length != 9 %}{{ raise_exception('9!') }}"
    "{% endif %}({{ c.id }}){% endfor %}{% if m.role == 'tool' %}({{ m.tool_call_id }}){% endif %}{% endfor %}"
    "{{ tools }}"
)


@pytest.mark.parametrize("id", ["call_0123456789abcdef01234567", "", "toolu_01", "x" * 300, "abcDEF123"])
def test_ids_of_any_shape_render_with_mistrals_templates(id: str) -> None:
    call = {**CALL, "id": id}
    messages = [
        LOOP[1],
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {**LOOP[3], "tool_call_id": id},
    ]
    text = ChatTemplate(MISTRAL).render(messages)
    first, second = text.split(")")[:2]
    assert first == second
    assert len(first) == 10
    assert first[1:].isalnum()
    assert id != "abcDEF123" or first[1:] == id


def test_thousands_of_results_are_joined_once() -> None:
    """Each was put behind all before it, which took half a minute."""
    result = {"role": "tool", "tool_call_id": "c1", "content": "x" * 450}
    text = ChatTemplate(PLAIN).render([*LOOP[:2], *[result] * 15_000])
    assert text.count("<tool_response>") == 15_000
    assert text.count("[user]") == 2


@pytest.mark.parametrize("kind", [[], {}, 1, None])
def test_a_part_of_no_type_is_the_clients_error(kind: Any) -> None:
    with pytest.raises(InvalidParameterError, match="type"):
        ChatTemplate(PLAIN).render([{"role": "user", "content": [{"type": kind, "text": "a"}]}])
