from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

ROUTE = "/v1/completions"


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    return await client.post(ROUTE, json={"max_tokens": 50, **fields})


async def test_answer(client: httpx.AsyncClient, engine: Any) -> None:
    body = (await ask(client, prompt="hi")).json()
    assert body["object"] == "text_completion"
    assert body["choices"][0]["text"] == engine.reply
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("hi", 1), (["hi", "ho", "hu"], 3), ([1, 2, 3], 1), ([[1, 2], [3]], 2), (["hi", [1, 2]], 2)],
)
async def test_prompt_shapes(client: httpx.AsyncClient, engine: Any, prompt: Any, expected: int) -> None:
    body = (await ask(client, prompt=prompt, n=2)).json()
    assert [choice["index"] for choice in body["choices"]] == list(range(2 * expected))
    assert len({request.request_id for request in engine.seen}) == 2 * expected
    assert engine.seen[0].prompt_token_ids == engine.seen[1].prompt_token_ids
    assert (
        body["usage"]["prompt_tokens"] == sum(len(request.prompt_token_ids) for request in engine.seen) // 2
    )
    assert body["usage"]["prompt_tokens_details"]["cached_tokens"] == 3 * expected


async def test_outputs_are_bounded_over_all_prompts(client: httpx.AsyncClient, engine: Any) -> None:
    answer = await ask(client, prompt=["x"] * 17, n=16)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "n"
    assert "272 outputs, at most 256" in answer.json()["error"]["message"]
    assert not engine.seen
    assert (await ask(client, prompt=["x"] * 16, n=16, max_tokens=1)).status_code == 200


async def test_token_ids_go_through_untouched(client: httpx.AsyncClient, engine: Any) -> None:
    await ask(client, prompt=[5, 6, 258])
    assert engine.seen[0].prompt_token_ids == (5, 6, 258)


@pytest.mark.parametrize(
    "prompt",
    ["", [], [""], [[]], None, 5, True, {"a": 1}, [1.5], [True], [[1], []], ["x", None], [["x"]], [1, "x"]],
)
async def test_bad_prompts(client: httpx.AsyncClient, engine: Any, prompt: Any) -> None:
    answer = await ask(client, prompt=prompt)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "prompt"
    assert not engine.seen


@pytest.mark.parametrize("prompt", [[-1], [259], [2**63], [[1], [10**30]]])
async def test_ids_outside_the_vocabulary(client: httpx.AsyncClient, prompt: Any) -> None:
    answer = await ask(client, prompt=prompt)
    assert answer.status_code == 400
    assert "vocabulary" in answer.json()["error"]["message"]


@pytest.mark.parametrize("prompt", ["hé", ["hé", "ho"], [1, 2], [[65, 66], [67]]])
async def test_echo(
    client: httpx.AsyncClient, engine: Any, tokenizer: Any, events: Callable[[str], Any], prompt: Any
) -> None:
    plain = (await ask(client, prompt=prompt)).json()["choices"]
    echoed = (await ask(client, prompt=prompt, echo=True)).json()["choices"]
    streamed = events((await ask(client, prompt=prompt, echo=True, stream=True)).text)
    for index, choice in enumerate(echoed):
        prefix = choice["text"].removesuffix(plain[index]["text"])
        assert tokenizer.encode(prefix, add_special_tokens=False) == list(engine.seen[index].prompt_token_ids)
        pieces = [event["choices"][0] for event in streamed[:-1]]
        assert "".join(piece["text"] for piece in pieces if piece["index"] == index) == choice["text"]


async def test_logprobs(client: httpx.AsyncClient, engine: Any, events: Callable[[str], Any]) -> None:
    engine.reply = "abcé"
    whole = (await ask(client, prompt="hi", logprobs=1)).json()["choices"][0]["logprobs"]
    assert whole["token_logprobs"] == [-0.5] * 5
    assert whole["text_offset"][:4] == [0, 1, 2, 3]
    assert whole["tokens"][:3] == ["a", "b", "c"]
    assert all(
        entry[token] == -0.5 for entry, token in zip(whole["top_logprobs"], whole["tokens"], strict=True)
    )
    streamed: dict[str, list[Any]] = {key: [] for key in whole}
    for event in events((await ask(client, prompt="hi", logprobs=1, stream=True)).text)[:-1]:
        for key, values in event["choices"][0]["logprobs"].items():
            streamed[key] += values
    assert streamed == whole


