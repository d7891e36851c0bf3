"""Agents against a real engine: usage is what was found in its blocks, and lines that change cost nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from braid import LLM
from braid.core.request import Delta
from braid.engine.local import LocalClient
from braid.engine.protocol import GenerateRequest
from braid.server.app import create_app
from braid.server.config import ServerContext
from braid.text.template import ChatTemplate

from .conftest import small_llm

TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}</{{ message.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
LINE = "x-anthropic-billing-header: cc_version=2.1.36.c4f; cc_entrypoint=cli; cch={};"
BLOCK = 4


class Listener(LocalClient):
    """Writes down how many tokens the engine found for each request."""

    def __init__(self, llm: LLM) -> None:
        super().__init__(llm._core)
        self.found: list[int] = []

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Delta]:  # type: ignore[override]
        self.found.append(0)
        async for delta in super().generate(request):
            self.found[-1] = delta.num_cached_tokens
            yield delta


@pytest.fixture(params=["braid", "lru", "continuum"])
def listener(request: pytest.FixtureRequest, tiny_llama: Path) -> Iterator[Listener]:
    with small_llm(tiny_llama, agent_policy=request.param, max_model_len=400) as llm:
        listener = Listener(llm)
        listener.tokenizer = llm.tokenizer  # type: ignore[attr-defined]
        yield listener


@pytest.fixture
async def client(listener: Any) -> AsyncIterator[httpx.AsyncClient]:
    context = ServerContext(
        engine=listener,
        tokenizer=listener.tokenizer,
        chat_template=ChatTemplate(TEMPLATE, bos_token="", eos_token=""),
        served_model_names=("tiny",),
    )
    transport = httpx.ASGITransport(app=create_app(context))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def chat(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 5}


def _openai(usage: dict[str, Any]) -> int:
    return int(usage["prompt_tokens_details"]["cached_tokens"])


DIALECTS: dict[str, tuple[str, Callable[[str], dict[str, Any]], Callable[[dict[str, Any]], int]]] = {
    "chat": ("/v1/chat/completions", chat, _openai),
    "completions": ("/v1/completions", lambda text: {"prompt": text, "max_tokens": 5}, _openai),
    "responses": (
        "/v1/responses",
        lambda text: {"input": text, "max_output_tokens": 16},
        lambda usage: int(usage["input_tokens_details"]["cached_tokens"]),
    ),
    "messages": ("/v1/messages", chat, lambda usage: int(usage["cache_read_input_tokens"])),
}


@pytest.mark.parametrize("name", list(DIALECTS))
async def test_usage_is_what_was_in_the_blocks(client: httpx.AsyncClient, listener: Any, name: str) -> None:
    path, body, cached = DIALECTS[name]
    history = "The quick brown fox jumps over the lazy dog. "
    told = []
    for number in range(3):
        if number == 2:  # what was left is evicted first
            for token in range(100, 106):
                away = {"prompt": [[token] * 390], "max_tokens": 2}
                assert (await client.post("/v1/completions", json=away)).status_code == 200
        listener.found.clear()
        answer = await client.post(path, json={**body(history), "session_id": "s"})
        assert answer.status_code == 200, answer.text
        told.append(cached(answer.json()["usage"]))
        assert told[-1] == listener.found[-1]
        history += "And so on and on. "
    assert told[0] == 0
    assert told[1] >= 40
    if listener.info.agent_policy == "lru":
        assert told[2] < told[1]


def coding_agent(cch: str, talk: list[dict[str, Any]]) -> dict[str, Any]:
    system = [{"type": "text", "text": LINE.format(cch)}, {"type": "text", "text": "You are an agent. " * 4}]
    return {"model": "tiny", "max_tokens": 8, "system": system, "messages": talk}


async def test_turns_that_differ_in_the_billing_line_share_their_blocks(
    client: httpx.AsyncClient, listener: Any
) -> None:
    talk = [{"role": "user", "content": "Weather in Rome?"}]
    usages = []
    for cch in ("11111", "fffff", "22222"):
        answer = await client.post(
            "/v1/messages", json=coding_agent(cch, talk), headers={"x-claude-code-session-id": "s"}
        )
        assert answer.status_code == 200, answer.text
        usages.append(answer.json()["usage"])
    first, *others = usages
    assert first["cache_read_input_tokens"] == 0
    whole = first["input_tokens"] + first["cache_creation_input_tokens"]
    for usage in others:
        assert usage["cache_read_input_tokens"] == (whole - 1) // BLOCK * BLOCK


async def test_where_the_kv_of_a_program_lives(client: httpx.AsyncClient, listener: Any) -> None:
    answer = await client.post("/v1/chat/completions", json={**chat("hello " * 8), "session_id": "s"})
    assert answer.status_code == 200, answer.text
    (shown,) = (await client.get("/v1/sessions")).json()["data"]
    assert shown["kv"]["blocks"] == shown["kv"]["device_blocks"] > 10
    assert shown["finish"] == "length"
    answer = await client.post("/v1/sessions/s/pin", json={"seconds": 30})
    assert answer.json()["outcome"] == "applied"
    (shown,) = (await client.get("/v1/sessions")).json()["data"]
    assert 29 < shown["lease_seconds"] <= 30
