from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from braid.core.errors import EngineDeadError, OverloadedError

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
PROMPT = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post(CHAT, json={"messages": MESSAGES, **fields})


def joined(events: list[Any]) -> dict[int, dict[str, Any]]:
    """What a client puts together from a stream, by choice."""
    out: dict[int, dict[str, Any]] = {}
    for event in events:
        for choice in event["choices"] if isinstance(event, dict) else ():
            whole = out.setdefault(
                choice["index"], {"content": "", "role": None, "finish_reason": None, "logprobs": []}
            )
            whole["content"] += choice["delta"].get("content", "")
            whole["role"] = whole["role"] or choice["delta"].get("role")
            whole["finish_reason"] = whole["finish_reason"] or choice["finish_reason"]
            whole["logprobs"] += (choice["logprobs"] or {}).get("content", [])
    return out


async def test_answer(client: httpx.AsyncClient, engine: Any, tokenizer: Any) -> None:
    answer = await ask(client)
    body = answer.json()
    assert answer.status_code == 200
    assert body["object"] == "chat.completion"
    assert body["model"] == "tiny"
    choice = body["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": engine.reply, "refusal": None}
    assert choice["finish_reason"] == "stop"
    prompt = tokenizer.encode(PROMPT, add_special_tokens=False)
    output = len(engine.reply.encode())
    assert engine.seen[0].prompt_token_ids == tuple(prompt)
    assert body["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": output,
        "total_tokens": len(prompt) + output,
        "prompt_tokens_details": {"cached_tokens": 3, "cache_write_tokens": len(prompt) // 16 * 16 - 3},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }


async def test_stream_has_role_text_finish_usage_done(
    client: httpx.AsyncClient, events: Callable[[str], Any]
) -> None:
    answer = await ask(client, stream=True, stream_options={"include_usage": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"
    got = events(answer.text)
    assert got[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert got[-1] == "[DONE]"
    assert got[-2]["choices"] == []
    assert got[-2]["usage"]["completion_tokens"] > 0
    assert got[-3]["choices"][0]["finish_reason"] == "stop"
    assert got[-3]["choices"][0]["delta"] == {}
    assert all(event["usage"] is None for event in got[:-2])
    assert len({event["id"] for event in got[:-1]}) == 1


async def test_stream_without_usage(client: httpx.AsyncClient, events: Callable[[str], Any]) -> None:
    got = events((await ask(client, stream=True)).text)
    assert all(event["choices"] for event in got[:-1])


@pytest.mark.parametrize("burst", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"stop": "wör"},
        {"stop": ["wxx", "!?"]},
        {"stop": ["ld", "wörl"], "include_stop_str_in_output": True},
        {"max_tokens": 9},
        {"n": 3},
        {"logprobs": True, "top_logprobs": 2},
        {"logprobs": True, "stop": ["rld!X", "😀"]},
        {"logprobs": True, "n": 2, "max_completion_tokens": 8},
    ],
)
async def test_stream_equals_answer(
    client: httpx.AsyncClient, engine: Any, events: Callable[[str], Any], burst: int, fields: dict[str, Any]
) -> None:
    engine.burst = burst
    whole = (await ask(client, **fields)).json()
    pieces = joined(events((await ask(client, stream=True, **fields)).text))
    assert len(pieces) == len(whole["choices"]) == fields.get("n", 1)
    for choice in whole["choices"]:
        piece = pieces[choice["index"]]
        assert piece["role"] == "assistant"
        assert piece["content"] == choice["message"]["content"]
        assert piece["finish_reason"] == choice["finish_reason"]
        assert piece["logprobs"] == (choice["logprobs"] or {"content": []})["content"]


async def test_stop_string_ends_and_aborts(client: httpx.AsyncClient, engine: Any) -> None:
    choice = (await ask(client, stop=["wör"])).json()["choices"][0]
    assert choice["message"]["content"] == "Hello, "
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "wör")
    assert engine.aborted == [engine.seen[0].request_id]
    assert not engine.active


async def test_max_tokens_ends_with_length(client: httpx.AsyncClient) -> None:
    body = (await ask(client, max_tokens=500, max_completion_tokens=4)).json()
    assert body["choices"][0]["message"]["content"] == "Hell"
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 4


async def test_prompt_logprobs(client: httpx.AsyncClient, engine: Any) -> None:
    body = (await ask(client, prompt_logprobs=1, n=2)).json()
    tokens = engine.seen[0].prompt_token_ids
    assert len(body["prompt_logprobs"]) == len(tokens)
    assert body["prompt_logprobs"][0] is None
    assert body["prompt_logprobs"][1][str(tokens[1])]["logprob"] == -0.01
    assert "prompt_logprobs" not in (await ask(client)).json()
    assert (await ask(client, prompt_logprobs=1, stream=True)).json()["error"]["param"] == "prompt_logprobs"


@pytest.mark.parametrize(("effort", "thinks"), [("none", False), ("minimal", True), ("max", True)])
async def test_effort_reaches_the_template(
    client: httpx.AsyncClient, context: Any, monkeypatch: pytest.MonkeyPatch, effort: str, thinks: bool
) -> None:
    seen: dict[str, Any] = {}
    render = context.chat_template.render

    def record(messages: Any, **variables: Any) -> str:
        seen.update(variables)
        return str(render(messages, **variables))

    monkeypatch.setattr(context.chat_template, "render", record)
    await ask(client, reasoning_effort=effort, chat_template_kwargs={"thinking": "mine"})
    assert (seen["reasoning_effort"], seen["enable_thinking"]) == (effort, thinks)
    assert seen["thinking"] == "mine"


async def test_usage_with_every_chunk(client: httpx.AsyncClient, events: Callable[[str], Any]) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    got = events((await ask(client, stream=True, stream_options=options)).text)[:-1]
    counts = [event["usage"]["completion_tokens"] for event in got]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == counts[-2]


async def test_children_have_ids_and_streams_of_their_own(client: httpx.AsyncClient, engine: Any) -> None:
    body = (await ask(client, n=3, seed=7)).json()
    assert [request.request_id for request in engine.seen] == [f"{body['id']}-{index}" for index in range(3)]
    assert [request.params.seed for request in engine.seen] == [7, 8, 9]
    assert body["usage"]["completion_tokens"] == 3 * len(engine.reply.encode())
    assert body["usage"]["prompt_tokens"] == len(engine.seen[0].prompt_token_ids)


async def test_logprobs_name_tokens_and_bytes(client: httpx.AsyncClient, engine: Any) -> None:
    body = (await ask(client, logprobs=True, top_logprobs=2)).json()
    content = body["choices"][0]["logprobs"]["content"]
    assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == engine.reply
    assert content[0]["token"] == "H"
    assert content[0]["logprob"] == -0.5
    assert len(content[0]["top_logprobs"]) == 2


async def test_streamed_logprobs_belong_to_their_text(
    client: httpx.AsyncClient, events: Callable[[str], Any]
) -> None:
    got = events((await ask(client, stream=True, logprobs=True, stop=["xyz"])).text)
    for event in got[:-1]:
        choice = event["choices"][0]
        text = choice["delta"].get("content", "")
        entries = (choice["logprobs"] or {"content": []})["content"]
        assert bytes(byte for entry in entries for byte in entry["bytes"]) == text.encode()


async def test_return_token_ids(client: httpx.AsyncClient, engine: Any, events: Callable[[str], Any]) -> None:
    body = (await ask(client, return_token_ids=True)).json()
    assert tuple(body["prompt_token_ids"]) == engine.seen[0].prompt_token_ids
    assert body["choices"][0]["token_ids"] == engine.encode(engine.reply)
    got = events((await ask(client, return_token_ids=True, stream=True)).text)
    assert tuple(got[0]["prompt_token_ids"]) == engine.seen[0].prompt_token_ids
    streamed = [token for event in got[:-1] for token in event["choices"][0].get("token_ids", [])]
    assert streamed == body["choices"][0]["token_ids"]


async def test_fields_reach_the_engine(client: httpx.AsyncClient, engine: Any) -> None:
    fields = {
        "temperature": 0,
        "top_k": 5,
        "top_p": 0.5,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "presence_penalty": 1,
        "frequency_penalty": -1.0,
        "min_tokens": 2,
        "ignore_eos": True,
        "stop_token_ids": [5],
        "logit_bias": {"7": -3},
        "seed": 11,
        "skip_special_tokens": False,
    }
    answer = await ask(client, **fields, priority=0, cache_salt="salt", max_tokens=30)
    assert answer.status_code == 200
    request = engine.seen[0]
    assert (request.priority, request.cache_salt, request.params.max_tokens) == (0, "salt", 30)
    assert request.params.logit_bias == {7: -3}
    for name, value in fields.items():
        if name not in ("logit_bias", "stop_token_ids"):
            assert getattr(request.params, name) == value


async def test_absent_max_tokens_takes_what_remains(client: httpx.AsyncClient, engine: Any) -> None:
    await ask(client)
    request = engine.seen[0]
    assert request.params.max_tokens == 1024 - len(request.prompt_token_ids)


class TestMessages:
    async def prompt(self, client: httpx.AsyncClient, tokenizer: Any, **fields: Any) -> str:
        answer = await client.post("/tokenize", json=fields)
        assert answer.status_code == 200, answer.text
        return tokenizer.decode(answer.json()["tokens"], skip_special_tokens=False)

    async def test_parts_are_joined(self, client: httpx.AsyncClient, tokenizer: Any) -> None:
        parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
        text = await self.prompt(client, tokenizer, messages=[{"role": "user", "content": parts}])
        assert "user\na\nb<|im_end|>" in text

    async def test_developer_is_system(self, client: httpx.AsyncClient, tokenizer: Any) -> None:
        text = await self.prompt(client, tokenizer, messages=[{"role": "developer", "content": "x"}])
        assert text.startswith("<|im_start|>system\nx")

    async def test_null_content_beside_tool_calls(self, client: httpx.AsyncClient, tokenizer: Any) -> None:
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
        messages = [
            *MESSAGES,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "r1"},
            {"role": "tool", "tool_call_id": "2", "content": "r2"},
        ]
        assert "tool\nr2" in await self.prompt(client, tokenizer, messages=messages)

    async def test_continue_final_message(self, client: httpx.AsyncClient, tokenizer: Any) -> None:
        messages = [*MESSAGES, {"role": "assistant", "content": "Sure, "}]
        text = await self.prompt(client, tokenizer, messages=messages, continue_final_message=True)
        assert text.endswith("assistant\nSure, ")

    async def test_no_generation_prompt(self, client: httpx.AsyncClient, tokenizer: Any) -> None:
        text = await self.prompt(client, tokenizer, messages=MESSAGES, add_generation_prompt=False)
        assert text.endswith("<|im_end|>\n")

    async def test_tools_reach_the_template(self, client: httpx.AsyncClient, tokenizer: Any) -> None:
        tools = [{"type": "function", "function": {"name": "f"}}, {"type": "web_search"}]
        assert "[1 tools]" in await self.prompt(client, tokenizer, messages=MESSAGES, tools=tools)

    async def test_thoughts_are_accepted_in_either_spelling(
        self, client: httpx.AsyncClient, tokenizer: Any
    ) -> None:
        for name in ("reasoning", "reasoning_content"):
            messages = [*MESSAGES, {"role": "assistant", "content": "a", name: "hm"}, *MESSAGES]
            assert "assistant\na" in await self.prompt(client, tokenizer, messages=messages)

    async def test_foreign_tools_are_named_in_a_warning(self, client: httpx.AsyncClient) -> None:
        answer = await ask(client, tools=[{"type": "web_search"}])
        assert answer.status_code == 200
        assert "tools.0" in answer.headers["warning"]

    @pytest.mark.parametrize(
        ("message", "named"),
        [
            ({"role": "wizard", "content": "x"}, "wizard"),
            ({"content": "x"}, "role"),
            ({"role": "user"}, "content"),
            ({"role": "user", "content": 5}, "content"),
            ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "image_url"),
            ({"role": "user", "content": [5]}, "content"),
            ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "input_audio"),
            ({"role": "tool", "tool_call_id": "c"}, "content"),
            ({"role": "tool", "tool_call_id": 5, "content": "x"}, "tool_call_id"),
            ({"role": "assistant", "content": None, "tool_calls": [{"function": 1}]}, "tool_calls"),
        ],
    )
    async def test_bad_messages(self, client: httpx.AsyncClient, message: dict[str, Any], named: str) -> None:
        answer = await client.post(CHAT, json={"messages": [message]})
        assert answer.status_code == 400
        assert named in answer.json()["error"]["message"]
        assert answer.json()["error"]["param"].startswith("messages")


