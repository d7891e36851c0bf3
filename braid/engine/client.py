"""The HTTP process's side of the engine: starts it, talks to it, and starts it again when it dies. Free of torch."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path

import msgspec
import zmq
import zmq.asyncio

from braid.core.config import EngineConfig
from braid.core.env import engine_environment
from braid.core.errors import BraidError, EngineDeadError
from braid.core.request import Delta
from braid.engine.messages import (
    Abort,
    Deltas,
    FromEngine,
    Generate,
    GetStats,
    Progress,
    Ready,
    Refused,
    Start,
    Stats,
    Stop,
    ToEngine,
    as_error,
)
from braid.engine.protocol import EngineInfo, EngineStats, GenerateRequest

logger = logging.getLogger(__name__)

OnProgress = Callable[[str, int, int], None]

_FIRST_BACKOFF = 0.5
_LONGEST_BACKOFF = 30.0
_STABLE_AFTER = 60.0
_STOP_GRACE = 5.0


class _Engine:
    """One life of the engine process: its sockets, its process, and who waits for what."""

    def __init__(self, context: zmq.asyncio.Context, folder: Path, number: int) -> None:
        self.to_address = f"ipc://{folder}/to-{number}"
        self.from_address = f"ipc://{folder}/from-{number}"
        self.sender = context.socket(zmq.PUSH)
        self.sender.setsockopt(zmq.SNDHWM, 0)
        self.sender.setsockopt(zmq.LINGER, 0)
        self.sender.bind(self.to_address)
        self.receiver = context.socket(zmq.PULL)
        self.receiver.setsockopt(zmq.RCVHWM, 0)
        self.receiver.bind(self.from_address)
        self.process: asyncio.subprocess.Process | None = None
        self.streams: dict[str, asyncio.Queue[Delta | BraidError]] = {}
        self.tickets: dict[int, asyncio.Future[EngineStats]] = {}
        self._encoder = msgspec.msgpack.Encoder()

    async def send(self, message: ToEngine) -> None:
        await self.sender.send(self._encoder.encode(message))

    def fail(self, error: BraidError) -> None:
        """Give everyone who waits on this life a terminal error."""
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            stream.put_nowait(error)
        tickets, self.tickets = self.tickets, {}
        for ticket in tickets.values():
            if not ticket.done():
                ticket.set_exception(error)

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


class ProcessClient:
    """A supervised engine process.

    Args:
        config: handed to the engine.
        eos_token_ids: a callable, because reading the tokenizer may go on while the process starts.
        on_progress: hears ``(what, done bytes, total bytes)`` while weights load.
    """

    def __init__(
        self,
        config: EngineConfig,
        eos_token_ids: Callable[[], frozenset[int]],
        *,
        on_progress: OnProgress | None = None,
        log_level: str = "info",
    ) -> None:
        self._config = config
        self._eos_token_ids = eos_token_ids
        self._on_progress = on_progress or (lambda what, done, total: None)
        self._log_level = log_level
        self._folder = Path(tempfile.mkdtemp(prefix="braid-"))  # 0700: nobody else may speak to the engine
        self._context = zmq.asyncio.Context()
        self._decoder = msgspec.msgpack.Decoder(FromEngine)
        self._numbers = itertools.count()
        self._engine: _Engine | None = None
        self._info: EngineInfo | None = None
        self._ready = False
        self._closing = False
        self._supervisor: asyncio.Task[None] | None = None
        self._first_ready: asyncio.Future[None] | None = None
        self.reckoning: list[str] = []
        self._restarts = 0
        self._down_reason = "the engine is starting"

    @property
    def info(self) -> EngineInfo | None:
        return self._info

    @property
    def is_ready(self) -> bool:
        return self._ready

    @property
    def down_reason(self) -> str:
        return self._down_reason

    @property
    def restarts(self) -> int:
        return self._restarts

    @property
    def engine_pid(self) -> int | None:
        """Process id of the current engine; None between two lives."""
        engine = self._engine
        return engine.process.pid if engine is not None and engine.process is not None else None

    async def start(self) -> None:
        """Start the process and return when it serves.

        Raises:
            BraidError: what the engine says is wrong with the model, the machine or the configuration.
        """
        self._first_ready = asyncio.get_running_loop().create_future()
        self._supervisor = asyncio.create_task(self._supervise(), name="engine-supervisor")
        try:
            await self._first_ready
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop the engine; unfinished requests get an error."""
        self._closing = True
        serving, self._ready = self._ready, False
        self._down_reason = "the server is shutting down"
        if self._engine is not None and self._engine.process is not None:
            await self._stop(self._engine, self._engine.process, serving)
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        self._context.destroy(linger=0)
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _stop(self, engine: _Engine, process: asyncio.subprocess.Process, serving: bool) -> None:
        """Ask a serving engine to end; one that has not come so far, or does not end, is killed."""
        if process.returncode is None and serving:
            await engine.send(Stop())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), _STOP_GRACE)
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        """See ``EngineClient.generate``."""
        engine = self._require_engine()
        inbox: asyncio.Queue[Delta | BraidError] = asyncio.Queue()
        engine.streams[request.request_id] = inbox
        try:
            await engine.send(Generate(request))
            while True:
                item = await inbox.get()
                if isinstance(item, BraidError):
                    raise item
                yield item
                if item.finish_reason is not None:
                    return
        finally:
            # The reader of the socket removes a stream that has ended; one still there was left early.
            if engine.streams.pop(request.request_id, None) is not None and engine is self._engine:
                await engine.send(Abort(request.request_id))

    async def stats(self) -> EngineStats:
        """See ``EngineClient.stats``."""
        engine = self._require_engine()
        number = next(self._numbers)
        ticket: asyncio.Future[EngineStats] = asyncio.get_running_loop().create_future()
        engine.tickets[number] = ticket
        await engine.send(GetStats(number))
        return await ticket

    def _require_engine(self) -> _Engine:
        if not self._ready or self._engine is None:
            raise EngineDeadError(self._down_reason)
        return self._engine

    async def _supervise(self) -> None:
        backoff = _FIRST_BACKOFF
        while True:
            began = time.monotonic()
            engine = _Engine(self._context, self._folder, next(self._numbers))
            self._engine = engine
            try:
                code = await self._live(engine)
            finally:
                self._ready = False
                engine.fail(EngineDeadError("the engine process ended before the request was finished"))
                engine.close()
            if self._closing:
                return
            if not self._has_been_ready():
                self._refuse_start(
                    EngineDeadError(f"the engine process ended with status {code} while starting")
                )
                return
            if time.monotonic() - began > _STABLE_AFTER:
                backoff = _FIRST_BACKOFF
            self._restarts += 1
            self._down_reason = "the engine process died and is being restarted"
            logger.error("the engine process ended with status %s; restarting it in %.1f s", code, backoff)
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _LONGEST_BACKOFF)

    def _has_been_ready(self) -> bool:
        return self._info is not None

    def _refuse_start(self, error: BraidError) -> None:
        if self._first_ready is not None and not self._first_ready.done():
            self._first_ready.set_exception(error)

    async def _live(self, engine: _Engine) -> int:
        """Run one process from start to end; returns its exit status."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "braid.engine.process",
            stdin=asyncio.subprocess.PIPE,
            env=engine_environment(),
            start_new_session=True,  # Ctrl-C goes to the server, which drains first
        )
        engine.process = process
        assert process.stdin is not None
        eos_token_ids = await asyncio.to_thread(self._eos_token_ids)
        start = Start(self._config, eos_token_ids, engine.to_address, engine.from_address, self._log_level)
        with contextlib.suppress(ConnectionError):  # a process that died at once is seen below
            process.stdin.write(msgspec.json.encode(start) + b"\n")
            await process.stdin.drain()
        reader = asyncio.create_task(self._read(engine), name="engine-reader")
        try:
            return await process.wait()
        finally:
            process.stdin.close()
            await self._drain_reader(reader)

    async def _drain_reader(self, reader: asyncio.Task[None]) -> None:
        """Let the last messages of an ended process (such as its reason) be read, then stop reading."""
        await asyncio.wait([reader], timeout=0.05)
        reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reader

    async def _read(self, engine: _Engine) -> None:
        while True:
            self._handle(engine, self._decoder.decode(await engine.receiver.recv()))

    def _handle(self, engine: _Engine, message: FromEngine) -> None:
        if isinstance(message, Deltas):
            for delta in message.deltas:
                self._pass_on(engine, delta)
        elif isinstance(message, Refused):
            self._pass_refusal(engine, message)
        elif isinstance(message, Stats):
            ticket = engine.tickets.pop(message.ticket, None)
            if ticket is not None and not ticket.done():
                ticket.set_result(message.stats)
        elif isinstance(message, Progress):
            self._on_progress(message.what, message.done, message.total)
        elif isinstance(message, Ready):
            self._become_ready(message)

    def _pass_on(self, engine: _Engine, delta: Delta) -> None:
        final = delta.finish_reason is not None
        stream = engine.streams.pop(delta.request_id, None) if final else engine.streams.get(delta.request_id)
        if stream is not None:
            stream.put_nowait(delta)

    def _pass_refusal(self, engine: _Engine, message: Refused) -> None:
        if message.request_id is None:
            self._refuse_start(as_error(message))
            return
        stream = engine.streams.pop(message.request_id, None)
        if stream is not None:
            stream.put_nowait(as_error(message))

    def _become_ready(self, message: Ready) -> None:
        self._info = message.info
        self.reckoning = message.reckoning
        self._ready = True
        self._down_reason = ""
        if self._first_ready is not None and not self._first_ready.done():
            self._first_ready.set_result(None)
