"""Whole answers and streams of real formats, however the engine cuts its output into steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from braid.text.detect import detect_format
from braid.text.reply_format import ReplyFormat

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hi"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
NOTE = {"type": "custom", "custom": {"name": "note"}}
ARGUMENTS = {"city": 'Zürich "日本" 😀'}
INPUT = "* a\n* é"


def call(name: str, arguments: dict[str, str]) -> str:
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


REPLIES = {
    "text": "Just <text> and {braces} 😀.",
    "thought": "<think>\nWhere? é\n</think>\n\nThere.",
    "call": call("weather", ARGUMENTS),
    "all": f"<think>Hm.</think>Look: {call('weather', ARGUMENTS)}\n{call('note', {'input': INPUT})}",
    "no call": "<tool_call>\nnot json\n</tool_call> after",
    "half a call": '<tool_call>\n{"name": "weather", "arg',
}


@pytest.fixture
def reply_format(tokenizer: Any) -> ReplyFormat:
    return detect_format(None, tokenizer, name="hermes")


def meaning(message: dict[str, Any]) -> dict[str, Any]:
    """A message without the ids of its calls, which differ from request to request."""
    calls = [
        (call.get("function") or {}).get("name") or call["custom"]["name"]
        for call in message.get("tool_calls") or ()
    ]
    texts = [
        call["custom"]["input"] if "custom" in call else call["function"]["arguments"]
        for call in message.get("tool_calls") or ()
    ]
    reasoning = message.get("reasoning") or ""
    return {"content": message.get("content") or "", "reasoning": reasoning, "calls": calls, "texts": texts}


def joined(events: list[Any]) -> dict[str, Any]:
    message: dict[str, Any] = {"content": "", "reasoning": "", "tool_calls": []}
    for event in events[:-1]:
        delta = event["choices"][0]["delta"]
        for key in ("content", "reasoning"):
            message[key] += delta.get(key, "")
        for piece in delta.get("tool_calls", ()):
            kind = "custom" if "custom" in piece else "function"
            if piece["index"] == len(message["tool_calls"]):
                message["tool_calls"].append({kind: dict(piece[kind])})
                continue
            for key, text in piece[kind].items():
                message["tool_calls"][piece["index"]][kind][key] += text
    return message


@pytest.mark.parametrize("name", REPLIES)
async def test_no_cut_changes_the_meaning(
    client: httpx.AsyncClient, engine: Any, events: Callable[[str], Any], name: str
) -> None:
    engine.reply = REPLIES[name]
    fields = {"messages": MESSAGES, "tools": [WEATHER, NOTE]}
    expected: dict[str, Any] | None = None
    for burst in (1, 2, 3, 4, 5, 7, 11, 16, 23, 40, 1000):
        engine.burst = burst
        choice = (await client.post(CHAT, json=fields)).json()["choices"][0]
        got = events((await client.post(CHAT, json={**fields, "stream": True})).text)
        whole = meaning(choice["message"])
        assert meaning(joined(got)) == whole
        assert got[-2]["choices"][0]["finish_reason"] == choice["finish_reason"]
        expected = expected or whole
        assert whole == expected
    assert expected is not None
    assert expected["calls"] == {"call": ["weather"], "all": ["weather", "note"]}.get(name, [])


async def test_what_a_reply_means(client: httpx.AsyncClient, engine: Any) -> None:
    engine.reply = REPLIES["all"]
    fields = {"messages": MESSAGES, "tools": [WEATHER, NOTE]}
    choice = (await client.post(CHAT, json=fields)).json()["choices"][0]
    got = meaning(choice["message"])
    assert json.loads(got["texts"][0]) == ARGUMENTS
    assert got["texts"][1] == INPUT
    assert (got["reasoning"], choice["finish_reason"]) == ("Hm.", "tool_calls")
    assert got["content"].startswith("Look:")
