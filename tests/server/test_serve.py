"""The server as a process: sockets, signals, draining."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from braid.core.errors import BraidError, CapacityError
from braid.server.config import ServerConfig, ServerContext
from braid.server.serve import _serve, bind, run

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}
SCRIPT = """
import importlib.util, pathlib, sys, tempfile
spec = importlib.util.spec_from_file_location("server_conftest", sys.argv[1])
fixtures = importlib.util.module_from_spec(spec)
sys.modules["server_conftest"] = fixtures
spec.loader.exec_module(fixtures)
from braid.checkpoint.open import open_checkpoint
from braid.checkpoint.resolve import resolve
from braid.core.errors import BraidError
from braid.server.config import ServerContext
from braid.server.serve import run
from braid.text.tokenizer import load_tokenizer
folder = pathlib.Path(tempfile.mkdtemp())
fixtures._write_byte_model(folder)
tokenizer = load_tokenizer(open_checkpoint(resolve(str(folder))))
engine = fixtures.FakeEngine(hold_after=5)
context = ServerContext(engine=engine, tokenizer=tokenizer, chat_template=None, served_model_names=("tiny",))
try:
    run(context, port=int(sys.argv[2]))
except BraidError as error:
    sys.exit(str(error))
"""


class TestBind:
    def test_a_port_in_use(self) -> None:
        with bind(port=0, config=ServerConfig()) as first:
            port = first.getsockname()[1]
            with pytest.raises(BraidError, match=f"port {port}: the port is in use"):
                bind(port=port, config=ServerConfig())

    @pytest.mark.parametrize("host", ["0.0.0.0", "::"])
    def test_open_to_others_needs_a_key(self, host: str) -> None:
        with pytest.raises(BraidError, match="without an API key"):
            bind(host, 0, config=ServerConfig())
        bind("0.0.0.0", 0, config=ServerConfig(api_key="k")).close()
        bind("0.0.0.0", 0, config=ServerConfig(), allow_open=True).close()

    @pytest.mark.parametrize(
        ("host", "port"), [("127.0.0.1", 70_000), ("127.0.0.1", -1), ("192.0.2.1", 0), ("", 0)]
    )
    def test_what_cannot_be_bound(self, host: str, port: int) -> None:
        with pytest.raises(BraidError):
            bind(host, port, config=ServerConfig())

    def test_loopback_by_default(self) -> None:
        with bind(port=0, config=ServerConfig()) as listener:
            assert listener.getsockname()[0] == "127.0.0.1"


class Running:
    def __init__(self, port: int, task: asyncio.Task[None], client: httpx.AsyncClient) -> None:
        self.port = port
        self.task = task
        self.client = client

    def fresh(self) -> httpx.AsyncClient:
        """A client with a connection of its own."""
        return httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}")


@pytest.fixture
async def running(context: ServerContext) -> AsyncIterator[Running]:
    listener = bind(port=0, config=context.config)
    port = listener.getsockname()[1]
    task = asyncio.create_task(_serve(context, listener, None, None))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        await wait_ready(client)
        yield Running(port, task, client)
        with contextlib.suppress(BaseException):
            task.cancel()
            await task
    listener.close()


async def wait_ready(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await client.get("/ready")).status_code == 200:
                    return
            await asyncio.sleep(0.02)


async def start_stream(running: Running, engine: Any) -> asyncio.Task[httpx.Response]:
    task = asyncio.create_task(running.client.post(CHAT, json={**BODY, "stream": True}))
    while not engine.active:
        await asyncio.sleep(0.01)
    return task


async def test_sigterm_drains(running: Running, engine: Any) -> None:
    engine.hold_after = 5
    stream = await start_stream(running, engine)
    signal.raise_signal(signal.SIGTERM)
    async with running.fresh() as client:
        while (await client.get("/ready")).status_code == 200:
            await asyncio.sleep(0.01)
        refused = await client.post(CHAT, json=BODY)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert (await client.get("/health")).status_code == 200
    engine.go.set()
    answer = await stream
    assert answer.text.endswith("data: [DONE]\n\n")
    async with asyncio.timeout(10):
        await running.task


class TestShortDrain:
    @pytest.fixture
    def config(self) -> ServerConfig:
        return ServerConfig(drain_timeout=0.1)

    @pytest.mark.parametrize("streaming", [True, False])
    async def test_what_is_left_gets_an_error(self, running: Running, engine: Any, streaming: bool) -> None:
        engine.hold_after = 5
        request = asyncio.create_task(running.client.post(CHAT, json={**BODY, "stream": streaming}))
        while not engine.active:
            await asyncio.sleep(0.01)
        signal.raise_signal(signal.SIGTERM)
        answer = await request
        assert "shutting down" in answer.text
        assert "[DONE]" not in answer.text
        assert answer.status_code == (200 if streaming else 503)
        async with asyncio.timeout(10):
            await running.task
        assert not engine.active


async def test_a_second_signal_ends_at_once(running: Running, engine: Any) -> None:
    engine.hold_after = 5
    stream = await start_stream(running, engine)
    signal.raise_signal(signal.SIGTERM)
    await asyncio.sleep(0)
    signal.raise_signal(signal.SIGTERM)
    async with asyncio.timeout(5):  # the drain time is 30 s
        await running.task
    await asyncio.wait([stream])
    assert not engine.active


class TestStartup:
    def test_its_error_ends_the_server(self, context: ServerContext) -> None:
        closed = []

        async def fail() -> None:
            raise CapacityError("4 GiB are missing")

        async def close() -> None:
            closed.append(True)

        with pytest.raises(CapacityError, match="4 GiB"):
            run(context, port=0, startup=fail, shutdown=close)
        assert closed == [True]

    async def test_serves_while_it_runs(self, context: ServerContext, engine: Any) -> None:
        engine.ready = False
        listener = bind(port=0, config=context.config)
        loading, gone = asyncio.Event(), asyncio.Event()

        async def close() -> None:
            gone.set()

        task = asyncio.create_task(_serve(context, listener, loading.wait, close))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{listener.getsockname()[1]}") as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    assert (await client.get("/ready")).status_code == 503
                    break
                await asyncio.sleep(0.01)
            engine.ready = True
            loading.set()
            await wait_ready(client)
        signal.raise_signal(signal.SIGTERM)
        await task
        assert gone.is_set()


class TestProcess:
    @pytest.fixture
    def process(self, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [sys.executable, "-c", SCRIPT, str(Path(__file__).with_name("conftest.py")), str(port)]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            yield process, port
            process.kill()

    async def test_port_in_use_then_sigterm(self, process: tuple[subprocess.Popen[bytes], int]) -> None:
        first, port = process
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            await wait_ready(client)
        command = [str(part) for part in first.args]  # type: ignore[union-attr]
        second = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=60)
        assert second.returncode == 1
        assert (
            second.stderr.decode().strip()
            == f"cannot listen on 127.0.0.1 port {port}: the port is in use; choose another one"
        )
        first.send_signal(signal.SIGTERM)
        start = time.monotonic()
        _, errors = await asyncio.to_thread(first.communicate)
        assert (first.returncode, errors) == (0, b"")
        assert time.monotonic() - start < 25


def test_no_torch() -> None:
    code = "import sys, braid.server.serve; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
