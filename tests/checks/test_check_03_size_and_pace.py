"""Check 3: bodies that are too long are 413 before anything is parsed, slow ones 408, and slow heads are closed.

Heads, and the number of connections, are in ``tests/server/guard/test_connection.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator

import pytest

from braid.server.config import ServerConfig
from braid.server.guard import body as body_module

from ..server.guard.test_connection import PATIENCE, Server, guarded_protocol, talk
from ..server.guard.test_connection import uvicorn as _uvicorn
from .bodies import JSON, VALID, assert_refused, concrete, know_session
from .served import scripted

MIB = 1 << 20


@pytest.mark.parametrize("declared", [True, False])
async def test_too_long_is_413_on_every_route(declared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def chunks(count: int) -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(count):
            sent += 1
            yield b" " * 100

    async with scripted(ServerConfig(max_body_bytes=1000)) as served:
        await know_session(served.client)
        monkeypatch.setattr(body_module, "parse_object", None)
        for path in VALID:
            sent = 0
            content = b" " * 1001 if declared else chunks(100)
            answer = await served.client.post(concrete(path), content=content, headers=JSON)
            assert_refused(answer, path, (413,))
            assert answer.headers["connection"] == "close"


async def test_the_default_limit_is_32_mib_and_memory_stays_flat() -> None:
    """A stream without a length is cut at the limit: what follows is never held."""
    piece = b" " * MIB
    made = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal made
        while True:
            made += 1
            yield piece

    async with scripted() as served:
        await served.client.post("/tokenize", content=b" " * 31 * MIB, headers=JSON)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        app = served.app
        answers: list[dict[str, object]] = []
        source = endless()

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": await anext(source), "more_body": True}

        async def send(message: dict[str, object]) -> None:
            answers.append(message)

        scope = {
            "type": "http", "http_version": "1.1", "method": "POST", "path": "/v1/chat/completions",
            "raw_path": b"/v1/chat/completions", "query_string": b"", "scheme": "http", "root_path": "",
            "headers": [(b"host", b"x"), (b"content-type", b"application/json")],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        await app(scope, receive, send)  # type: ignore[arg-type]
        assert answers[0]["status"] == 413
        assert made == 33
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert grown < 64 << 10, f"{grown} KiB more for a body of 33 MiB, after one of 31 MiB"


@contextlib.asynccontextmanager
async def listening(config: ServerConfig) -> AsyncIterator[int]:
    """The application on a real socket, behind the protocol that watches the clock."""
    async with scripted(config) as served:
        options = {"ws": "none", "lifespan": "off", "log_config": None, "timeout_graceful_shutdown": 1}
        http = guarded_protocol(config)
        server = Server(_uvicorn.Config(served.app, port=0, http=http, **options))
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
        server.should_exit = True
        await task


def head(path: str, length: int) -> bytes:
    lines = (
        f"POST {path} HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        f"content-length: {length}",
    )
    return "\r\n".join((*lines, "", "")).encode()


async def drip(port: int, start: bytes, drops: bytes, pause: float) -> bytes:
    """Send ``start``, then ``drops`` one byte at a time, until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(start)

    async def drop() -> None:
        with contextlib.suppress(ConnectionError):
            for byte in drops:
                await asyncio.sleep(pause)
                writer.write(bytes([byte]))
                await writer.drain()

    dropping, answer = asyncio.create_task(drop()), b""
    try:
        async with asyncio.timeout(PATIENCE):
            with contextlib.suppress(ConnectionError):
                while piece := await reader.read(4096):
                    answer += piece
            return answer
    finally:
        dropping.cancel()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def assert_closed(answers: list[bytes]) -> None:
    """All connections were closed, with 408 wherever it came through: a byte sent after the end may wipe it out."""
    assert all(answer == b"" or answer.startswith(b"HTTP/1.1 408 ") for answer in answers), answers
    assert any(answers)


async def test_a_dripping_body_is_closed_at_the_read_timeout_on_every_route() -> None:
    async with listening(ServerConfig(body_timeout=0.3)) as port:
        paths = [concrete(path) for path in VALID if "{id" not in path]
        answers = await asyncio.gather(
            *(drip(port, head(path, 10_000), b" " * 9_000, 0.02) for path in paths)
        )
        assert_closed(answers)
        assert (
            await talk(port, b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        ).startswith(b"HTTP/1.1 200 ")


async def test_a_dripping_head_is_closed_at_the_header_timeout() -> None:
    async with listening(ServerConfig(header_timeout=0.3)) as port:
        paths = [concrete(path) for path in VALID]
        starts = [f"POST {path} HTTP/1.1\r\n".encode() for path in paths]
        answers = await asyncio.gather(
            *(drip(port, start, b"x-filler: " + b"a" * 9_000, 0.02) for start in starts)
        )
        assert_closed(answers)


async def test_a_body_that_never_comes_holds_no_place() -> None:
    """Requests that wait for their bodies end by themselves, and others are answered meanwhile."""
    async with listening(ServerConfig(body_timeout=0.5, max_queued=64)) as port:
        waiting = [asyncio.create_task(drip(port, head("/tokenize", 100), b"", 1)) for _ in range(10)]
        await asyncio.sleep(0)
        body = b'{"prompt": "hi"}'
        start = head("/tokenize", len(body)).replace(b"host:", b"connection: close\r\nhost:")
        assert (await talk(port, start + body)).startswith(b"HTTP/1.1 200 ")
        assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in await asyncio.gather(*waiting))


@pytest.mark.slow
async def test_one_byte_per_second() -> None:
    """The figure of the check."""
    async with listening(ServerConfig(body_timeout=10)) as port:
        answers = await asyncio.gather(
            *(drip(port, head("/v1/chat/completions", 10_000), b" " * 60, 1.0) for _ in range(20))
        )
        assert_closed(answers)
