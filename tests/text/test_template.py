"""Rendered prompts equal transformers' (jinja2), and hostile templates stop."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import pytest

from braid.core.errors import CheckpointError, InvalidParameterError
from braid.text.template import ChatTemplate
from braid.text.tokenizer import Tokenizer
from braid.text.tool_prompt import shows_calls, tells_tools

CHATML = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string
        and not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {%- if tool_call.arguments is string %}
                {{- tool_call.arguments }}
            {%- else %}
                {{- tool_call.arguments | tojson }}
            {%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

HEADERS = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

TURNS = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- set role = "model" -%}
    {%- else -%}
        {%- set role = message['role'] -%}
    {%- endif -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
"""

INST = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {% generation %}{{- " " + message["content"]|trim + eos_token }}{% endgeneration %}
    {%- elif message["role"] in ["tool_results", "tool"] %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content|string + ", " }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported") }}
    {%- endif %}
{%- endfor %}
"""
JOINED = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' and m['content'] is none %}"
    "{% for call in m['tool_calls'] %}"
    "{{ '<call>' + call['function']['name'] + '\\n' + call['function']['arguments'] + '\\n' }}"
    "{% endfor %}{% elif m['content'] is not none %}{{ m['role'] + ': ' + m['content'] }}{% if loop.last %}{% break %}"
    "{% endif %}\n{% endif %}{% endfor %}\n"
)
TEMPLATES = {"chatml": CHATML, "headers": HEADERS, "turns": TURNS, "inst": INST, "joined": JOINED}

ASK = [{"role": "user", "content": "What is <b>2+2</b>? \"quoted\" 'single' é 😀"}]
SYSTEM = [{"role": "system", "content": " Be brief. "}, *ASK]
LONG = [
    *SYSTEM,
    {"role": "assistant", "content": "\n4 "},
    {"role": "user", "content": "And\n\n3+3?"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nSix"},
    {"role": "user", "content": "ok"},
]
CALL = {
    "name": "weather",
    "arguments": {"city": "Zürich", "days": 2, "exact": True, "near": None, "x": [1.5, "a<b"]},
}
TOOL_TURNS = [
    *ASK,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "abcdefghi", "type": "function", "function": CALL}],
    },
    {"role": "tool", "content": '{"temperature": 21.5}', "tool_call_id": "abcdefghi", "name": "weather"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather of a city, <today> & tomorrow",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            },
        },
    }
]
CASES: dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = {
    "ask": (ASK, None),
    "system": (SYSTEM, None),
    "long": (LONG, None),
    "ask with tools": (ASK, TOOLS),
    "system with tools": (SYSTEM, TOOLS),
    "tool turns": (TOOL_TURNS, TOOLS),
    "tool turns without tools": (TOOL_TURNS, None),
}


def expected(
    source: str, messages: list[dict[str, Any]], tools: Any, prompt: bool, **kwargs: Any
) -> str | None:
    """What transformers renders; None where it refuses."""
    from jinja2.exceptions import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    variables = {"bos_token": "<s>", "eos_token": "</s>", **kwargs}
    try:
        (text,), _ = render_jinja_template(
            [messages], tools=tools, chat_template=source, add_generation_prompt=prompt, **variables
        )
    except (TemplateError, TypeError):
        return None
    return text


def ours(source: str, *args: Any, **kwargs: Any) -> str | None:
    try:
        return ChatTemplate(source, bos_token="<s>", eos_token="</s>").render(*args, **kwargs)
    except InvalidParameterError:
        return None


@pytest.mark.parametrize("prompt", [True, False])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_rendering_equals_transformers(name: str, case: str, prompt: bool) -> None:
    messages, tools = CASES[case]
    source = TEMPLATES[name]
    wanted = expected(source, messages, tools, prompt)
    if name == "joined" and tools_used(messages):
        pytest.skip("takes arguments as text, see test_arguments_take_the_form_that_the_template_wants")
    if not tells_tools(source) and (tools or (tools_used(messages) and not shows_calls(source))):
        pytest.skip("shows no tools: they are written in, see test_tool_fallback.py")
    assert ours(source, messages, tools, add_generation_prompt=prompt) == wanted


def tools_used(messages: list[dict[str, Any]]) -> bool:
    return any("tool_calls" in message for message in messages)


@pytest.mark.parametrize("messages", [ASK, SYSTEM, LONG], ids=["ask", "system", "long"])
def test_smollm_template_equals_transformers(smollm: Tokenizer, messages: list[dict[str, Any]]) -> None:
    assert smollm.chat_template is not None
    template = ChatTemplate(smollm.chat_template, bos_token=smollm.bos_token, eos_token=smollm.eos_token)
    text = template.render(messages)
    assert text == expected(smollm.chat_template, messages, None, True)
    assert smollm.decode(smollm.encode(text, add_special_tokens=False), skip_special_tokens=False) == text


def test_variables_reach_the_template() -> None:
    text = ours(CHATML, ASK, enable_thinking=False)
    assert text == expected(CHATML, ASK, None, True, enable_thinking=False)
    assert text is not None
    assert text.endswith("</think>\n\n")
    with pytest.raises(InvalidParameterError, match="may not set bos_token") as caught:
        ChatTemplate(CHATML).render(ASK, bos_token="x")
    assert caught.value.param == "chat_template_kwargs"


def test_openai_form_renders_as_hugging_face_form() -> None:
    openai = [
        {"role": "user", "content": [{"type": "text", "text": ASK[0]["content"]}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "abcdefghi",
                    "type": "function",
                    "function": {**CALL, "arguments": json.dumps(CALL["arguments"])},
                }
            ],
        },
        TOOL_TURNS[2],
    ]
    for source in (CHATML, HEADERS, INST):
        assert ours(source, openai, TOOLS) == ours(source, TOOL_TURNS, TOOLS)


def test_arguments_take_the_form_that_the_template_wants() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    messages = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    assert ours(JOINED, messages) == '<s><call>f\n{"a": 1}\n'
    call["function"] = {"name": "f", "arguments": {"a": 1}}
    assert ours(JOINED, messages) == '<s><call>f\n{"a": 1}\n'
    as_object = "{% for m in messages %}{{ m.tool_calls[0].function.arguments.a }}{% endfor %}"
    assert ours(as_object, messages) == "1"
    call["function"] = {"name": "f", "arguments": "not json"}
    assert (
        ours("{{ messages[0].tool_calls[0].function|tojson }}", messages)
        == '{"name": "f", "arguments": "not json"}'
    )


def test_content_takes_the_form_that_the_template_wants() -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    text = [{"role": "user", "content": "ab"}]
    loop = "{% for m in messages %}{% for p in m['content'] %}[{{ p.text }}]{% endfor %}{% endfor %}"
    assert ours("{{ messages[0].content }}", parts) == "a\nb"
    assert ours(loop, parts) == "[a][b]"
    assert ours(loop, text) == "[ab]"
    assert ours(TURNS, text) == expected(TURNS, text, None, True)
    assert ours("{{ messages[0].role }}", [{"role": "developer", "content": "x"}]) == "system"
    assert (
        ours("{{ messages[0].role }}{# developer #}", [{"role": "developer", "content": "x"}]) == "developer"
    )
    assert ours("{{ messages[0].content is none }}", [{"role": "assistant", "content": None}]) == "True"
    assert ours("[{{ messages[0].content }}]", [{"role": "assistant"}]) == "[]"


def test_continue_final_message_leaves_it_open() -> None:
    messages = [*ASK, {"role": "assistant", "content": "The sum is"}]
    text = ours(CHATML, messages, continue_final_message=True)
    assert text is not None
    assert text.endswith("<|im_start|>assistant\nThe sum is")
    with pytest.raises(InvalidParameterError, match="no text to continue"):
        ChatTemplate(TURNS).render([{"role": "user", "content": []}], continue_final_message=True)


def test_date_comes_from_the_given_clock() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", now=lambda: datetime(2030, 1, 2))
    assert template.render(ASK) == "02 Jan 2030"


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        ([], "messages"),
        (["x"], r"messages\[0\]"),
        ([{"content": "x"}], r"messages\[0\]\.role"),
        ([{"role": "user", "content": 5}], r"messages\[0\]\.content"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            r"messages\[0\]\.content\[0\]\.type 'image_url'",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], r"messages\[0\]\.content\[0\]\.text"),
        ([{"role": "user", "content": [5]}], r"messages\[0\]\.content\[0\]"),
        ([{"role": "assistant", "tool_calls": 5}], r"messages\[0\]\.tool_calls"),
        ([{"role": "assistant", "tool_calls": [{}]}], r"messages\[0\]\.tool_calls\[0\]\.function"),
    ],
)
def test_wrong_messages_name_the_field(messages: Any, where: str) -> None:
    with pytest.raises(InvalidParameterError, match=f"^{where}"):
        ChatTemplate(CHATML).render(messages)


def test_raised_text_reaches_the_user() -> None:
    with pytest.raises(InvalidParameterError, match="roles must alternate") as caught:
        ChatTemplate(TURNS, bos_token="").render([*ASK, *ASK])
    assert caught.value.param == "messages"


def test_no_template_says_what_to_do() -> None:
    with pytest.raises(InvalidParameterError, match="--chat-template FILE") as caught:
        ChatTemplate(None).render(ASK)
    assert caught.value.code == "no_chat_template"


def test_invalid_template_is_a_checkpoint_error() -> None:
    with pytest.raises(CheckpointError, match="line 2"):
        ChatTemplate("fine\n{% if %}")


def test_hidden_error_of_a_template_is_a_user_error() -> None:
    with pytest.raises(InvalidParameterError, match="nofilter is unknown"):
        ChatTemplate("{{ 1|nofilter }}").render(ASK)


BOMBS = {
    "loops": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "output": "{% for i in range(99999) %}{% for j in range(99) %}{{ 'x' * 999 }}{% endfor %}{% endfor %}",
    "prints": "{% for i in range(99999) %}{% for j in range(99) %}{{ i }}{% endfor %}{% endfor %}",
    "literal": "{% for i in range(99999) %}{% for j in range(99) %}" + "y" * 999 + "{% endfor %}{% endfor %}",
    "json": "{% for i in range(99999) %}{% set x = messages|tojson %}{% set y = (messages * 999)|tojson %}{% endfor %}",
    "repeat": "{{ 'x' * 2000000000 }}",
    "range": "{{ range(1000000000)|list|length }}",
    "macro": "{% macro f(x) %}{{ x }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "attributes": "{{ messages.__class__.__mro__[1].__subclasses__() }}",
    "include": "{% include '/etc/passwd' %}",
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.timeout(60)
def test_bombs_are_refused(name: str) -> None:
    with pytest.raises(InvalidParameterError):
        ChatTemplate(BOMBS[name]).render(ASK)


def test_output_is_capped() -> None:
    with pytest.raises(InvalidParameterError, match="more than 10 characters"):
        ChatTemplate("{{ messages[0].content }}", max_chars=10).render(ASK)
    with pytest.raises(InvalidParameterError, match="more than 10 characters"):
        ChatTemplate("this is eleven", max_chars=10).render(ASK)


def test_deep_values_are_refused() -> None:
    deep: list[Any] = []
    for _ in range(5000):
        deep = [deep]
    for arguments in (
        {"tools": [{"x": deep}]},
        {"extra": deep},
        {"messages": [{"role": "user", "content": "", "x": deep}]},
    ):
        with pytest.raises(InvalidParameterError, match="nested deeper than 100"):
            ChatTemplate(CHATML).render(**{"messages": ASK, **arguments})
