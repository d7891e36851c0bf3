from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from braid.core.errors import InvalidParameterError
from braid.server.dialects.tools import (
    as_function_calls,
    custom_input,
    custom_names,
    max_calls,
    parse_choice,
    parse_function_call,
    parse_tools,
)
from braid.text.reply_format import PlainFormat
from braid.text.tools import Tool, ToolChoice

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}}
F = {
    "type": "function",
    "function": {"name": "f", "description": "does", "parameters": SCHEMA, "strict": True},
}
G = {"type": "function", "function": {"name": "g"}}
SHELL = {"type": "custom", "custom": {"name": "shell", "description": "runs"}}
TOOLS = (Tool(name="f"), Tool(name="g"))


@pytest.fixture
def reply_format(tiny_format: Any) -> PlainFormat:
    return tiny_format


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post(CHAT, json={"messages": MESSAGES, "tools": [F, G, SHELL], **fields})


class TestParseTools:
    def test_functions_nested_and_flat(self) -> None:
        flat = {"type": "function", "name": "g", "parameters": None, "strict": None, "description": None}
        tools, dropped = parse_tools([F, flat, {"function": {"name": "h"}}])
        assert tools == (
            Tool(name="f", description="does", parameters=SCHEMA, strict=True),
            Tool(name="g"),
            Tool(name="h"),
        )
        assert not dropped

    @pytest.mark.parametrize("tool", [SHELL, {"type": "custom", "name": "shell", "description": "runs"}])
    def test_a_custom_tool_is_a_function_with_one_text(self, tool: dict[str, Any]) -> None:
        (made,), dropped = parse_tools([tool])
        assert (made.name, made.description) == ("shell", "runs")
        assert made.parameters is not None
        assert made.parameters["properties"]["input"]["type"] == "string"
        assert made.parameters["required"] == ["input"]
        assert custom_names([tool, F]) == {"shell"}
        assert not dropped

    @pytest.mark.parametrize("nested", [False, True])
    def test_a_custom_tools_grammar_is_told_and_named(self, nested: bool) -> None:
        spec = {"syntax": "lark", "definition": "start: /x/"}
        form = {"type": "grammar", "grammar": spec} if nested else {"type": "grammar", **spec}
        (made,), dropped = parse_tools([{"type": "custom", "custom": {"name": "p", "format": form}}])
        assert "start: /x/" in made.description
        assert dropped == ["tools.0.custom.format"]

    def test_what_nobody_knows_is_dropped(self) -> None:
        tools, dropped = parse_tools(
            [{"type": "web_search"}, F, {"type": "mcp", "server_label": "x"}, {}][:3]
        )
        assert [tool.name for tool in tools] == ["f"]
        assert dropped == ["tools.0", "tools.2"]

    @pytest.mark.parametrize(
        ("tool", "path"),
        [
            ({}, "tools.0.type"),
            ({"type": 5}, "tools.0.type"),
            ({"type": "function", "function": "f"}, "tools.0.function"),
            ({"type": "function", "function": {}}, "tools.0.function.name"),
            ({"type": "function", "function": {"name": 5}}, "tools.0.function.name"),
            ({"type": "function", "function": {"name": "a b"}}, "tools.0.function.name"),
            ({"type": "function", "function": {"name": "x" * 129}}, "tools.0.function.name"),
            ({"type": "function", "function": {"name": "f\n"}}, "tools.0.function.name"),
            (
                {"type": "function", "function": {"name": "f", "description": 1}},
                "tools.0.function.description",
            ),
            (
                {"type": "function", "function": {"name": "f", "parameters": []}},
                "tools.0.function.parameters",
            ),
            ({"type": "function", "function": {"name": "f", "strict": "yes"}}, "tools.0.function.strict"),
            ({"type": "custom", "custom": 5}, "tools.0.custom"),
            ({"type": "custom", "custom": {"name": ""}}, "tools.0.custom.name"),
            ({"type": "custom", "custom": {"name": "p", "format": 1}}, "tools.0.custom.format"),
            (
                {"type": "custom", "custom": {"name": "p", "format": {"type": "grammar"}}},
                "tools.0.custom.format",
            ),
        ],
        ids=str,
    )
    def test_wrong_types_are_named_by_path(self, tool: dict[str, Any], path: str) -> None:
        with pytest.raises(InvalidParameterError) as caught:
            parse_tools([tool])
        assert str(caught.value).startswith(path)
        assert caught.value.param == "tools"

    def test_bounds(self) -> None:
        assert len(parse_tools([{"type": "function", "name": "x" * 128}] * 256)[0]) == 256
        with pytest.raises(InvalidParameterError, match="257 entries"):
            parse_tools([F] * 257)

    def test_deep_parameters_are_refused(self) -> None:
        schema: dict[str, Any] = {}
        for _ in range(200):
            schema = {"not": schema}
        with pytest.raises(InvalidParameterError, match="nested deeper"):
            parse_tools([{"type": "function", "name": "f", "parameters": schema}])


