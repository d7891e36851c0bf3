"""Requests that use every part of the engine, and what of their answers must never change."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

import httpx

from braid.core.faults import Fault, FaultKind

from .rig import Rig, eventually


class Ask(NamedTuple):
    name: str
    path: str
    body: dict[str, Any]


def _text(name: str, prompt: str, **fields: Any) -> Ask:
    body = {"prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True}
    return Ask(name, "/v1/completions", body | fields)


def _talk(name: str, text: str, **fields: Any) -> Ask:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 24, "ignore_eos": True}
    return Ask(name, "/v1/chat/completions", body | fields)


ASKS = (
    _text("greedy", "one two three four"),
    _text("random", "seven eight", temperature=1.3, top_p=0.9, seed=7),
    _talk("chat stream", "tell me", stream=True, temperature=1.1, seed=11),
    _talk("chat", "tell me more", temperature=0, frequency_penalty=0.5),
    _text("long", "abcdefgh" * 24),
    _text("regex", "say", guided_regex="[a-z]{12}x"),
    _text("scored", "a prompt to be weighed", prompt_logprobs=1, max_tokens=8),
    Ask("vector", "/v1/embeddings", {"input": "a text to be embedded"}),
)
"""Greedy and seeded, streamed and not, held to a grammar, over several chunks, weighed, embedded."""


class Answer(NamedTuple):
    """What a client got: an error, or what must be the same whoever else is served."""

    status: int
    content: Any
    error: str | None

    @property
    def failed(self) -> bool:
        return self.error is not None


async def ask(rig: Rig, wanted: Ask) -> Answer:
    """Send one request; a connection that breaks is an error too."""
    try:
        response = await rig.post(wanted.path, wanted.body)
    except httpx.TransportError as error:
        return Answer(0, None, repr(error))
    kind = response.headers["content-type"]
    if kind.startswith("text/event-stream"):
        return _streamed(response)
    if not kind.startswith("application/json"):
        return Answer(response.status_code, None, response.text)
    payload = response.json()
    if response.status_code != 200:
        return Answer(response.status_code, None, payload["error"]["message"])
    if "data" in payload:
        return Answer(200, payload["data"], None)
    kept = [
        {key: choice.get(key) for key in ("text", "message", "finish_reason")}
        for choice in payload["choices"]
    ]
    return Answer(200, (kept, payload.get("prompt_logprobs")), None)


def _streamed(response: httpx.Response) -> Answer:
    """Chunks may be cut differently, so only what they say together counts."""
    data = [line[6:] for line in response.text.split("\n") if line.startswith("data: ")]
    events = [json.loads(item) for item in data if item != "[DONE]"]
    error = next((event["error"]["message"] for event in events if "error" in event), None)
    if error is None and data[-1:] != ["[DONE]"]:
        error = "the stream just stopped"
    choices = [choice for event in events for choice in event.get("choices", ())]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    return Answer(response.status_code, text, error)


async def ask_all(rig: Rig) -> dict[str, Answer]:
    """All of them at once."""
    answers = await asyncio.gather(*(ask(rig, wanted) for wanted in ASKS))
    return dict(zip((wanted.name for wanted in ASKS), answers, strict=True))


async def run_together(rig: Rig, *plan: Fault, all_strike: bool = True) -> dict[str, Answer]:
    """All requests at once: the first forward pass waits until the engine has them all, but for those that ended."""
    rig.gate.close()
    rig.faults.arm([Fault(point="forward", kind=FaultKind.DELAY), *plan])
    rig.allowed |= {500, 503}
    task = asyncio.create_task(ask_all(rig))
    ended = len(rig.statuses)

    async def all_in() -> bool:
        stats = await rig.stats()
        return stats.num_running + stats.num_waiting + len(rig.statuses) - ended >= len(ASKS) - 1

    await eventually(all_in)
    rig.gate.open()
    answers = await task
    if all_strike:
        assert rig.faults.unstruck == (), "a fault did not happen"
    return answers
