"""Streams on a real socket: what a client that leaves, waits or dawdles sees and causes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from braid.server.config import ServerConfig
from braid.server.sse import EventTemplate, event

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.01)


async def connect(url: str, **fields: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a chat request over a bare socket."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps({**BODY, **fields}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()
    return reader, writer


class TestDisconnect:
    @pytest.mark.parametrize("stream", [False, True])
    @pytest.mark.parametrize("n", [1, 3])
    @pytest.mark.parametrize("hold_after", [0, 5])
    async def test_a_client_that_leaves_cancels(
        self, url: str, engine: Any, stream: bool, n: int, hold_after: int
    ) -> None:
        """Queued (no token yet) or decoding, streaming or not, alone or many."""
        engine.hold_after = hold_after
        _, writer = await connect(url, stream=stream, n=n)
        await until(lambda: len(engine.active) == n)
        writer.close()
        await until(lambda: not engine.active)
        assert len(engine.aborted) == n

    async def test_others_go_on(self, url: str, engine: Any) -> None:
        engine.hold_after = 5
        _, writer = await connect(url, stream=True)
        async with httpx.AsyncClient() as client:
            other = asyncio.create_task(client.post(url + CHAT, json=BODY))
            await until(lambda: len(engine.active) == 2)
            writer.close()
            await until(lambda: len(engine.active) == 1)
            engine.go.set()
            assert (await other).json()["choices"][0]["message"]["content"] == engine.reply

    async def test_half_a_body(self, url: str, engine: Any) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
        )
        await writer.drain()
        writer.close()
        async with httpx.AsyncClient() as client:
            assert (await client.get(url + "/health")).status_code == 200


class TestKeepAlive:
    @pytest.fixture
    def config(self) -> ServerConfig:
        return ServerConfig(keepalive_seconds=0.05)

    @pytest.mark.parametrize("hold_after", [0, 5])
    async def test_silence_is_broken_by_comments(
        self, url: str, engine: Any, events: Callable[[str], Any], hold_after: int
    ) -> None:
        engine.hold_after = hold_after
        async with (
            httpx.AsyncClient() as client,
            client.stream("POST", url + CHAT, json={**BODY, "stream": True}) as got,
        ):
            text = ""
            async for piece in got.aiter_text():
                text += piece
                if text.count(": ping\n\n") >= 2:
                    engine.go.set()
        payloads = events(text)
        assert payloads[-1] == "[DONE]"
        assert payloads[0]["choices"][0]["delta"]["role"] == "assistant"

    async def test_a_late_error_is_an_event(
        self, url: str, engine: Any, events: Callable[[str], Any]
    ) -> None:
        engine.hold_after, engine.fail_after, engine.error = 0, 0, RuntimeError("secret")
        async with (
            httpx.AsyncClient() as client,
            client.stream("POST", url + CHAT, json={**BODY, "stream": True}) as got,
        ):
            assert got.status_code == 200
            engine.go.set()
            text = (await got.aread()).decode()
        assert events(text)[-1]["error"]["type"] == "server_error"
        assert "secret" not in text
        assert "[DONE]" not in text


class TestSlowReader:
    @pytest.fixture
    def config(self) -> ServerConfig:
        return ServerConfig(slow_reader_seconds=0.2)

    async def test_is_dropped_and_others_are_not_delayed(self, url: str, engine: Any) -> None:
        engine.reply = "x" * 900
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.socket() as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            slow.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(slow, (host, int(port)))
            fields = {**BODY, "stream": True, "n": 16, "logprobs": True, "top_logprobs": 20}
            body = json.dumps(fields).encode()
            head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            await loop.sock_sendall(slow, f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            await until(lambda: len(engine.active) == 16)
            async with httpx.AsyncClient(timeout=10) as client:
                assert (await client.post(url + CHAT, json=BODY)).status_code == 200
            await until(lambda: not engine.active)
        assert len(engine.aborted) > 0


class TestEventTemplate:
    @pytest.mark.parametrize("text", ["plain", "", 'a"b\\', "\n\x00\x1b", "wörld 😀", "\u2028</script>"])
    def test_filled_is_encoded(self, text: str) -> None:
        def make(value: str) -> bytes:
            return event({"head": 1, "reasoning": value, "reasoning_content": value, "tail": None})

        assert EventTemplate(make).fill(text) == make(text)
