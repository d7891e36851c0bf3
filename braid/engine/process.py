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
from concurrent.futures import Future

import msgspec
import zmq

from braid.core.errors import BraidError
from braid.core.program import Outcome
from braid.core.request import Delta
from braid.engine.build import build_engine
from braid.engine.core import EngineCore
from braid.engine.messages import (
    Abort,
    ActedOnProgram,
    ActOnProgram,
    Deltas,
    FromEngine,
    Generate,
    GetStats,
    Progress,
    Ready,
    Start,
    Stats,
    Stop,
    ToEngine,
    refusal,
)
from braid.engine.protocol import EngineStats

logger = logging.getLogger(__name__)

_PROGRESS_INTERVAL = 0.1
_STDIN = 0


class Wire:
    """The sending side. Several threads send, one message at a time."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str) -> None:
        self._socket = context.socket(zmq.PUSH)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.connect(address)
        self._encoder = msgspec.msgpack.Encoder()
        self._lock = threading.Lock()

    def send(self, message: FromEngine) -> None:
        with self._lock:
            self._socket.send(self._encoder.encode(message))


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
    """Collects the deltas of one step into one message; used on the loop thread only."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._deltas: list[Delta] = []

    def put(self, delta: Delta) -> None:
        self._deltas.append(delta)

    def flush(self) -> None:
        if self._deltas:
            deltas, self._deltas = self._deltas, []
            self._wire.send(Deltas(deltas))


def serve(start: Start) -> None:
    """Build the engine, say Ready, and serve until told to stop."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    wire = Wire(context, start.from_engine)
    inbox = context.socket(zmq.PULL)
    inbox.connect(start.to_engine)
    try:
        built = build_engine(start.config, eos_token_ids=start.eos_token_ids, progress=WireProgress(wire))
    except BraidError as error:
        wire.send(refusal(None, error))
        context.destroy(linger=1000)
        sys.exit(2)
    core = built.core
    outbox = Outbox(wire)
    core.on_step = outbox.flush
    core.start(on_failure=lambda error: os._exit(1))
    wire.send(Ready(core.info, built.reckoning))
    decoder = msgspec.msgpack.Decoder(ToEngine)
    while not isinstance(message := decoder.decode(inbox.recv()), Stop):
        handle(core, wire, outbox, message)
    core.close()
    context.destroy(linger=1000)


def handle(core: EngineCore, wire: Wire, outbox: Outbox, message: ToEngine) -> None:
    """Act on one message from the HTTP process."""
    if isinstance(message, Generate):
        request_id = message.request.request_id
        core.submit(message.request, outbox.put, lambda error: wire.send(refusal(request_id, error)))
    elif isinstance(message, Abort):
        core.abort(message.request_id)
    elif isinstance(message, GetStats):
        core.stats().add_done_callback(lambda future: _answer(wire, message.ticket, future))
    elif isinstance(message, ActOnProgram):
        acted = core.program(message.verb, message.program, message.seconds)
        acted.add_done_callback(lambda future: _report(wire, message.ticket, future))


def _answer(wire: Wire, ticket: int, future: Future[EngineStats]) -> None:
    wire.send(Stats(ticket, future.result()))


def _report(wire: Wire, ticket: int, future: Future[Outcome]) -> None:
    wire.send(ActedOnProgram(ticket, future.result()))


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
