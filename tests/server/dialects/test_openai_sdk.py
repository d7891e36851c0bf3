"""The official SDK over a socket, refusing whatever its types do not foresee.

Three of its types refuse what OpenAI's own servers send, and what no server could send otherwise: a text chunk before
the last has no finish reason (the type wants one), the first token of an echoed prompt has no log-probability (the type
wants a number), and vectors come as base64, which the SDK asks for by itself (the type wants a list). These are checked
with a lenient client, and the rest of them strictly.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI
from openai.types import Completion
from pydantic import BaseModel

from braid.text.reply_format import PlainFormat

HELLO = [{"role": "user", "content": "hi"}]
PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "tells", "parameters": SCHEMA, "strict": True},
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
SHELL = {"type": "custom", "custom": {"name": "shell", "description": "runs"}}
GRAMMAR = {"type": "grammar", "grammar": {"syntax": "lark", "definition": "start: /x/"}}
PATCH = {"type": "custom", "custom": {"name": "patch", "format": GRAMMAR}}
NAMED = {"type": "function", "function": {"name": "weather"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Ulm"}'},
}
LOOP = [
    {"role": "developer", "content": "be brief"},
    *HELLO,
    {"role": "assistant", "content": None, "tool_calls": [CALL, {**CALL, "id": "call_2"}]},
    {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
    {"role": "tool", "tool_call_id": "call_2", "content": PARTS},
]
CUSTOM_LOOP = [
    *HELLO,
    {
        "role": "assistant",
        "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "shell", "input": "ls"}}],
    },
    {"role": "tool", "tool_call_id": "c", "content": "a.txt"},
]
OLDER_LOOP = [
    *HELLO,
    {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}},
    {"role": "function", "name": "weather", "content": "sun"},
]
TEXT = "Hello, wörld! 😀"
THOUGHT = "<think>Hm, é</think>"
WEATHER_CALL = '<call>weather\n{"city": "Ulm"}</call>'
SHELL_CALL = '<call>shell\n{"input": "ls\\n"}</call>'
JSON = '{"city": "Ulm"}'

CHATS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": (TEXT, {}),
    "empty": ("<think></think>", {}),
    "alias": (TEXT, {"model": "alias"}),
    "max_tokens": (TEXT, {"max_tokens": 5}),
    "max_completion_tokens": (TEXT, {"max_completion_tokens": 3}),
    "temperature": (TEXT, {"temperature": 0, "top_p": 0.9}),
    "penalties": (TEXT, {"presence_penalty": 0.5, "frequency_penalty": -0.5}),
    "seed": (TEXT, {"seed": 7}),
    "stop": (TEXT, {"stop": "wör"}),
    "stops": (TEXT, {"stop": ["xyz", "!"]}),
    "n": (TEXT, {"n": 3}),
    "n with thought": (THOUGHT + TEXT, {"n": 2}),
    "logprobs": (TEXT, {"logprobs": True}),
    "top_logprobs": (TEXT, {"logprobs": True, "top_logprobs": 5}),
    "logprobs and stop": (TEXT, {"logprobs": True, "top_logprobs": 0, "stop": ["rld"]}),
    "logprobs and n": (TEXT, {"logprobs": True, "n": 2}),
    "logprobs and call": (WEATHER_CALL, {"logprobs": True, "tools": [WEATHER]}),
    "logit_bias": (TEXT, {"logit_bias": {"5": -100}}),
    "user": (TEXT, {"user": "u", "safety_identifier": "s", "store": False, "metadata": {"a": "b"}}),
    "service_tier": (TEXT, {"service_tier": "auto", "verbosity": "low"}),
    "prediction": (TEXT, {"prediction": {"type": "content", "content": "x"}}),
    "cache": (TEXT, {"prompt_cache_key": "k", "prompt_cache_options": {"mode": "implicit", "ttl": "30m"}}),
    "retention": (TEXT, {"prompt_cache_retention": "24h"}),
    "modalities": (TEXT, {"modalities": ["text"]}),
    "effort": (THOUGHT + TEXT, {"reasoning_effort": "high"}),
    "no effort": (TEXT, {"reasoning_effort": "none"}),
    "thought": (THOUGHT + TEXT, {}),
    "thought alone": ("<think>never ends", {}),
    "text format": (TEXT, {"response_format": {"type": "text"}}),
    "json object": (JSON, {"response_format": {"type": "json_object"}}),
    "json schema": (
        JSON,
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "city", "schema": SCHEMA, "strict": True},
            }
        },
    ),
    "tools unused": (TEXT, {"tools": [WEATHER, CLOCK]}),
    "call": (WEATHER_CALL, {"tools": [WEATHER]}),
    "text and call": ("Look: " + WEATHER_CALL, {"tools": [WEATHER], "tool_choice": "auto"}),
    "thought and call": (THOUGHT + WEATHER_CALL, {"tools": [WEATHER], "tool_choice": "required"}),
    "parallel calls": (WEATHER_CALL + WEATHER_CALL, {"tools": [WEATHER], "parallel_tool_calls": True}),
    "single call": (WEATHER_CALL + WEATHER_CALL, {"tools": [WEATHER], "parallel_tool_calls": False}),
    "named": (WEATHER_CALL, {"tools": [WEATHER, CLOCK], "tool_choice": NAMED}),
    "allowed": (WEATHER_CALL, {"tools": [WEATHER, CLOCK], "tool_choice": ALLOWED}),
    "none": (TEXT, {"tools": [WEATHER], "tool_choice": "none"}),
    "custom": (SHELL_CALL, {"tools": [SHELL]}),
    "custom and function": (SHELL_CALL + WEATHER_CALL, {"tools": [SHELL, WEATHER, PATCH]}),
    "calls and n": (WEATHER_CALL, {"tools": [WEATHER], "n": 2}),
    "cut call": (WEATHER_CALL, {"tools": [WEATHER], "max_tokens": 20}),
    "functions": (WEATHER_CALL, {"functions": [WEATHER["function"]], "function_call": "auto"}),
    "functions by name": (
        WEATHER_CALL,
        {"functions": [WEATHER["function"]], "function_call": {"name": "weather"}},
    ),
    "loop": (TEXT, {"messages": LOOP, "tools": [WEATHER]}),
    "custom loop": (TEXT, {"messages": CUSTOM_LOOP, "tools": [SHELL]}),
    "older loop": (TEXT, {"messages": OLDER_LOOP, "functions": [WEATHER["function"]]}),
    "parts": (TEXT, {"messages": [{"role": "user", "content": PARTS}]}),
    "system": (TEXT, {"messages": [{"role": "system", "content": "s"}, *HELLO]}),
    "refusal": (
        TEXT,
        {
            "messages": [
                *HELLO,
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
                *HELLO,
            ]
        },
    ),
    "extras": (
        TEXT,
        {"extra_body": {"top_k": 5, "min_p": 0.1, "min_tokens": 2, "return_token_ids": True, "made_up": 1}},
    ),
    "regex": (TEXT, {"extra_body": {"regex": ".*"}}),
    "choices": (TEXT, {"extra_body": {"guided_choice": ["a", "b"]}}),
}
TEXTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": (TEXT, {}),
    "many": (TEXT, {"prompt": ["a", "bc"], "n": 2}),
    "ids": (TEXT, {"prompt": [1, 2, 3]}),
    "lists of ids": (TEXT, {"prompt": [[1, 2], [3]]}),
    "best_of": (TEXT, {"best_of": 2, "n": 2}),
    "max_tokens": (TEXT, {"max_tokens": 3}),
    "stop": (TEXT, {"stop": ["wör"]}),
    "echo": (TEXT, {"echo": True}),
    "logprobs": (TEXT, {"logprobs": 3}),
    "logprobs alone": (TEXT, {"logprobs": 0}),
    "sampling": (TEXT, {"temperature": 0.5, "top_p": 0.5, "seed": 1, "presence_penalty": 1, "user": "u"}),
    "logit_bias": (TEXT, {"logit_bias": {"7": 3}}),
    "grammar": (TEXT, {"extra_body": {"grammar": 'start: "a"'}}),
    "nothing new": (TEXT, {"echo": True, "extra_body": {"max_tokens": 0}}),
}


@pytest.fixture
def reply_format(tiny_format: Any) -> PlainFormat:
    return tiny_format


@pytest.fixture
async def sdk(url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, _strict_response_validation=True
    ) as client:
        yield client


@pytest.fixture
async def lenient(url: str) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        yield client


def chat(fields: dict[str, Any]) -> dict[str, Any]:
    return {"model": "tiny", "messages": HELLO, **fields}


@pytest.mark.parametrize("name", CHATS)
async def test_chat(sdk: AsyncOpenAI, engine: Any, name: str) -> None:
    engine.reply, fields = CHATS[name]
    answer = await sdk.chat.completions.create(**chat(fields))
    assert len(answer.choices) == fields.get("n", 1)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    for choice in answer.choices:
        assert choice.message.role == "assistant"
        assert choice.finish_reason in ("stop", "length", "tool_calls", "function_call")


@pytest.mark.parametrize("name", CHATS)
async def test_chat_stream(sdk: AsyncOpenAI, engine: Any, name: str) -> None:
    engine.reply, fields = CHATS[name]
    engine.burst = 3
    whole = await sdk.chat.completions.create(**chat(fields))
    options = {"include_usage": True}
    stream = await sdk.chat.completions.create(**chat(fields), stream=True, stream_options=options)
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].usage == whole.usage
    for choice in whole.choices:
        deltas = [piece for chunk in chunks for piece in chunk.choices if piece.index == choice.index]
        assert deltas[0].delta.role == "assistant"
        assert "".join(piece.delta.content or "" for piece in deltas) == (choice.message.content or "")
        assert deltas[-1].finish_reason == choice.finish_reason


HELPED = [name for name in CHATS if not CHATS[name][1].get("functions") and "custom" not in name]


@pytest.mark.parametrize("name", HELPED)
async def test_chat_stream_helper(sdk: AsyncOpenAI, engine: Any, name: str) -> None:
    """The helper puts a message together from the deltas; a cut output is an error of its own."""
    engine.reply, fields = CHATS[name]
    engine.burst = 5
    whole = await sdk.chat.completions.create(**chat(fields))
    async with sdk.chat.completions.stream(**chat(fields)) as stream:
        if any(choice.finish_reason == "length" for choice in whole.choices):
            with pytest.raises(openai.LengthFinishReasonError):
                await stream.get_final_completion()
            return
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert "chunk" in kinds
    for made, choice in zip(final.choices, whole.choices, strict=True):
        assert (made.message.content or "") == (choice.message.content or "")
        assert made.finish_reason == choice.finish_reason
        calls = [
            (call.id, call.function.name, call.function.arguments) for call in made.message.tool_calls or ()
        ]
        assert calls == [
            (call.id, call.function.name, call.function.arguments)
            for call in choice.message.tool_calls or ()
            if call.type == "function"
        ]


class City(BaseModel):
    city: str


async def test_parse(sdk: AsyncOpenAI, engine: Any) -> None:
    engine.reply = JSON
    answer = await sdk.chat.completions.parse(model="tiny", messages=HELLO, response_format=City)
    assert answer.choices[0].message.parsed == City(city="Ulm")
    source = json.loads(engine.seen[0].params.constraint.source)
    assert source["required"] == ["city"]


async def test_parse_calls(sdk: AsyncOpenAI, engine: Any) -> None:
    engine.reply = '<call>City\n{"city": "Ulm"}</call>'
    tool = openai.pydantic_function_tool(City)
    answer = await sdk.chat.completions.parse(model="tiny", messages=HELLO, tools=[tool])
    (call,) = answer.choices[0].message.tool_calls or ()
    assert call.function.parsed_arguments == City(city="Ulm")


async def test_streamed_parse(sdk: AsyncOpenAI, engine: Any) -> None:
    engine.reply = JSON
    async with sdk.chat.completions.stream(model="tiny", messages=HELLO, response_format=City) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.parsed == City(city="Ulm")


async def test_two_turns(sdk: AsyncOpenAI, engine: Any) -> None:
    """What the first answer holds goes back as it is."""
    engine.reply = lambda prompt: "It is sunny." if "sun" in prompt else THOUGHT + WEATHER_CALL
    first = await sdk.chat.completions.create(model="tiny", messages=HELLO, tools=[WEATHER])
    message = first.choices[0].message
    (call,) = message.tool_calls or ()
    result = {"role": "tool", "tool_call_id": call.id, "content": "sun"}
    messages = [*HELLO, message.model_dump(), result]
    second = await sdk.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER])
    assert second.choices[0].message.content == "It is sunny."


@pytest.mark.parametrize("name", TEXTS)
async def test_completion(sdk: AsyncOpenAI, engine: Any, name: str) -> None:
    engine.reply, fields = TEXTS[name]
    answer = await sdk.completions.create(**{"model": "tiny", "prompt": "hi", **fields})
    prompt = fields.get("prompt", "hi")
    count = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    assert len(answer.choices) == fields.get("n", 1) * count
    assert all(choice.finish_reason in ("stop", "length") for choice in answer.choices)


@pytest.mark.parametrize("name", TEXTS)
async def test_completion_stream(sdk: AsyncOpenAI, lenient: AsyncOpenAI, engine: Any, name: str) -> None:
    engine.reply, fields = TEXTS[name]
    engine.burst = 4
    fields = {"model": "tiny", "prompt": "hi", **fields}
    whole = await sdk.completions.create(**fields)
    options = {"include_usage": True}
    stream = await lenient.completions.create(**fields, stream=True, stream_options=options)
    chunks = [strictly(chunk) async for chunk in stream]
    assert chunks[-1].usage == whole.usage
    for choice in whole.choices:
        pieces = [piece for chunk in chunks for piece in chunk.choices if piece.index == choice.index]
        assert "".join(piece.text for piece in pieces) == choice.text


def strictly(chunk: Completion) -> Completion:
    """The chunk as the strict client would take it, were its finish reason not missing."""
    body = chunk.to_dict()
    for choice in body["choices"]:
        choice["finish_reason"] = choice["finish_reason"] or "stop"
    return Completion.model_validate(body, strict=True)


@pytest.mark.parametrize("stream", [False, True])
async def test_echoed_logprobs(lenient: AsyncOpenAI, engine: Any, stream: bool) -> None:
    fields = {"model": "tiny", "prompt": "hé", "echo": True, "logprobs": 1, "max_tokens": 3}
    if stream:
        chunks = [chunk async for chunk in await lenient.completions.create(**fields, stream=True)]
        choices = [choice for chunk in chunks for choice in chunk.choices]
    else:
        choices = (await lenient.completions.create(**fields)).choices
    logprobs = [choice.logprobs for choice in choices if choice.logprobs is not None]
    tokens = [token for part in logprobs for token in part.tokens or ()]
    values = [value for part in logprobs for value in part.token_logprobs or ()]
    assert len(tokens) == len(values) == 6
    assert values[0] is None
    assert all(isinstance(value, float) for value in values[1:])


@pytest.mark.parametrize(
    "fields",
    [
        {"input": "hi"},
        {"input": ["a", "b"]},
        {"input": [1, 2]},
        {"input": [[1], [2]]},
        {"input": "hi", "dimensions": 2},
        {"input": "hi", "dimensions": 1, "user": "u"},
    ],
    ids=str,
)
async def test_embeddings(
    sdk: AsyncOpenAI, lenient: AsyncOpenAI, engine: Any, fields: dict[str, Any]
) -> None:
    engine.pooling = "last"
    answer = await sdk.embeddings.create(model="tiny", encoding_format="float", **fields)
    packed = await lenient.embeddings.create(model="tiny", **fields)
    for entry, other in zip(answer.data, packed.data, strict=True):
        assert other.embedding == pytest.approx(entry.embedding, rel=1e-6)
        assert len(entry.embedding) == fields.get("dimensions", 4)
        assert sum(value * value for value in entry.embedding) == pytest.approx(1, rel=1e-5)


async def test_models(sdk: AsyncOpenAI) -> None:
    models = [model async for model in sdk.models.list()]
    assert [model.id for model in models] == ["tiny", "alias"]
    assert (await sdk.models.retrieve("alias")).id == "alias"
    with pytest.raises(openai.NotFoundError):
        await sdk.models.retrieve("other")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 1000}, "temperature"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages"),
        ({"web_search_options": {}}, "web_search_options"),
    ],
    ids=str,
)
async def test_errors(sdk: AsyncOpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.chat.completions.create(**chat(fields))
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError):
        await sdk.chat.completions.create(**chat(fields), stream=True)