class TestParseChoice:
    @pytest.mark.parametrize(
        ("choice", "expected"),
        [
            (None, ToolChoice("auto")),
            ("auto", ToolChoice("auto")),
            ("none", ToolChoice("none")),
            ("required", ToolChoice("required")),
            ({"type": "required"}, ToolChoice("required")),
            ({"type": "function", "function": {"name": "g"}}, ToolChoice("required", ("g",))),
            ({"type": "function", "name": "g"}, ToolChoice("required", ("g",))),
            ({"type": "custom", "custom": {"name": "f"}}, ToolChoice("required", ("f",))),
            (
                {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [F, G, F]}},
                ToolChoice("auto", ("f", "g")),
            ),
            (
                {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]},
                ToolChoice("required", ("f",)),
            ),
            (
                {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "web_search"}]},
                ToolChoice("none"),
            ),
        ],
        ids=str,
    )
    def test_spellings(self, choice: Any, expected: ToolChoice) -> None:
        assert parse_choice(choice, TOOLS) == expected

    @pytest.mark.parametrize(
        "choice",
        [
            "always",
            "f",
            {},
            {"type": "tool"},
            {"type": 5},
            {"type": "function"},
            {"type": "function", "function": "f"},
            {"type": "function", "function": {"name": "h"}},
            {"type": "allowed_tools"},
            {"type": "allowed_tools", "allowed_tools": 5},
            {"type": "allowed_tools", "allowed_tools": {"tools": []}},
            {"type": "allowed_tools", "allowed_tools": {"tools": [5]}},
            {"type": "allowed_tools", "allowed_tools": {"mode": "none", "tools": [F]}},
            {"type": "allowed_tools", "tools": [{"type": "function", "name": "h"}]},
            {"type": "allowed_tools", "tools": [F] * 257},
        ],
        ids=lambda value: str(value)[:60],
    )
    def test_others_are_refused(self, choice: Any) -> None:
        with pytest.raises(InvalidParameterError) as caught:
            parse_choice(choice, TOOLS)
        assert caught.value.param == "tool_choice"

    def test_a_demand_needs_tools(self) -> None:
        with pytest.raises(InvalidParameterError, match="at least one"):
            parse_choice("required", ())

    def test_older_spelling(self) -> None:
        assert parse_function_call(None, TOOLS) == parse_function_call("auto", TOOLS) == ToolChoice("auto")
        assert parse_function_call("none", TOOLS) == ToolChoice("none")
        assert parse_function_call({"name": "g"}, TOOLS) == ToolChoice("required", ("g",))
        for bad in ("required", {"name": "h"}, {}):
            with pytest.raises(InvalidParameterError):
                parse_function_call(bad, TOOLS)

    @pytest.mark.parametrize(
        ("parallel", "choice", "most"),
        [
            (None, ToolChoice(), None),
            (True, ToolChoice("required"), None),
            (False, ToolChoice(), 1),
            (None, ToolChoice("required", ("f",)), 1),
            (None, ToolChoice("required", ("f", "g")), None),
            (None, ToolChoice("auto", ("f",)), None),
        ],
    )
    def test_most_calls(self, parallel: bool | None, choice: ToolChoice, most: int | None) -> None:
        assert max_calls(parallel, choice) == most


