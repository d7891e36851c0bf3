"""Connections that are slow, long-winded or too many, on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest
import uvicorn
from starlette.applications import Starlette

from braid.server.config import ServerConfig
from braid.server.guard.connection import guarded_protocol, max_connections

HEAD = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
PATIENCE = 20


class Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@pytest.fixture
async def port(app: Starlette, config: ServerConfig) -> AsyncIterator[int]:
    options = {"ws": "none", "lifespan": "off", "log_config": None, "timeout_graceful_shutdown": 1}
    server = Server(uvicorn.Config(app, port=0, http=guarded_protocol(config), **options))  # type: ignore[arg-type]
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    await task


async def talk(port: int, *pieces: bytes) -> bytes:
    """Everything the server says until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
        answer = b""
        with contextlib.suppress(ConnectionError):
            answer = await reader.read()
        writer.close()
        return answer


class TestSlowHead:
    @pytest.fixture
    def config(self) -> ServerConfig:
        return ServerConfig(header_timeout=0.2)

    async def test_is_closed(self, port: int) -> None:
        assert (await talk(port, HEAD)).startswith(b"HTTP/1.1 408 ")

    async def test_no_byte_is_closed_in_silence(self, port: int) -> None:
        assert await talk(port) == b""

    async def test_a_dripping_head_gains_no_time(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                for byte in HEAD * 1000:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.02)

        dripping = asyncio.create_task(drip())
        # What crosses with the answer may reset the connection, and so lose the answer.
        answer = b"HTTP/1.1 408 "
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError):
                answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 408 ")
        dripping.cancel()
        writer.close()

    async def test_the_second_head_of_a_connection_too(self, port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"\r\n")
        async with asyncio.timeout(PATIENCE):
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200 ")
            writer.write(HEAD)
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()

    async def test_a_slow_answer_is_not_cut(self, app: Starlette, port: int) -> None:
        async def slow(request: object) -> object:
            from starlette.responses import PlainTextResponse

            await asyncio.sleep(0.5)
            return PlainTextResponse("late")

        app.add_route("/slow", slow)  # type: ignore[arg-type]
        answer = await talk(port, b"GET /slow HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"late")


class TestLongHead:
    @pytest.fixture
    def config(self) -> ServerConfig:
        return ServerConfig(max_header_bytes=4096)

    async def test_is_refused(self, port: int) -> None:
        filler = (b"x-filler: " + b"a" * 1000 + b"\r\n") * 5
        assert (await talk(port, HEAD + filler)).startswith(b"HTTP/1.1 431 ")

    async def test_a_short_one_passes_and_a_body_is_no_head(self, port: int) -> None:
        head = b"POST /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 20000\r\n\r\n"
        answer = await talk(port, head, *[b"b" * 1000] * 20)
        assert answer.startswith(b"HTTP/1.1 404 ")
        assert b" 431 " not in answer


class TestManyConnections:
    @pytest.fixture
    def config(self) -> ServerConfig:
        return ServerConfig(max_connections=2)

    async def test_more_are_turned_away(self, port: int) -> None:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for reader, writer in held:
            writer.write(HEAD + b"\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        answer = await talk(port)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 2\r\n" in answer
        held.pop()[1].close()
        while not (await talk(port, HEAD + b"connection: close\r\n\r\n")).startswith(b"HTTP/1.1 200 "):
            await asyncio.sleep(0.01)
        held.pop()[1].close()


def test_open_files_bound_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, 1024))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: None)
    assert max_connections(20) == 20
    assert max_connections(100_000) == 1024 - 128
