from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ValidationError

from braid.server.dialects.schemas import (
    TEMPLATE_UNSUPPORTED,
    UNSUPPORTED,
    ChatRequest,
    DetokenizeRequest,
    TokenizeRequest,
)

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]

VALID: dict[str, tuple[Any, ...]] = {
    "temperature": (0, 100, 0.5),
    "top_p": (1, 0.1),
    "top_k": (-1, 0, 2**31 - 1, 50),
    "min_p": (0, 1),
    "n": (1, 16),
    "max_tokens": (1, 500),
    "max_completion_tokens": (1, 500),
    "min_tokens": (0, 3),
    "presence_penalty": (-2, -1, 0, 2),
    "frequency_penalty": (-2, -1, 0, 2),
    "repetition_penalty": (0.5, 10),
    "seed": (-1, 0, 2**63, 2**63 - 1),
    "priority": (0, 7),
    "top_logprobs": (0, 20),
}
HOSTILE = (-1, 0, 2**63, -(2**63), 10**30, 1e308, -1e308, "1", "x", True, [1], {"a": 1}, 1.5)


def body(route: str, **fields: Any) -> dict[str, Any]:
    base = {"messages": MESSAGES} if route == CHAT else {"prompt": "hi"}
    extra = {"logprobs": True} if "top_logprobs" in fields and route == CHAT else {}
    return {**base, **extra, **fields}


def numeric_fields(route: str) -> list[str]:
    chat_only = ("max_completion_tokens", "top_logprobs")
    return [name for name in VALID if route == CHAT or name not in chat_only]