def test_calls_in_one_spelling() -> None:
    custom = {"id": "c1", "type": "custom", "custom": {"name": "shell", "input": 'ls "é"'}}
    function = {"id": "c2", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    older = {"name": "f", "arguments": '{"x": 1}'}
    messages = as_function_calls(
        [
            {"role": "assistant", "content": None, "tool_calls": [custom, function]},
            {"role": "tool", "tool_call_id": "c1", "content": "r"},
            {"role": "assistant", "content": None, "function_call": older},
            {"role": "function", "name": "f", "content": "r"},
        ]
    )
    first, second = messages[0]["tool_calls"]
    assert (first["id"], first["type"], first["function"]["name"]) == ("c1", "function", "shell")
    assert custom_input(first["function"]["arguments"]) == 'ls "é"'
    assert second == function
    assert messages[1]["tool_call_id"] == "c1"
    assert messages[2]["tool_calls"] == [{"id": "call_2", "type": "function", "function": older}]
    assert (messages[3]["role"], messages[3]["tool_call_id"]) == ("tool", "call_2")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"input": "ls"}', "ls"),
        ("ls", "ls"),
        ('{"in', '{"in'),
        ("[1]", "[1]"),
        ('{"input": 5}', '{"input": 5}'),
        (r'{"input": "a\ud83d"}', "a\ufffd"),
        (r'{"input": "\ud83d\ude00"}', "😀"),
    ],
)
def test_free_text_of_arguments(arguments: str, text: str) -> None:
    assert custom_input(arguments) == text


class TestAsked:
    """What reaches the reply format."""

    async def test_defaults(self, client: httpx.AsyncClient, tiny_format: Any) -> None:
        assert (await ask(client)).status_code == 200
        asked = tiny_format.asked[0]
        assert [tool.name for tool in asked["tools"]] == ["f", "g", "shell"]
        assert (asked["choice"], asked["parallel"], asked["answer"]) == (ToolChoice(), True, None)

    async def test_one_call_at_most(self, client: httpx.AsyncClient, tiny_format: Any) -> None:
        await ask(client, parallel_tool_calls=False)
        assert tiny_format.asked[0]["parallel"] is False

    async def test_answer_and_tools_together(self, client: httpx.AsyncClient, tiny_format: Any) -> None:
        await ask(client, response_format={"type": "json_object"}, tool_choice="required")
        assert tiny_format.asked[0]["answer"].source == '{"type":"object"}'
        assert tiny_format.asked[0]["choice"] == ToolChoice("required")

    async def test_a_demand_without_known_tools_is_refused(self, client: httpx.AsyncClient) -> None:
        answer = await ask(client, tools=[{"type": "web_search"}], tool_choice="required")
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "tool_choice"

    async def test_older_and_newer_exclude_each_other(self, client: httpx.AsyncClient) -> None:
        answer = await ask(client, functions=[F["function"]])
        assert answer.json()["error"]["param"] == "functions"
        answer = await ask(client, tool_choice="auto", function_call="auto")
        assert answer.json()["error"]["param"] == "function_call"


THOUGHT = "<think>Hm, wörld 😀</think>"
CALL = '<call>f\n{"x": 1, "s": "é"}</call>'
SHELL_CALL = '<call>shell\n{"input": "ls -l\\n\\"é\\""}</call>'
REPLIES = {
    "text": "Hello, wörld! 😀",
    "thought": f"{THOUGHT}Hello <b>",
    "call": CALL,
    "thought and call": THOUGHT + CALL,
    "text and calls": f"First.{CALL}Then.{CALL} end <",
    "custom": f"Run: {SHELL_CALL}",
    "custom and function": SHELL_CALL + CALL + SHELL_CALL,
    "nothing": "<think></think>",
    "unfinished call": '<call>f\n{"x": ',
    "unfinished custom call": '<call>shell\n{"input": "l',
    "unfinished thought": "<think>hm",
}


