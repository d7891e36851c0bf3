"""The engine process: ``python -m braid.engine.process``, started and supervised by ``braid.engine.client``.

Its standard input carries the ``Start`` message and then nothing; its end means that the parent is gone.
Threads: main (receives), loop (schedules and sends), one per lane, and a watcher of standard input.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import msgspec
import zmq

from braid.core.errors import BraidError, CapacityError
from braid.core.faults import Faults
from braid.core.request import Delta
from braid.engine.build import Built, build_engine
from braid.engine.core import EngineCore
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
    Start,
    Stats,
    Stop,
    TellFinish,
    ToEngine,
    refusal,
)

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_PROGRESS_INTERVAL = 0.1
_STDIN = 0


class Wire:
    """The sending side. Several threads send, one message at a time."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], address: str, faults: Faults | None = None
    ) -> None:
        self._socket = context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.connect(address)
        self._encode = (faults or Faults()).around("ipc.send", msgspec.msgpack.Encoder().encode, _type)
        self._lock = threading.Lock()

    def send(self, message: FromEngine) -> None:
        """Raises whatever makes a message impossible to write; nothing of it is sent then."""
        with self._lock:
            self._socket.send(self._encode(message))


class WireProgress:
    """Loading progress as messages, at most ten a second."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._what = ""
        self._done = 0
        self._total = 0
        self._sent = 0.0

    def start(self, total_bytes: int, what: str) -> None:
        self._what, self._done, self._total = what, 0, total_bytes
        self._send()

    def advance(self, num_bytes: int) -> None:
        self._done += num_bytes
        if time.monotonic() - self._sent >= _PROGRESS_INTERVAL:
            self._send()

    def done(self) -> None:
        self._done = self._total
        self._send()

    def _send(self) -> None:
        self._sent = time.monotonic()
        self._wire.send(Progress(self._what, self._done, self._total))


class Outbox:
    """Collects the deltas of one step into one message; used on the loop thread only.

    Args:
        abort: ends a request whose deltas cannot be sent.
    """

    def __init__(self, wire: Wire, abort: Callable[[str], None]) -> None:
        self._wire = wire
        self._abort = abort
        self._deltas: list[Delta] = []

    def put(self, delta: Delta) -> None:
        self._deltas.append(delta)

    def flush(self) -> None:
        if self._deltas:
            deltas, self._deltas = self._deltas, []
            try:
                self._wire.send(Deltas(deltas))
            except Exception:
                logger.exception("the outputs of a step could not be sent together")
                for delta in deltas:
                    self._send_alone(delta)

    def _send_alone(self, delta: Delta) -> None:
        """What cannot be written is the end of its own request only."""
        try:
            self._wire.send(Deltas([delta]))
        except Exception as error:
            self._wire.send(refusal(delta.request_id, BraidError(f"the output could not be sent: {error}")))
            self._abort(delta.request_id)


def serve(start: Start) -> None:
    """Build the engine, say Ready, and serve until told to stop."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    faults = Faults(start.faults)
    wire = Wire(context, start.from_engine, faults)
    inbox = context.socket(zmq.PULL)
    inbox.connect(start.to_engine)
    try:
        built = _build(start, WireProgress(wire), faults)
    except BraidError as error:
        wire.send(refusal(None, error))
        context.destroy(linger=1000)
        sys.exit(2)
    core = built.core
    outbox = Outbox(wire, core.abort)
    core.on_step = outbox.flush
    core.start(on_failure=lambda error: os._exit(1))
    wire.send(Ready(core.info, built.reckoning))
    receiver = Receiver(core, wire, outbox, faults)
    while receiver.take(inbox.recv()):
        pass
    core.close()
    context.destroy(linger=1000)


def _build(start: Start, progress: WireProgress, faults: Faults) -> Built:
    try:
        return build_engine(start.config, eos_token_ids=start.eos_token_ids, progress=progress, faults=faults)
    except MemoryError as error:
        raise CapacityError(f"there is not enough memory to load {start.config.model}: {error}") from error