class TestEngineFaults:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize(
        ("error", "status"),
        [
            (EngineDeadError("down"), 503),
            (OverloadedError("full", retry_after=900), 503),
            (RuntimeError("secret"), 500),
        ],
    )
    async def test_before_the_first_token(
        self, client: httpx.AsyncClient, engine: Any, error: Exception, status: int, stream: bool
    ) -> None:
        engine.error = error
        answer = await ask(client, stream=stream)
        assert answer.status_code == status
        assert answer.json()["error"]["type"] == "server_error"
        assert "secret" not in answer.text
        assert "x-request-id" in answer.headers
        if status == 503:
            assert 1 <= int(answer.headers["retry-after"]) <= 120
            assert 1000 <= int(answer.headers["retry-after-ms"]) <= 120_000
        else:
            assert answer.headers["x-should-retry"] == "false"

    @pytest.mark.parametrize("n", [1, 2])
    async def test_in_a_stream(
        self, client: httpx.AsyncClient, engine: Any, events: Callable[[str], Any], n: int
    ) -> None:
        engine.error, engine.fail_after = EngineDeadError("the engine died"), 4
        got = events((await ask(client, stream=True, n=n)).text)
        assert got[-1]["error"]["message"] == "the engine died"
        assert "[DONE]" not in got
        await asyncio.sleep(0)
        assert not engine.active

    @pytest.mark.parametrize("stream", [False, True])
    async def test_one_request_fails(
        self, client: httpx.AsyncClient, engine: Any, events: Callable[[str], Any], stream: bool
    ) -> None:
        engine.delta_error = "bad luck"
        answer = await ask(client, stream=stream)
        if stream:
            assert events(answer.text)[-1]["error"]["code"] == "internal_error"
        else:
            assert answer.status_code == 500
            assert answer.json()["error"]["message"] == "bad luck"