def joined(events: list[Any]) -> dict[str, Any]:
    """The message and finish reason that a client puts together from the chunks of one choice."""
    message: dict[str, Any] = {"content": "", "reasoning": "", "reasoning_content": "", "calls": {}}
    reasons = []
    for event in events:
        for choice in event["choices"] if isinstance(event, dict) else ():
            delta = choice["delta"]
            for key in ("content", "reasoning", "reasoning_content"):
                message[key] += delta.get(key, "")
            for call in delta.get("tool_calls", ()):
                add_call(message["calls"], call)
            for key, text in delta.get("function_call", {}).items():
                older = message.setdefault("function_call", {"name": "", "arguments": ""})
                older[key] += text
            if choice["finish_reason"]:
                reasons.append(choice["finish_reason"])
    (message["finish_reason"],) = reasons
    return message


def add_call(calls: dict[int, Any], call: dict[str, Any]) -> None:
    kind = "custom" if "custom" in call else "function"
    if call["index"] not in calls:
        assert call["index"] == len(calls)
        assert call["id"]
        assert call.get("type") == (None if kind == "custom" else "function")
        calls[call["index"]] = {"id": call["id"], "type": kind, kind: dict(call[kind])}
        return
    assert set(call) == {"index", kind}
    for key, text in call[kind].items():
        calls[call["index"]][kind][key] += text


