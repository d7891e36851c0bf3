"""The whole application on a socket, around an engine whose faults and steps a test controls."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from braid.checkpoint.open import open_checkpoint
from braid.checkpoint.resolve import resolve
from braid.core.config import EngineConfig
from braid.core.faults import Fault, FaultKind, Faults
from braid.engine.build import build_engine
from braid.engine.client import ProcessClient
from braid.engine.core import EngineCore
from braid.engine.local import LocalClient
from braid.engine.protocol import EngineStats
from braid.server.app import create_app
from braid.server.config import ServerConfig, ServerContext
from braid.server.guard.connection import guarded_protocol
from braid.server.observe.config import ObserveConfig
from braid.text.reply_format import PlainFormat, ReplyFormat
from braid.text.template import ChatTemplate
from braid.text.tokenizer import Tokenizer, load_tokenizer

from ..server.conftest import LoopbackServer

PATIENCE = 120.0
"""Seconds after which what does not happen counts as a hang; nothing here waits for time to pass."""
ALWAYS = 10**9
BLOCK = 4
ENGINE: dict[str, Any] = {
    "dtype": "float32",
    "max_num_seqs": 8,
    "max_num_batched_tokens": 64,
    "max_model_len": 256,
    "block_size": BLOCK,
    "kv_cache_memory": 400 * BLOCK * 2 * 2 * 64 * 4,
    "threads": 1,
    "pooling": "last",
}
"""400 blocks of 4 tokens; 2 layers of K and V with one head of 64 float32."""
ENGINE_POINTS = frozenset(("admit", "compile", "blocks", "mask", "score", "pool"))
ENGINE_POINTS |= {"forward", "head", "sample", "row"}
SERVER_POINTS = frozenset(("server.render", "server.encode", "server.constraint", "server.write"))
SERVER_POINTS |= {"server.reader", "server.feed", "server.finish", "server.bytes"}


async def eventually(holds: Callable[[], Any], every: float = 0.005) -> None:
    """Wait until something is so; ``holds`` may be a coroutine function. Seconds between two questions: ``every``."""
    async with asyncio.timeout(PATIENCE):
        while True:
            held = holds()
            if await held if asyncio.iscoroutine(held) else held:
                return
            await asyncio.sleep(every)


class Gate:
    """Lets steps of the engine through one by one: a ``sleep`` for faults that delay every forward pass."""

    def __init__(self) -> None:
        self.arrived = 0
        """Forward passes that have come here; all but the last have gone through, unless the gate is open."""
        self._open = False
        self._passes = threading.Semaphore(0)

    def __call__(self, seconds: float) -> None:
        self.arrived += 1
        if not self._open and not self._passes.acquire(timeout=PATIENCE):
            raise TimeoutError("nobody opened the gate")

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self._passes.release()

    def open(self) -> None:
        self._open = True
        self._passes.release(100)

    def close(self) -> None:
        """Hold the next step; none may be in flight."""
        self._open = False
        self._passes = threading.Semaphore(0)
        self.arrived = 0

    async def reached(self, step: int) -> None:
        """The given step, counted from 1, stands before the gate."""
        await eventually(lambda: self.arrived >= step)


def held_steps() -> Fault:
    """Makes every forward pass ask the gate."""
    return Fault(point="forward", kind=FaultKind.DELAY, count=ALWAYS)


class Proxy:
    """An object with some of its methods replaced."""

    def __init__(self, inner: Any, **methods: Any) -> None:
        self._inner = inner
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@dataclass
class Rig:
    """An application, its engine, and a client that remembers what was answered."""

    url: str
    client: httpx.AsyncClient
    engine: Any
    context: ServerContext
    faults: Faults
    core: EngineCore | None
    statuses: list[int] = field(default_factory=list)
    allowed: set[int] = field(default_factory=set)
    """Statuses from 500 on that this check expects."""
    restarts: int = 0
    """Engine deaths that this check expects."""
    gate: Gate = field(default_factory=Gate)

    async def post(self, path: str, body: Mapping[str, Any], **options: Any) -> httpx.Response:
        return await self.client.post(path, json=dict(body), **options)

    async def stats(self) -> EngineStats:
        stats: EngineStats = await self.engine.stats()
        return stats

    async def is_free(self) -> bool:
        """Nothing runs, and every block can be granted."""
        stats = await self.stats()
        busy = stats.num_running + stats.num_waiting
        return not busy and stats.num_free_blocks == stats.num_blocks

    async def settle(self) -> None:
        """The condition that every check ends with: nothing left, nothing lost, no engine and no server failed."""
        await eventually(self.is_free)
        assert self.engine.restarts == self.restarts
        assert (await self.client.get("/health")).status_code == 200
        metrics = (await self.client.get("/metrics")).text
        assert sample(metrics, "braid_requests_running") == sample(metrics, "braid_requests_waiting") == 0
        unexpected = [status for status in self.statuses if status >= 500 and status not in self.allowed]
        assert not unexpected, f"answers {unexpected}"
        if self.core is not None:
            await asyncio.wrap_future(
                self.core._loop.post(lambda scheduler, now: scheduler.check_integrity())
            )
            assert len(self.core.runner.masks) == 0
            assert not self.core._sinks


def sample(metrics: str, name: str) -> float:
    """The value of the first sample of a metric."""
    lines = (line for line in metrics.splitlines() if line.startswith((f"{name} ", f"{name}{{")))
    return float(next(lines).rpartition(" ")[2])


def tokenizer_of(model: Path) -> Tokenizer:
    return load_tokenizer(open_checkpoint(resolve(str(model))))


@asynccontextmanager
async def local(
    model: Path,
    *,
    faults: Faults | None = None,
    config: ServerConfig | None = None,
    observe: ObserveConfig | None = None,
    reply_format: ReplyFormat | None = None,
    gate: Gate | None = None,
    key: str | None = None,
    **options: Any,
) -> AsyncIterator[Rig]:
    """The engine on threads of this process; ``options`` are ``EngineConfig``'s, ``key`` is what the client sends."""
    faults, gate = faults or Faults(), gate or Gate()
    tokenizer = tokenizer_of(model)
    wanted = EngineConfig(model=str(model), **(ENGINE | options))
    core = build_engine(wanted, eos_token_ids=tokenizer.eos_token_ids, faults=faults).core
    core.start()
    try:
        context = _context(LocalClient(core), tokenizer, faults, config, observe, reply_format)
        async with _serving(context, faults, core, key) as rig:
            rig.gate = gate
            yield rig
            gate.open()
            await rig.settle()
    finally:
        gate.open()
        await asyncio.to_thread(core.close)