def documented(name: str, value: object) -> bool:
    """Numbers in range; 1.5 and -1e308 only where a float is meant and allowed."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    whole = isinstance(value, int)
    ranges: dict[str, tuple[float, float, bool]] = {
        "temperature": (0, 100, False),
        "top_p": (1e-9, 1, False),
        "top_k": (-1, 2**31 - 1, True),
        "min_p": (0, 1, False),
        "n": (1, 16, True),
        "max_tokens": (1, 1022, True),
        "max_completion_tokens": (1, 900, True),
        "min_tokens": (0, 900, True),
        "presence_penalty": (-2, 2, False),
        "frequency_penalty": (-2, 2, False),
        "repetition_penalty": (1e-9, 10, False),
        "seed": (-(2**63), 2**64 - 1, True),
        "priority": (0, 2**31 - 1, True),
        "top_logprobs": (0, 20, True),
    }
    low, high, integer = ranges[name]
    return low <= value <= high and (whole or not integer)


@pytest.mark.parametrize("route", [CHAT, TEXT])
@pytest.mark.parametrize("value", HOSTILE, ids=repr)
async def test_every_number_is_bounded(client: httpx.AsyncClient, route: str, value: Any) -> None:
    for name in numeric_fields(route):
        answer = await client.post(route, json=body(route, **{name: value}))
        expected = 200 if documented(name, value) else 400
        assert answer.status_code == expected, (name, value, answer.text)
        if expected == 400:
            error = answer.json()["error"]
            assert error["param"] in (name, "messages", "prompt"), (name, error)
            assert len(error["message"]) < 300


@pytest.mark.parametrize("route", [CHAT, TEXT])
async def test_values_in_range_and_null(client: httpx.AsyncClient, route: str) -> None:
    for name in numeric_fields(route):
        for value in (*VALID[name], None):
            answer = await client.post(route, json=body(route, **{name: value}))
            assert answer.status_code == 200, (name, value, answer.text)


@pytest.mark.parametrize("route", [CHAT, TEXT])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stop", ["a"] * 5),
        ("stop", ""),
        ("stop", [""]),
        ("stop", "x" * 513),
        ("stop", ["a", "x" * 513]),
        ("stop", [1]),
        ("stop", {"a": 1}),
        ("stop_token_ids", [259]),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [1] * 129),
        ("stop_token_ids", ["1"]),
        ("logit_bias", {"259": 1}),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {"1": "2"}),
        ("logit_bias", {str(i): 1 for i in range(1025)}),
        ("logit_bias", [1]),
        ("stream", "true"),
        ("stream", 1),
        ("stream_options", {"include_usage": True}),
        ("ignore_eos", "no"),
        ("metadata", {str(i): "x" for i in range(17)}),
        ("safety_identifier", "x" * 129),
        ("response_format", {"type": "json_schema", "json_schema": {}}),
        ("response_format", {}),
        ("response_format", "text"),
        ("cache_salt", 5),
        ("cache_salt", "x" * 257),
        ("model", 5),
        ("min_tokens", 2000),
        ("length_penalty", 1.5),
        ("length_penalty", 0),
        ("spaces_between_special_tokens", "no"),
        ("truncate_prompt_tokens", -1),
        ("web_search_options", {}),
        ("use_beam_search", True),
        ("allowed_token_ids", [1]),
        ("priority", -1),
        ("priority", 2**31),
        ("best_of", 2),
        ("prompt_logprobs", -1),
        ("prompt_logprobs", 21),
        ("metadata", {"k" * 65: "x"}),
        ("metadata", {"k": "x" * 513}),
        ("metadata", {"k": 1}),
        ("store", "yes"),
        ("user", 5),
        ("service_tier", 1),
        ("stream_options", {"include_usage": "yes"}),
        *[(name, "x") for name in UNSUPPORTED],
    ],
    ids=lambda value: str(value)[:30],
)
async def test_bad_fields_name_themselves(
    client: httpx.AsyncClient, engine: Any, route: str, name: str, value: Any
) -> None:
    answer = await client.post(route, json=body(route, **{name: value}))
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == name
    assert not engine.seen


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("messages", []),
        ("messages", "hi"),
        ("messages", [5]),
        ("messages", None),
        ("messages", [{"role": "user", "content": "x"}] * 16_385),
        ("tools", [{"type": "function", "function": {"name": "f"}}] * 257),
        ("tools", [{"type": "function"}]),
        ("tools", ["x"]),
        ("tool_choice", "required"),
        ("tool_choice", {"type": "function", "function": {"name": "f"}}),
        ("top_logprobs", 21),
        ("top_logprobs", 1),
        ("logprobs", 1),
        ("chat_template_kwargs", {"messages": []}),
        ("chat_template_kwargs", {"self": 1}),
        ("chat_template_kwargs", 5),
        ("verbosity", "loud"),
        ("prediction", "x"),
        ("moderation", 1),
        ("parallel_tool_calls", "no"),
        ("function_call", "required"),
        ("function_call", {"name": "f"}),
        ("functions", [{"name": ""}]),
        ("functions", [{}] * 257),
        ("prompt_logprobs", "x"),
        ("reasoning_effort", "huge"),
        ("modalities", ["audio"]),
        ("chat_template", "{{ messages }}"),
        ("documents", [{"title": "x"}]),
        ("echo", True),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_bad_chat_fields(client: httpx.AsyncClient, engine: Any, name: str, value: Any) -> None:
    answer = await client.post(CHAT, json={"messages": MESSAGES, name: value})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == name
    assert not engine.seen


async def test_missing_messages(client: httpx.AsyncClient) -> None:
    answer = await client.post(CHAT, json={})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages"


async def test_long_values_are_not_echoed(client: httpx.AsyncClient) -> None:
    answer = await client.post(CHAT, json={"messages": MESSAGES, "temperature": "s3cret" * 100})
    assert len(answer.json()["error"]["message"]) < 200


@pytest.mark.parametrize("route", [CHAT, TEXT])
@pytest.mark.parametrize("value", [None, False, "", []], ids=repr)
async def test_what_asks_for_nothing_is_accepted(client: httpx.AsyncClient, route: str, value: Any) -> None:
    fields = dict.fromkeys([*UNSUPPORTED, "chat_template", "documents"], value)
    answer = await client.post(route, json=body(route, **fields, echo=False))
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("route", [CHAT, TEXT])
async def test_defaults_of_others_are_accepted(client: httpx.AsyncClient, route: str) -> None:
    fields = {"length_penalty": 1, "spaces_between_special_tokens": True, "priority": 0}
    assert (await client.post(route, json=body(route, **fields))).status_code == 200


@pytest.mark.parametrize("route", [CHAT, TEXT])
async def test_nobody_jumps_the_queue(client: httpx.AsyncClient, engine: Any, route: str) -> None:
    answer = await client.post(route, json=body(route, priority=-5))
    assert answer.status_code == 400
    assert "first-come first-served" in answer.json()["error"]["message"]
    assert "-5" in answer.json()["error"]["message"]
    assert not engine.seen


@pytest.mark.parametrize("route", [CHAT, TEXT])
async def test_who_lets_others_go_first_may(client: httpx.AsyncClient, engine: Any, route: str) -> None:
    assert (await client.post(route, json=body(route, priority=9))).status_code == 200
    assert engine.seen[0].priority == 9


@pytest.mark.parametrize("route", [CHAT, TEXT])
@pytest.mark.parametrize("stream", [False, True])
async def test_ignored_fields_that_would_have_changed_the_output_are_named(
    client: httpx.AsyncClient, route: str, stream: bool
) -> None:
    fields = {"mirostat": 2, "logit_processors": ["x"], "typical_p": 1.0, "top_a": None, "made_up": 5}
    answer = await client.post(route, json=body(route, stream=stream, **fields))
    assert answer.status_code == 200
    assert answer.headers["warning"] == '199 braid "ignored: mirostat, logit_processors"'
    assert "warning" not in (await client.post(route, json=body(route, made_up=5))).headers


async def test_a_checked_field_without_effect_is_named_too(client: httpx.AsyncClient) -> None:
    named = await client.post(CHAT, json=body(CHAT, verbosity="low"))
    assert named.headers["warning"] == '199 braid "ignored: verbosity"'
    assert "warning" not in (await client.post(CHAT, json=body(CHAT, verbosity="medium"))).headers


@pytest.mark.parametrize("route", [CHAT, TEXT])
async def test_best_of_all_that_are_sent_is_accepted(client: httpx.AsyncClient, route: str) -> None:
    assert (await client.post(route, json=body(route, best_of=1))).status_code == 200
    assert (await client.post(route, json=body(route, best_of=3, n=3))).status_code == 200
    answer = await client.post(route, json=body(route, best_of=3, n=2))
    assert answer.json()["error"]["param"] == "best_of"


@pytest.mark.parametrize("name", TEMPLATE_UNSUPPORTED)
async def test_tokenize_refuses_what_would_change_its_count(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.post("/tokenize", json={"messages": MESSAGES, name: "x"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == name


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (ChatRequest, "messages"),
        (ChatRequest, "tools"),
        (ChatRequest, "modalities"),
        (ChatRequest, "stop_token_ids"),
        (TokenizeRequest, "messages"),
        (TokenizeRequest, "tools"),
        (DetokenizeRequest, "tokens"),
    ],
)
def test_a_list_of_wrong_entries_is_one_error(model: type[BaseModel], name: str) -> None:
    base = {"messages": MESSAGES, "tokens": [1]}
    with pytest.raises(ValidationError) as caught:
        model.model_validate({**base, name: [None] * 1000})
    assert caught.value.error_count() == 1


def test_a_list_of_wrong_stops_is_one_error_per_kind() -> None:
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate({"messages": MESSAGES, "stop": [None] * 1000})
    assert caught.value.error_count() == 2


@pytest.mark.parametrize("route", [CHAT, TEXT])
async def test_harmless_fields_are_accepted(client: httpx.AsyncClient, route: str) -> None:
    fields = {
        "user": "u",
        "metadata": {"a": "b"},
        "service_tier": "auto",
        "response_format": {"type": "text"},
    }
    answer = await client.post(route, json=body(route, **fields, made_up_field={"x": [1]}))
    assert answer.status_code == 200


@pytest.mark.parametrize("route", [CHAT, TEXT, "/tokenize", "/detokenize"])
async def test_unknown_model(client: httpx.AsyncClient, route: str) -> None:
    fields = {"messages": MESSAGES} if route in (CHAT, "/tokenize") else {"prompt": "x", "tokens": [1]}
    answer = await client.post(route, json={**fields, "model": "gpt-9"})
    assert answer.status_code == 404
    error = answer.json()["error"]
    assert error["code"] == "model_not_found"
    assert "tiny, alias" in error["message"]


async def test_the_asked_name_is_answered(client: httpx.AsyncClient) -> None:
    answer = await client.post(CHAT, json={"messages": MESSAGES, "model": "alias"})
    assert answer.json()["model"] == "alias"