class TestOpenAIClient:
    @pytest.fixture
    async def sdk(self, url: str):  # type: ignore[no-untyped-def]
        options: dict[str, Any] = {"max_retries": 0, "_strict_response_validation": True}
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", **options) as sdk:
            yield sdk

    async def test_answer(self, sdk: openai.AsyncOpenAI, engine: Any) -> None:
        answer = await sdk.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], logprobs=True, top_logprobs=3, n=2
        )
        assert answer.choices[1].message.content == engine.reply
        assert answer.usage is not None
        assert answer.usage.prompt_tokens_details is not None
        assert answer.usage.prompt_tokens_details.cached_tokens == 3

    async def test_stream(self, sdk: openai.AsyncOpenAI, engine: Any) -> None:
        stream = await sdk.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
            logprobs=True,
        )
        chunks = [chunk async for chunk in stream]
        assert (
            "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == engine.reply
        )
        assert chunks[-1].usage is not None

    async def test_completion(self, sdk: openai.AsyncOpenAI, engine: Any) -> None:
        answer = await sdk.completions.create(
            model="tiny", prompt="hi", logprobs=2, echo=False, max_tokens=50
        )
        assert answer.choices[0].text == engine.reply

    async def test_completion_stream(self, url: str, engine: Any) -> None:
        # Not strict: the SDK's type forbids a null finish_reason, which OpenAI itself sends in all chunks but the last.
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as sdk:
            stream = await sdk.completions.create(model="tiny", prompt="hi", stream=True, max_tokens=50)
            assert "".join([chunk.choices[0].text async for chunk in stream]) == engine.reply

    async def test_models(self, sdk: openai.AsyncOpenAI) -> None:
        assert [model.id async for model in sdk.models.list()] == ["tiny", "alias"]
        assert (await sdk.models.retrieve("alias")).id == "alias"
        with pytest.raises(openai.NotFoundError, match="tiny, alias"):
            await sdk.models.retrieve("gpt")

    async def test_errors_raise(self, sdk: openai.AsyncOpenAI, engine: Any) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            await sdk.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "x" * 2000}]
            )
        assert caught.value.code == "context_length_exceeded"
        engine.error, engine.fail_after = EngineDeadError("the engine died"), 4
        stream = await sdk.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        with pytest.raises(openai.APIError, match="the engine died"):
            [chunk async for chunk in stream]