@asynccontextmanager
async def process(
    model: Path,
    *,
    plans: Iterable[tuple[Fault, ...]] = (),
    config: ServerConfig | None = None,
    observe: ObserveConfig | None = None,
    hang_timeout: float = 60.0,
    **options: Any,
) -> AsyncIterator[Rig]:
    """The engine in a process of its own; ``plans`` are the faults of its first lives."""
    tokenizer = tokenizer_of(model)
    wanted = EngineConfig(model=str(model), **(ENGINE | options))
    engine = ProcessClient(
        wanted,
        lambda: tokenizer.eos_token_ids,
        log_level="critical",
        hang_timeout=hang_timeout,
        faults=plans,
    )
    await engine.start()
    try:
        context = _context(engine, tokenizer, Faults(), config, observe, None)
        async with _serving(context, Faults(), None) as rig:
            yield rig
            await rig.settle()
    finally:
        await engine.close()


def _context(
    engine: Any,
    tokenizer: Tokenizer,
    faults: Faults,
    config: ServerConfig | None,
    observe: ObserveConfig | None,
    reply_format: ReplyFormat | None,
) -> ServerContext:
    assert tokenizer.chat_template is not None
    template = ChatTemplate(
        tokenizer.chat_template, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token
    )
    context = ServerContext(
        engine=engine,
        tokenizer=tokenizer,
        chat_template=template,
        served_model_names=("tiny",),
        reply_format=reply_format or PlainFormat(),
        config=config or ServerConfig(),
        observe=observe or ObserveConfig(),
    )
    return replace(
        context,
        tokenizer=Proxy(
            tokenizer,
            encode=faults.around("server.encode", tokenizer.encode),
            token_bytes=faults.around("server.bytes", tokenizer.token_bytes),
        ),
        chat_template=Proxy(template, render=faults.around("server.render", template.render)),
        reply_format=_faulty_format(context.reply_format, faults),
    )


def _faulty_format(inner: ReplyFormat, faults: Faults) -> Any:
    def reader(**options: Any) -> Any:
        made = inner.reader(**options)
        feed, finish = made.feed, made.finish
        return Proxy(
            made,
            feed=faults.around("server.feed", feed),
            finish=faults.around("server.finish", finish),
        )

    return Proxy(
        inner,
        reader=faults.around("server.reader", reader),
        constraint=faults.around("server.constraint", inner.constraint),
    )


def _faulty_writes(app: ASGIApp, faults: Faults) -> ASGIApp:
    """Fails writes to the socket, as a transport would; the phase is what is written."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def write(message: Message) -> None:
            if scope.get("method") == "POST":
                last = message["type"] == "http.response.body" and not message.get("more_body")
                faults.visit("server.write", "last" if last else message["type"].rpartition(".")[2])
            await send(message)

        await app(scope, receive, write)

    return wrapped


@asynccontextmanager
async def _serving(
    context: ServerContext, faults: Faults, core: EngineCore | None, key: str | None = None
) -> AsyncIterator[Rig]:
    app = create_app(context)
    config = uvicorn.Config(
        _faulty_writes(app, faults),
        port=0,
        http=guarded_protocol(context.config),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        timeout_graceful_shutdown=1,
    )
    server = LoopbackServer(config)
    task = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    statuses: list[int] = []

    async def note(response: httpx.Response) -> None:
        statuses.append(response.status_code)

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    hooks = {"response": [note]}
    headers = {} if key is None else {"x-api-key": key}
    try:
        async with httpx.AsyncClient(
            base_url=url, timeout=PATIENCE, limits=limits, event_hooks=hooks, headers=headers
        ) as client:
            yield Rig(url, client, context.engine, context, faults, core, statuses)
    finally:
        server.should_exit = True
        await task
        app.state.observer.close()


async def leave(task: asyncio.Task[Any]) -> None:
    """The client of a request goes away: its connection is closed."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
