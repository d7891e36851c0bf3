from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import httpx
import pytest

from braid.server.config import ServerConfig, ServerContext
from braid.server.encode import PromptEncoder

LONGEST = "<|endoftext|>"
ROUTES = {
    "/v1/chat/completions": lambda text: {"messages": [{"role": "user", "content": text}]},
    "/v1/completions": lambda text: {"prompt": text},
    "/tokenize": lambda text: {"prompt": text},
}


class TestWhatCannotFit:
    """The context is 1024 tokens and the longest token has 13 bytes."""

    @pytest.fixture
    def config(self) -> ServerConfig:
        return ServerConfig(large_bytes=2000)

    @pytest.mark.parametrize("route", ROUTES)
    @pytest.mark.parametrize("text", ["x" * 13 * 1024, "é" * 13 * 512], ids=["ascii", "wide"])
    async def test_is_not_tokenised(
        self,
        client: httpx.AsyncClient,
        tokenizer: Any,
        monkeypatch: pytest.MonkeyPatch,
        route: str,
        text: str,
    ) -> None:
        monkeypatch.setattr(tokenizer, "encode", None)
        answer = await client.post(route, json=ROUTES[route](text))
        error = answer.json()["error"]
        assert answer.status_code == 400
        assert error["code"] == "context_length_exceeded"
        assert error["param"] in ("prompt", "messages")
        assert "context is 1024 tokens" in error["message"]
        assert "at least 102" in error["message"]

    async def test_the_longest_tokens_fit(self, client: httpx.AsyncClient) -> None:
        answer = await client.post("/v1/completions", json={"prompt": LONGEST * 1023})
        assert answer.json()["usage"]["prompt_tokens"] == 1023

    async def test_the_first_long_prompt_ends_it(
        self, client: httpx.AsyncClient, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        encoded = []
        encode = tokenizer.encode

        def record(text: str, **options: Any) -> list[int]:
            encoded.append(text)
            return encode(text, **options)

        monkeypatch.setattr(tokenizer, "encode", record)
        answer = await client.post("/v1/completions", json={"prompt": ["x" * 1024, "y" * 1024]})
        assert answer.json()["error"]["code"] == "context_length_exceeded"
        assert encoded == ["x" * 1024]


async def test_large_bodies_take_turns_and_smaller_ones_pass(context: ServerContext) -> None:
    encoder = PromptEncoder(replace(context, config=ServerConfig(max_large_prompts=2)))
    both_run = threading.Barrier(2, timeout=20)
    running: list[int] = []
    most = 0

    def work() -> None:
        nonlocal most
        running.append(1)
        most = max(most, len(running))
        both_run.wait()
        running.pop()
        both_run.wait()

    large = context.config.large_bytes + 1
    tasks = [asyncio.create_task(encoder.off_loop(large, work)) for _ in range(3)]
    await asyncio.sleep(0)
    assert await encoder.off_loop(large - 1, threading.get_ident) != threading.get_ident()
    assert await encoder.off_loop(10, threading.get_ident) == threading.get_ident()
    await asyncio.gather(*tasks, encoder.off_loop(large, work))
    assert most == 2