@pytest.mark.parametrize("burst", [1, 3, 50])
async def test_echo_with_logprobs(
    client: httpx.AsyncClient, engine: Any, events: Callable[[str], Any], burst: int
) -> None:
    engine.reply, engine.burst = "aé!", burst
    fields = {"prompt": "hé<|im_end|>y", "echo": True, "logprobs": 1}
    choice = (await ask(client, **fields)).json()["choices"][0]
    whole = choice["logprobs"]
    assert choice["text"] == "hé<|im_end|>yaé!"
    assert whole["tokens"] == ["h", "\ufffd", "\ufffd", "<|im_end|>", "y", "a", "\ufffd", "\ufffd", "!"]
    assert whole["text_offset"] == [0, 1, 1, 2, 12, 13, 14, 14, 15]
    assert whole["token_logprobs"] == [None, -0.01, -0.02, -0.03, -0.04, -0.5, -0.5, -0.5, -0.5]
    assert whole["top_logprobs"][0] is None
    assert all(len(top) in (1, 2) for top in whole["top_logprobs"][1:])
    streamed: dict[str, list[Any]] = {key: [] for key in whole}
    for event in events((await ask(client, stream=True, **fields)).text)[:-1]:
        for key, values in event["choices"][0]["logprobs"].items():
            streamed[key] += values
    assert streamed == whole


async def test_added_special_tokens_have_no_text(client: httpx.AsyncClient, engine: Any) -> None:
    choice = (await ask(client, prompt=[256, 71, 72], echo=True, logprobs=0, n=2)).json()["choices"][1]
    tokens, offsets = choice["logprobs"]["tokens"][:3], choice["logprobs"]["text_offset"][:3]
    assert tokens[0] == "<|endoftext|>"
    assert offsets == [0, 0, 1]
    assert engine.seen[0].params.prompt_logprobs == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_nothing_but_the_prompt(
    client: httpx.AsyncClient, engine: Any, events: Callable[[str], Any], stream: bool
) -> None:
    fields = {"prompt": ["hi", "hoo"], "echo": True, "logprobs": 2, "max_tokens": 0, "stream": stream}
    answer = await ask(client, **fields, **({"stream_options": {"include_usage": True}} if stream else {}))
    got = events(answer.text)[:-1] if stream else [answer.json()]
    choices = sorted((choice for event in got for choice in event["choices"]), key=lambda body: body["index"])
    assert [choice["text"] for choice in choices] == ["hi", "hoo"]
    assert [choice["finish_reason"] for choice in choices] == ["length", "length"]
    assert choices[1]["logprobs"]["tokens"] == ["h", "o", "o"]
    assert choices[1]["logprobs"]["token_logprobs"] == [None, -0.01, -0.02]
    assert got[-1]["usage"]["completion_tokens"] == 0
    assert got[-1]["usage"]["prompt_tokens"] == 5


async def test_no_tokens_without_echo_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post(ROUTE, json={"prompt": "x", "max_tokens": 0})
    assert answer.json()["error"]["param"] == "max_tokens"


async def test_prompt_logprobs(client: httpx.AsyncClient, engine: Any) -> None:
    body = (await ask(client, prompt="abc", prompt_logprobs=1)).json()
    entries = body["choices"][0]["prompt_logprobs"]
    first, second = engine.seen[0].prompt_token_ids[1:]
    assert entries[0] is None
    assert entries[1] == {
        str(first): {"logprob": -0.01, "rank": 1, "decoded_token": "b"},
        "0": {"logprob": -1.0, "rank": 1, "decoded_token": "!"},
    }
    assert list(entries[2]) == [str(second), "0"]
    assert body["choices"][0]["logprobs"] is None
    refused = await ask(client, prompt="abc", prompt_logprobs=1, stream=True)
    assert refused.json()["error"]["param"] == "prompt_logprobs"


