"""Check 12: what a model of each shipped format writes, in pieces of any size: every stream says what the answer says.

``tests/text/test_formats.py`` cuts the readers themselves at every character; here it is HTTP, in three dialects.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from braid.core.request import Delta, FinishReason
from braid.engine.protocol import GenerateRequest
from braid.text.format_data import formats

from ..server.conftest import FakeEngine, parse_events
from ..text.test_formats import FORMATS, TEXTS, TOOLS
from .served import byte_tokenizer, scripted

ASK = "hi"
PARTS = list[tuple[str, ...]]


@dataclass
class CutEngine(FakeEngine):
    """Sends its reply in pieces of the given sizes, the last of which holds the rest."""

    sizes: Sequence[int] = ()

    async def _deltas(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        tokens = self.encode(self.text_for(request.prompt_token_ids))
        at = 0
        for size in (*self.sizes, len(tokens)):
            piece = tuple(tokens[at : at + size])
            at += size
            last = at >= len(tokens)
            yield Delta(request.request_id, piece, None, 0, FinishReason.STOP if last else None)
            if last:
                return


def chat_body(stream: bool) -> dict[str, Any]:
    tools = [tool.as_openai() for tool in TOOLS]
    return {"messages": [{"role": "user", "content": ASK}], "tools": tools, "stream": stream}


def responses_body(stream: bool) -> dict[str, Any]:
    tools = [{"type": "function", **tool.as_openai()["function"]} for tool in TOOLS]
    return {"model": "tiny", "input": ASK, "tools": tools, "stream": stream}


def messages_body(stream: bool) -> dict[str, Any]:
    tools = [{"name": tool.name, "input_schema": tool.parameters} for tool in TOOLS]
    return {
        "model": "tiny",
        "max_tokens": 1000,
        "messages": [{"role": "user", "content": ASK}],
        "tools": tools,
        "stream": stream,
    }


def told(parts: PARTS) -> PARTS:
    """Without the empty ones."""
    return [part for part in parts if any(part[1:])]


def chat_answer(answer: dict[str, Any]) -> PARTS:
    choice = answer["choices"][0]
    message = choice["message"]
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    return told(
        [
            ("reasoning", message.get("reasoning") or ""),
            ("text", message["content"] or ""),
            *(("call", call["name"], call["arguments"]) for call in calls),
            ("end", choice["finish_reason"]),
        ]
    )


def chat_stream(events: list[Any]) -> PARTS:
    message: dict[str, Any] = {"reasoning": "", "content": "", "tool_calls": []}
    finish = ""
    assert events[-1] == "[DONE]"
    for event in events[:-1]:
        for choice in event["choices"]:
            delta = choice["delta"]
            for key in ("reasoning", "content"):
                message[key] += delta.get(key) or ""
            for piece in delta.get("tool_calls") or ():
                if piece["index"] == len(message["tool_calls"]):
                    message["tool_calls"].append({"function": dict(piece["function"])})
                else:
                    call = message["tool_calls"][piece["index"]]["function"]
                    call["arguments"] += piece["function"]["arguments"]
            finish = choice["finish_reason"] or finish
    return chat_answer({"choices": [{"message": message, "finish_reason": finish}]})


def responses_answer(answer: dict[str, Any]) -> PARTS:
    parts: PARTS = []
    for item in answer["output"]:
        if item["type"] == "function_call":
            parts.append(("call", item["name"], item["arguments"]))
        else:
            kind = "reasoning" if item["type"] == "reasoning" else "text"
            parts.append((kind, "".join(content["text"] for content in item["content"])))
    return [*told(parts), ("end", answer["status"])]


_DELTAS = {
    "response.reasoning_text.delta": "reasoning",
    "response.output_text.delta": "text",
    "response.function_call_arguments.delta": "call",
}


def responses_stream(events: list[Any]) -> PARTS:
    """The deltas alone; that the last event holds the same is asserted."""
    items: dict[int, list[str]] = {}
    for event in events:
        if event["type"] == "response.output_item.added":
            item = event["item"]
            named = ["call", item["name"], ""] if item["type"] == "function_call" else ["text", ""]
            items[event["output_index"]] = ["reasoning", ""] if item["type"] == "reasoning" else named
        elif event["type"] in _DELTAS:
            assert items[event["output_index"]][0] == _DELTAS[event["type"]]
            items[event["output_index"]][-1] += event["delta"]
    last = events[-1]["response"]
    parts = [*told([tuple(items[index]) for index in sorted(items)]), ("end", last["status"])]
    assert parts == responses_answer(last)
    return parts


def messages_answer(answer: dict[str, Any]) -> PARTS:
    parts: PARTS = []
    for block in answer["content"]:
        match block["type"]:
            case "tool_use":
                parts.append(("call", block["name"], json.dumps(block["input"])))
            case "thinking":
                parts.append(("reasoning", block["thinking"]))
            case _:
                parts.append(("text", block["text"]))
    return [*told(parts), ("end", answer["stop_reason"])]


def messages_stream(events: list[Any]) -> PARTS:
    blocks: list[dict[str, Any]] = []
    stop = None
    for event in events:
        match event["type"]:
            case "content_block_start":
                assert event["index"] == len(blocks)
                blocks.append({**event["content_block"], "json": ""})
            case "content_block_delta":
                delta, block = event["delta"], blocks[event["index"]]
                if delta["type"] == "input_json_delta":
                    block["json"] += delta["partial_json"]
                elif delta["type"] in ("text_delta", "thinking_delta"):
                    key = delta["type"].removesuffix("_delta")
                    block[key] += delta[key]
            case "message_delta":
                stop = event["delta"]["stop_reason"]
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block["json"] or "{}")
    return messages_answer({"content": blocks, "stop_reason": stop})


Dialect = tuple[str, Callable[[bool], dict[str, Any]], Callable[[Any], PARTS], Callable[[list[Any]], PARTS]]
DIALECTS: dict[str, Dialect] = {
    "chat": ("/v1/chat/completions", chat_body, chat_answer, chat_stream),
    "responses": ("/v1/responses", responses_body, responses_answer, responses_stream),
    "messages": ("/v1/messages", messages_body, messages_answer, messages_stream),
}


async def say(client: httpx.AsyncClient, dialect: Dialect, *, stream: bool) -> PARTS:
    path, body, answer, streamed = dialect
    got = await client.post(path, json=body(stream))
    assert got.status_code == 200, got.text
    return streamed(parse_events(got.text)) if stream else answer(got.json())


def random_sizes(rng: random.Random, length: int) -> list[int]:
    most = rng.choice((2, 5, 20, 100))
    return [rng.randint(1, most) for _ in range(length)]


async def check(dialect: str, name: str, cuts: Callable[[int], list[list[int]]]) -> None:
    """Every reply of a format: whole, one byte at a time, and cut as told."""
    tokenizer = byte_tokenizer()
    engine = CutEngine(
        encode=lambda text: tokenizer.encode(text, add_special_tokens=False),
        decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=False),
    )
    async with scripted(engine=engine, reply_format=FORMATS[name]) as served:
        for text in [text for owner, text in TEXTS if owner == name]:
            length = len(text.encode())
            engine.reply, engine.sizes = text, ()
            wanted = await say(served.client, DIALECTS[dialect], stream=False)
            for sizes in ([1] * length, *cuts(length)):
                engine.sizes = sizes
                assert await say(served.client, DIALECTS[dialect], stream=True) == wanted, (text, sizes)
            assert await say(served.client, DIALECTS[dialect], stream=False) == wanted


def test_every_shipped_format_has_replies() -> None:
    assert {name for name, _ in TEXTS} == set(formats())


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", FORMATS)
async def test_the_stream_is_the_answer(dialect: str, name: str) -> None:
    rng = random.Random(f"{dialect} {name}")
    await check(dialect, name, lambda length: [[], *(random_sizes(rng, length) for _ in range(2))])


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", FORMATS)
async def test_the_stream_is_the_answer_at_every_cut(dialect: str, name: str) -> None:
    await check(dialect, name, lambda length: [[at] for at in range(1, length)])