@pytest.mark.parametrize("name", REPLIES)
@pytest.mark.parametrize("burst", [1, 2, 3, 5, 7, 11, 100])
async def test_stream_equals_answer(
    client: httpx.AsyncClient, engine: Any, events: Callable[[str], Any], name: str, burst: int
) -> None:
    engine.reply, engine.burst = REPLIES[name], burst
    body = (await ask(client)).json()
    whole, message = body["choices"][0], body["choices"][0]["message"]
    options = {"include_usage": True}
    got = events((await ask(client, stream=True, stream_options=options)).text)
    pieces = joined(got)
    assert pieces["content"] == (message["content"] or "")
    assert pieces["reasoning"] == pieces["reasoning_content"] == message.get("reasoning", "")
    assert message.get("reasoning") == message.get("reasoning_content")
    assert list(pieces["calls"].values()) == message.get("tool_calls", [])
    assert pieces["finish_reason"] == whole["finish_reason"]
    assert got[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert got[-1] == "[DONE]"
    assert got[-2]["usage"] == body["usage"]
    if message["content"] is None:
        assert message["tool_calls"]


@pytest.mark.parametrize("burst", [1, 4, 100])
async def test_calls_and_their_reason(client: httpx.AsyncClient, engine: Any, burst: int) -> None:
    engine.reply, engine.burst = THOUGHT + CALL + SHELL_CALL, burst
    body = (await ask(client)).json()
    choice = body["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "reasoning": "Hm, wörld 😀",
        "reasoning_content": "Hm, wörld 😀",
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "f", "arguments": '{"x": 1, "s": "é"}'},
            },
            {"id": "call_2", "type": "custom", "custom": {"name": "shell", "input": 'ls -l\n"é"'}},
        ],
    }
    reasoning = body["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 0 <= reasoning < body["usage"]["completion_tokens"]


async def test_reasoning_tokens_are_counted(client: httpx.AsyncClient, engine: Any) -> None:
    engine.reply = THOUGHT + "x"
    usage = (await ask(client)).json()["usage"]
    assert usage["completion_tokens_details"]["reasoning_tokens"] >= len("Hm, wörld 😀".encode())


@pytest.mark.parametrize("stream", [False, True])
async def test_one_call_at_most_ends_the_reply(
    client: httpx.AsyncClient, engine: Any, events: Callable[[str], Any], stream: bool
) -> None:
    engine.reply = CALL + CALL
    answer = await ask(client, parallel_tool_calls=False, stream=stream)
    if stream:
        message = joined(events(answer.text))
        assert (len(message["calls"]), message["finish_reason"]) == (1, "tool_calls")
    else:
        choice = answer.json()["choices"][0]
        assert (len(choice["message"]["tool_calls"]), choice["finish_reason"]) == (1, "tool_calls")
    assert engine.aborted


@pytest.mark.parametrize("burst", [1, 6, 100])
async def test_older_calls(
    client: httpx.AsyncClient, engine: Any, events: Callable[[str], Any], burst: int
) -> None:
    engine.reply, engine.burst = f"Well.{CALL}{CALL}", burst
    fields = {"messages": MESSAGES, "functions": [F["function"]], "function_call": {"name": "f"}}
    choice = (await client.post(CHAT, json=fields)).json()["choices"][0]
    call = {"name": "f", "arguments": '{"x": 1, "s": "é"}'}
    assert choice["finish_reason"] == "function_call"
    assert choice["message"]["function_call"] == call
    assert "tool_calls" not in choice["message"]
    pieces = joined(events((await client.post(CHAT, json={**fields, "stream": True})).text))
    assert pieces["function_call"] == call
    assert (pieces["calls"], pieces["finish_reason"]) == ({}, "function_call")


@pytest.mark.parametrize("burst", [1, 5, 100])
async def test_several_choices_with_calls(
    client: httpx.AsyncClient, engine: Any, events: Callable[[str], Any], burst: int
) -> None:
    engine.reply, engine.burst = f"a{SHELL_CALL}{CALL}", burst
    choices = (await ask(client, n=3)).json()["choices"]
    got = events((await ask(client, n=3, stream=True)).text)
    for index, whole in enumerate(choices):
        own = [
            {"choices": [choice for choice in event["choices"] if choice["index"] == index]}
            for event in got[:-1]
        ]
        assert list(joined(own)["calls"].values()) == whole["message"]["tool_calls"]


async def test_logprobs_and_ids_beside_calls(
    client: httpx.AsyncClient, engine: Any, events: Callable[[str], Any]
) -> None:
    engine.reply, engine.burst = THOUGHT + CALL + SHELL_CALL, 3
    fields = {"logprobs": True, "top_logprobs": 1, "return_token_ids": True}
    whole = (await ask(client, **fields)).json()["choices"][0]
    assert len(whole["logprobs"]["content"]) == len(whole["token_ids"]) == len(engine.encode(engine.reply))
    ids, entries = [], []
    for event in events((await ask(client, stream=True, **fields)).text)[:-1]:
        ids += event["choices"][0].get("token_ids", [])
        entries += (event["choices"][0]["logprobs"] or {}).get("content", [])
    assert ids == whole["token_ids"]
    assert entries == whole["logprobs"]["content"]


async def test_a_tool_loop_is_told_to_the_model(
    client: httpx.AsyncClient, engine: Any, tokenizer: Any
) -> None:
    call = {"id": "c1", "type": "custom", "custom": {"name": "shell", "input": "ls"}}
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "be brief"}]},
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "a.txt"}]},
        {"role": "tool", "tool_call_id": "c2", "content": "b.txt"},
    ]
    assert (await ask(client, messages=messages)).status_code == 200
    text = tokenizer.decode(list(engine.seen[0].prompt_token_ids), skip_special_tokens=False)
    assert "system\nbe brief" in text
    assert "tool\na.txt" in text
    assert "tool\nb.txt" in text
    counted = (await client.post("/tokenize", json={"messages": messages, "tools": [F, G, SHELL]})).json()
    assert tuple(counted["tokens"]) == engine.seen[0].prompt_token_ids


def test_the_script_is_what_the_tests_say() -> None:
    assert json.loads(CALL[8:-7]) == {"x": 1, "s": "é"}
