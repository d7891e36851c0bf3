"""Check 24: a reader that takes next to nothing holds a bounded buffer, is dropped in the end, and delays nobody.

``tests/server/test_sse.py`` has the first such test, for chat; here it is every route that streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn

from braid.core.request import Delta, FinishReason
from braid.engine.protocol import GenerateRequest
from braid.server.config import ServerConfig

from ..server.conftest import FakeEngine, LoopbackServer
from .bodies import LIMITS, VALID
from .served import byte_tokenizer, scripted

PIECE = (120,) * 2000
ENOUGH = 25_000
"""Pieces, 50 MB of text: far more than all buffers on the way."""
BUFFERS = 16 << 20
"""Bytes that may be under way: the transport's and both kernel buffers, with room for escapes and envelopes."""


@dataclass
class EndlessEngine(FakeEngine):
    """Writes for as long as somebody takes it; ``short`` prompts end at once."""

    pieces: int = 0

    async def _deltas(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        if request.params.max_tokens == 1:
            yield Delta(request.request_id, (120,), None, 0, FinishReason.LENGTH)
            return
        for _ in range(ENOUGH):
            self.pieces += 1
            yield Delta(request.request_id, PIECE, None, 0, None)
            await asyncio.sleep(0)
        yield Delta(request.request_id, PIECE, None, 0, FinishReason.STOP)


@contextlib.asynccontextmanager
async def listening(config: ServerConfig) -> AsyncIterator[tuple[int, EndlessEngine]]:
    tokenizer = byte_tokenizer()
    engine = EndlessEngine(decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=False))
    async with scripted(config, engine=engine) as served:
        options = {"ws": "none", "lifespan": "off", "log_config": None, "timeout_graceful_shutdown": 1}
        server = LoopbackServer(uvicorn.Config(served.app, port=0, **options))
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1], engine
        server.should_exit = True
        await task


async def begin(port: int, path: str) -> socket.socket:
    """A connection with a small window that has asked for a stream and reads nothing."""
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    slow.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(slow, ("127.0.0.1", port))
    fields: dict[str, Any] = {**VALID[path], LIMITS[path]: 500, "stream": True}
    body = json.dumps(fields).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    await loop.sock_sendall(slow, head.encode() + body)
    return slow


async def stalled(engine: EndlessEngine) -> None:
    """Return once nobody takes what the engine writes."""
    async with asyncio.timeout(30):
        last = -1
        while engine.pieces != last or not last:
            last = engine.pieces
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("path", LIMITS)
async def test_its_buffer_is_bounded_and_others_go_on(path: str) -> None:
    async with listening(ServerConfig(slow_reader_seconds=0.6, keepalive_seconds=0.2)) as (port, engine):
        with await begin(port, path):
            await stalled(engine)
            assert engine.pieces * len(PIECE) < BUFFERS
            assert engine.pieces < ENOUGH
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                for other in LIMITS:
                    answer = await client.post(other, json={**VALID[other], LIMITS[other]: 1})
                    assert answer.status_code == 200
            async with asyncio.timeout(30):
                while engine.active:
                    await asyncio.sleep(0.02)
        assert len(engine.aborted) == 1


@pytest.mark.slow
async def test_one_byte_per_second() -> None:
    """It takes something now and then, so it may stay; what it holds does not grow."""
    async with listening(ServerConfig()) as (port, engine):
        with await begin(port, "/v1/chat/completions") as slow:
            await stalled(engine)
            before = engine.pieces
            for _ in range(20):
                assert len(await asyncio.get_running_loop().sock_recv(slow, 1)) == 1
                await asyncio.sleep(1)
            assert (engine.pieces - before) * len(PIECE) < BUFFERS
        async with asyncio.timeout(30):
            while engine.active:
                await asyncio.sleep(0.02)