class Receiver:
    """Takes in what the HTTP process sends. A message that goes wrong is the end of its own request only."""

    def __init__(self, core: EngineCore, wire: Wire, outbox: Outbox, faults: Faults) -> None:
        self._core, self._wire, self._outbox = core, wire, outbox
        self._decode = faults.around("ipc.decode", msgspec.msgpack.Decoder(ToEngine).decode)
        self._handle = faults.around(
            "ipc.receive", handle, lambda core, wire, outbox, message: _type(message)
        )

    def take(self, data: bytes) -> bool:
        """Act on one message; False if it says to stop."""
        try:
            message = self._decode(data)
            if isinstance(message, Stop):
                return False
            self._handle(self._core, self._wire, self._outbox, message)
        except Exception as error:
            logger.exception("a message could not be taken in")
            self._refuse(data, f"the engine could not take the message in: {error}")
        return True

    def _refuse(self, data: bytes, reason: str) -> None:
        """Tell whoever sent a message that it went wrong. Raises if it cannot even be read."""
        message = msgspec.msgpack.decode(data)
        if "request" in message:
            self._wire.send(refusal(message["request"][0], BraidError(reason)))
        elif "ticket" in message:
            self._wire.send(Failed(message["ticket"], reason))


def handle(core: EngineCore, wire: Wire, outbox: Outbox, message: ToEngine) -> None:
    """Act on one message from the HTTP process."""
    if isinstance(message, Generate):
        request_id = message.request.request_id
        core.submit(message.request, outbox.put, lambda error: wire.send(refusal(request_id, error)))
    elif isinstance(message, Abort):
        core.abort(message.request_id)
    elif isinstance(message, GetStats):
        _answer(wire, message.ticket, core.stats(), lambda stats: Stats(message.ticket, stats))
    elif isinstance(message, Ping):
        core.pulse().add_done_callback(lambda future: wire.send(Pong(future.result())))
    elif isinstance(message, ActOnProgram):
        acted = core.program(message.verb, message.program, message.seconds)
        _answer(wire, message.ticket, acted, lambda outcome: ActedOnProgram(message.ticket, outcome))
    elif isinstance(message, TellFinish):
        core.told(message.program, message.finish, message.tool)
    elif isinstance(message, GetPrograms):
        listed = core.programs(message.owner, message.limit)
        _answer(wire, message.ticket, listed, lambda programs: ProgramList(message.ticket, programs))


def _answer(wire: Wire, ticket: int, future: Future[Answer], make: Callable[[Answer], FromEngine]) -> None:
    """Send an answer when it is there, or why there is none."""

    def send(done: Future[Answer]) -> None:
        try:
            wire.send(make(done.result()))
        except Exception as error:
            logger.exception("a question could not be answered")
            wire.send(Failed(ticket, f"the engine could not answer: {error}"))

    future.add_done_callback(send)


def _type(message: object) -> str:
    return type(message).__name__


def _exit_with_parent() -> None:
    """Standard input ends when the parent dies, however it dies; then nobody is left to serve."""
    while os.read(_STDIN, 4096):
        pass
    os._exit(0)


def _read_line() -> bytes:
    """One line of standard input, unbuffered: a buffer's lock would outlive the main thread at exit."""
    line = b""
    while not line.endswith(b"\n") and (byte := os.read(_STDIN, 1)):
        line += byte
    return line


def main() -> None:
    """Read ``Start`` (one line of JSON) and serve."""
    start = msgspec.json.decode(_read_line(), type=Start)
    logging.basicConfig(
        level=start.log_level.upper(),
        format="%(asctime)s %(levelname)s engine %(message)s",
        stream=sys.stderr,
    )
    threading.Thread(target=_exit_with_parent, name="parent-watch", daemon=True).start()
    try:
        serve(start)
    except Exception:
        logger.exception("the engine process failed")
        os._exit(1)  # at once, whatever threads still run: the supervisor starts a new life


if __name__ == "__main__":
    main()
