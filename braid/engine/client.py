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
from collections.abc import AsyncGenerator, Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from braid.core.config import EngineConfig
from braid.core.env import engine_environment
from braid.core.errors import BraidError, EngineDeadError
from braid.core.faults import Fault
from braid.core.program import Outcome, ProgramInfo, ProgramRef, ProgramVerb
from braid.core.request import Delta
from braid.engine.heartbeat import BEATS, Heartbeat
from braid.engine.inbox import Inbox
from braid.engine.messages import (
    Abort,
    ActedOnProgram,
    ActOnProgram,
    Deltas,
    Failed,
    FromEngine,
    Generate,
    GetPrograms,
    GetStats,
    Ping,
    Pong,
    ProgramList,
    Progress,
    Ready,
    Refused,
    Start,
    Stats,
    Stop,
    TellFinish,
    ToEngine,
    as_error,
)
from braid.engine.protocol import MAX_LISTED, EngineInfo, EngineStats, GenerateRequest
from braid.policy.agents.program import Finish

logger = logging.getLogger(__name__)

OnProgress = Callable[[str, int, int], None]

_FIRST_BACKOFF = 0.5
_LONGEST_BACKOFF = 30.0
_STABLE_AFTER = 60.0
_STOP_GRACE = 5.0
HANG_TIMEOUT = 60.0
"""Seconds without any progress after which an engine is killed; one layer of one step takes far less anywhere."""
_DIED = "the engine process died and is being restarted"
_LAST_WORDS = 0.05
"""Seconds in which the last messages of an ended process, such as its reason, are still read."""
_LONGEST_SOCKET_FOLDER = 80
"""A local socket's path has some 100 characters at most."""


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
        self.streams: dict[str, Inbox] = {}
        self.tickets: dict[int, asyncio.Future[Any]] = {}
        self.heartbeat = Heartbeat()
        self._encoder = msgspec.msgpack.Encoder()

    async def send(self, message: ToEngine) -> None:
        """Hand a message to the socket.

        Raises:
            EngineDeadError: nobody is at the other end. There is no high-water mark: a peer that lives takes it.
        """
        try:
            await self.sender.send(self._encoder.encode(message), zmq.NOBLOCK)
        except zmq.ZMQError as error:
            raise EngineDeadError(f"the engine process is gone: {error}") from None

    def fail(self, error: BraidError) -> None:
        """Give everyone who waits on this life a terminal error."""
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            stream.put(error)
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
        hang_timeout: an engine that has work and makes no progress for so many seconds is killed and started again.
        faults: what tests let go wrong: one plan for each of the first lives of the engine.
    """

    def __init__(
        self,
        config: EngineConfig,
        eos_token_ids: Callable[[], frozenset[int]],
        *,
        on_progress: OnProgress | None = None,
        log_level: str = "info",
        hang_timeout: float = HANG_TIMEOUT,
        faults: Iterable[tuple[Fault, ...]] = (),
    ) -> None:
        self._config = config
        self._beat_seconds = hang_timeout / BEATS
        self._faults = iter(faults)
        self._eos_token_ids = eos_token_ids
        self._on_progress = on_progress or (lambda what, done, total: None)
        self._log_level = log_level
        self._folder = _private_folder()
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
            with contextlib.suppress(TimeoutError, EngineDeadError):
                await engine.send(Stop())
                await asyncio.wait_for(process.wait(), _STOP_GRACE)
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await process.wait()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        """See ``EngineClient.generate``."""
        engine = self._require_engine()
        inbox = Inbox()
        engine.streams[request.request_id] = inbox
        try:
            await engine.send(Generate(request))
            while True:
                delta = await inbox.get()
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            # The reader of the socket removes a stream that has ended; one still there was left early.
            if engine.streams.pop(request.request_id, None) is not None:
                with contextlib.suppress(EngineDeadError):
                    await engine.send(Abort(request.request_id))

    async def stats(self) -> EngineStats:
        """See ``EngineClient.stats``."""
        answer: EngineStats = await self._ask(GetStats(next(self._numbers)))
        return answer

    async def program(self, verb: ProgramVerb, program: ProgramRef, seconds: float | None = None) -> Outcome:
        """See ``EngineClient.program``."""
        answer: Outcome = await self._ask(ActOnProgram(next(self._numbers), verb, program, seconds))
        return answer

    async def told(self, program: ProgramRef, finish: Finish, tool: str | None) -> None:
        """See ``EngineClient.told``."""
        if self._ready and self._engine is not None:
            with contextlib.suppress(EngineDeadError):
                await self._engine.send(TellFinish(program, finish, tool))

    async def programs(self, owner: str | None, limit: int = MAX_LISTED) -> list[ProgramInfo]:
        """See ``EngineClient.programs``."""
        question = GetPrograms(next(self._numbers), owner, min(limit, MAX_LISTED))
        answer: list[ProgramInfo] = await self._ask(question)
        return answer

    async def _ask(self, question: GetStats | ActOnProgram | GetPrograms) -> Any:
        """Send a message that is answered by one with the same ticket."""
        engine = self._require_engine()
        ticket: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        engine.tickets[question.ticket] = ticket
        try:
            await engine.send(question)
            return await ticket
        finally:
            engine.tickets.pop(question.ticket, None)

    def _require_engine(self) -> _Engine:
        if not self._ready or self._engine is None:
            raise EngineDeadError(self._down_reason)
        return self._engine

    async def _supervise(self) -> None:
        backoff = _FIRST_BACKOFF
        while True:
            began = time.monotonic()
            try:
                end = f"ended with status {await self._one_life()}"
            except Exception as error:  # whatever it is, the next life may go better
                logger.exception("the engine process could not be run")
                end = f"could not be run: {error}"
            if self._closing:
                return
            if not self._has_been_ready():
                self._refuse_start(EngineDeadError(f"the engine process {end} while starting"))
                return
            if time.monotonic() - began > _STABLE_AFTER:
                backoff = _FIRST_BACKOFF
            self._restarts += 1
            self._down_reason = _DIED
            logger.error("the engine process %s; restarting it in %.1f s", end, backoff)
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, _LONGEST_BACKOFF)

    async def _one_life(self) -> int:
        """Run one engine process from start to end; returns its exit status. Nothing of it is left behind."""
        engine = _Engine(self._context, self._folder, next(self._numbers))
        self._engine = engine
        try:
            return await self._live(engine)
        finally:
            self._mourn(engine)
            engine.close()

    def _mourn(self, engine: _Engine) -> None:
        """Nothing more comes from this life: turn new requests away, and end those that wait."""
        self._ready = False
        engine.fail(EngineDeadError("the engine process ended before the request was finished"))

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
        reader = asyncio.create_task(self._read(engine), name="engine-reader")
        ended = asyncio.create_task(process.wait(), name="engine-end")
        hung = asyncio.create_task(self._watch(engine), name="engine-watch")
        try:
            await self._instruct(engine, process)
            await asyncio.wait([reader, ended, hung], return_when=asyncio.FIRST_COMPLETED)
            self._ready, self._down_reason = False, _DIED
            if reader.done():  # an engine that nobody understands any more is of no use
                reader.result()
            if hung.done():
                hung.result()
                stuck = ", ".join(engine.heartbeat.stuck)
                logger.error("the engine process has stopped making progress (%s); killing it", stuck)
                process.kill()
            await asyncio.wait([reader], timeout=_LAST_WORDS)
            return await ended
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await asyncio.wait([ended])
            hung.cancel()
            reader.cancel()
            await asyncio.wait([reader, hung])

    async def _instruct(self, engine: _Engine, process: asyncio.subprocess.Process) -> None:
        """Send ``Start``, and leave the pipe open: its end tells the engine that we are gone."""
        assert process.stdin is not None
        eos_token_ids = await asyncio.to_thread(self._eos_token_ids)
        faults = next(self._faults, ())
        start = Start(
            self._config, eos_token_ids, engine.to_address, engine.from_address, self._log_level, faults
        )
        with contextlib.suppress(ConnectionError):  # a process that died at once is seen by its end
            process.stdin.write(msgspec.json.encode(start) + b"\n")
            await process.stdin.drain()

    async def _watch(self, engine: _Engine) -> None:
        """Ask a serving engine for signs of life; returns when it is to be given up."""
        while True:
            await asyncio.sleep(self._beat_seconds)
            if not self._ready:
                continue
            if not engine.heartbeat.ask():
                return
            with contextlib.suppress(EngineDeadError):
                await engine.send(Ping())

    async def _read(self, engine: _Engine) -> None:
        while True:
            message = self._decoder.decode(await engine.receiver.recv())
            if isinstance(message, Ready):
                await self._connected(engine)
            self._handle(engine, message)

    async def _connected(self, engine: _Engine) -> None:
        """Wait until the engine's other socket, which it opened earlier, has come through too."""
        while not await engine.sender.poll(100, zmq.POLLOUT):  # type: ignore[call-arg]
            pass

    def _handle(self, engine: _Engine, message: FromEngine) -> None:
        if isinstance(message, Deltas):
            for delta in message.deltas:
                self._pass_on(engine, delta)
        elif isinstance(message, Refused):
            self._pass_refusal(engine, message)
        elif isinstance(message, Stats):
            self._answer(engine, message.ticket, message.stats)
        elif isinstance(message, Pong):
            engine.heartbeat.hear(message.pulse)
        elif isinstance(message, ActedOnProgram):
            self._answer(engine, message.ticket, message.outcome)
        elif isinstance(message, ProgramList):
            self._answer(engine, message.ticket, message.programs)
        elif isinstance(message, Failed):
            self._answer(engine, message.ticket, BraidError(message.message))
        elif isinstance(message, Progress):
            self._on_progress(message.what, message.done, message.total)
        elif isinstance(message, Ready):
            self._become_ready(message)

    def _answer(
        self, engine: _Engine, number: int, answer: EngineStats | Outcome | list[ProgramInfo] | BraidError
    ) -> None:
        ticket = engine.tickets.get(number)
        if ticket is None or ticket.done():  # whoever asked may have gone
            return
        if isinstance(answer, BraidError):
            ticket.set_exception(answer)
        else:
            ticket.set_result(answer)

    def _pass_on(self, engine: _Engine, delta: Delta) -> None:
        final = delta.finish_reason is not None
        stream = engine.streams.pop(delta.request_id, None) if final else engine.streams.get(delta.request_id)
        if stream is not None:
            stream.put(delta)

    def _pass_refusal(self, engine: _Engine, message: Refused) -> None:
        if message.request_id is None:
            if self._has_been_ready():
                logger.error("the engine cannot start again: %s", message.message)
            self._refuse_start(as_error(message))
            return
        stream = engine.streams.pop(message.request_id, None)
        if stream is not None:
            stream.put(as_error(message))

    def _become_ready(self, message: Ready) -> None:
        self._info = message.info
        self.reckoning = message.reckoning
        self._ready = True
        self._down_reason = ""
        if self._first_ready is not None and not self._first_ready.done():
            self._first_ready.set_result(None)


def _private_folder() -> Path:
    """A folder for sockets that only this user may enter (0700): nobody else may speak to the engine."""
    folder = tempfile.mkdtemp(prefix="braid-")
    if len(folder) <= _LONGEST_SOCKET_FOLDER:
        return Path(folder)
    shutil.rmtree(folder)
    return Path(tempfile.mkdtemp(prefix="braid-", dir="/tmp"))