@pytest.mark.parametrize("route", [ROUTE, "/v1/chat/completions"])
async def test_missing_prompt_logprobs_are_an_error(
    client: httpx.AsyncClient, engine: Any, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    monkeypatch.setattr(engine, "_prompt_logprobs", lambda request: None)
    messages = [{"role": "user", "content": "hi"}]
    fields = {"prompt": "hi"} if route == ROUTE else {"messages": messages}
    answer = await client.post(route, json={**fields, "prompt_logprobs": 0})
    assert answer.status_code == 500
    assert "log-probabilities" in answer.json()["error"]["message"]


async def test_usage_with_every_chunk(client: httpx.AsyncClient, events: Callable[[str], Any]) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    got = events((await ask(client, prompt="hi", stream=True, stream_options=options)).text)[:-1]
    counts = [event["usage"]["completion_tokens"] for event in got]
    assert counts == sorted(counts)
    assert counts[0] >= 1
    assert counts[-1] == counts[-2] == 19


@pytest.mark.parametrize("stop", ["wör", ["!", "\n"]])
@pytest.mark.parametrize("burst", [1, 4, 50])
async def test_stream_equals_answer(
    client: httpx.AsyncClient, engine: Any, events: Callable[[str], Any], stop: Any, burst: int
) -> None:
    engine.burst = burst
    whole = (await ask(client, prompt="hi", stop=stop)).json()
    got = events(
        (await ask(client, prompt="hi", stop=stop, stream=True, stream_options={"include_usage": True})).text
    )
    assert "".join(event["choices"][0]["text"] for event in got[:-2]) == whole["choices"][0]["text"]
    assert [event["choices"][0]["finish_reason"] for event in got[:-2]][-1] == "stop"
    assert got[-2]["usage"] == whole["usage"]
    assert got[-1] == "[DONE]"


@pytest.mark.parametrize("max_tokens", [1023, 2000, 2**63])
async def test_context_length(client: httpx.AsyncClient, max_tokens: int) -> None:
    answer = await ask(client, prompt="hi", max_tokens=max_tokens)
    error = answer.json()["error"]
    assert answer.status_code == 400
    assert error["code"] == "context_length_exceeded"
    assert "1024" in error["message"]
    assert str(max_tokens) in error["message"]


async def test_the_whole_context_may_be_used(client: httpx.AsyncClient) -> None:
    assert (await ask(client, prompt="hi", max_tokens=1022)).status_code == 200
    assert (await ask(client, prompt="x" * 1023, max_tokens=None)).status_code == 200
    assert (await ask(client, prompt="x" * 1024, max_tokens=None)).status_code == 400


async def test_absent_max_tokens_means_sixteen(client: httpx.AsyncClient, engine: Any) -> None:
    body = (await client.post(ROUTE, json={"prompt": "hi"})).json()
    assert body["usage"]["completion_tokens"] == 16
    assert body["choices"][0]["finish_reason"] == "length"
    await client.post(ROUTE, json={"prompt": ["hi", "x" * 1020], "max_tokens": None})
    assert [request.params.max_tokens for request in engine.seen] == [16, 16, 4]


@pytest.mark.parametrize("ids", [[10**9] * 1024, ["x"] * 1024, [None] * 5000])
@pytest.mark.parametrize("nested", [False, True])
async def test_length_is_checked_before_ids(client: httpx.AsyncClient, ids: Any, nested: bool) -> None:
    if not nested:
        ids = [1, *ids[1:]]  # the first entry tells token ids from a list of prompts
    error = (await ask(client, prompt=[ids] if nested else ids)).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert str(len(ids)) in error["message"]
    assert "1024" in error["message"]
