"""Server-sent events: a stream that starts late, stays alive, and never just stops."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from braid.core.errors import BraidError
from braid.server.config import ServerConfig
from braid.server.errors import ClientDisconnectedError, as_http_error
from braid.server.lifecycle import RECORD, Lifecycle, RequestRecord

logger = logging.getLogger(__name__)

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"
_encode = msgspec.json.Encoder().encode
_HEADERS = {
    "content-type": "text/event-stream; charset=utf-8",
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


def event(value: object) -> bytes:
    """One ``data:`` event with a JSON payload."""
    return b"data: " + _encode(value) + b"\n\n"


class EventTemplate:
    """An event of which only one text changes: encoded once, filled often.

    Args:
        make: the event with a given text, which stands in it as a JSON string, once or more.
    """

    def __init__(self, make: Callable[[str], bytes]) -> None:
        mark = secrets.token_hex(16)
        self._pieces = make(mark).split(b'"' + mark.encode() + b'"')
        assert len(self._pieces) > 1

    def fill(self, text: str) -> bytes:
        return _encode(text).join(self._pieces)


def named_event(name: str, value: object) -> bytes:
    """An event with an ``event:`` line, for clients that read no others."""
    return b"event: " + name.encode() + b"\n" + event(value)


def error_event(error: Exception) -> bytes:
    """How chat and text streams end with an error."""
    return event(as_http_error(error).payload())


class EventStream(Response):
    """Sends events as they come.

    1. The status line waits for the first event, so that an error before it is an ordinary error answer; but not
       longer than a keep-alive interval.
    2. Silence is broken by ``ping``: a comment, where the dialect has no event for it.
    3. An error after the first byte is what ``on_error`` makes of it, and nothing follows it.
    4. Nothing is buffered here: the transport's limit slows the reader's stream, and a reader that takes nothing
       for ``slow_reader_seconds`` is dropped.
    5. However the stream ends, ``events`` is closed, which aborts what is still running.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        lifecycle: Lifecycle,
        config: ServerConfig,
        headers: Mapping[str, str] | None = None,
        *,
        on_error: Callable[[Exception], bytes] = error_event,
        ping: bytes = PING,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({**_HEADERS, **(headers or {})})
        self._events = events
        self._lifecycle = lifecycle
        self._config = config
        self._on_error = on_error
        self._ping_frame = ping
        self._starting = asyncio.Lock()
        self._started = False
        self._blocked_since: float | None = None
        self._clock = asyncio.get_running_loop().time
        self._last_sent = self._clock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        record: RequestRecord = scope[RECORD]
        record.streamed = True
        every = min(self._config.keepalive_seconds, self._config.slow_reader_seconds)
        try:
            async with (
                aclosing(self._events),
                self._lifecycle.watch(receive, every=every, on_tick=self._tick) as self._watch,
            ):
                async for chunk in self._events:
                    await self._write(chunk)
        except ClientDisconnectedError:
            raise
        except Exception as error:
            if not self._started:
                raise
            if not isinstance(error, BraidError):
                logger.error("a stream failed", exc_info=error)
            await self._send_last(self._on_error(error))
        else:
            await self._send_last(b"")

    async def _start(self) -> None:
        async with self._starting:
            if not self._started:
                await self._send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                self._started = True

    async def _write(self, chunk: bytes) -> None:
        if not self._started:
            await self._start()
        self._blocked_since = self._last_sent = self._clock()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._blocked_since = None

    async def _tick(self) -> None:
        now = self._clock()
        if self._blocked_since is not None:
            if now - self._blocked_since >= self._config.slow_reader_seconds:
                self._watch.interrupt(ClientDisconnectedError("the client reads too slowly"))
        elif now - self._last_sent >= self._config.keepalive_seconds:
            await self._ping()

    async def _ping(self) -> None:
        # The watch must not hang here itself, or nobody would notice that the reader takes nothing.
        try:
            async with asyncio.timeout(self._config.slow_reader_seconds):
                await self._write(self._ping_frame)
        except TimeoutError:
            self._watch.interrupt(ClientDisconnectedError("the client reads too slowly"))

    async def _send_last(self, body: bytes) -> None:
        """The end is not watched any more, so its own time limit must do."""
        try:
            async with asyncio.timeout(self._config.slow_reader_seconds):
                await self._send({"type": "http.response.body", "body": body, "more_body": False})
        except TimeoutError:
            raise ClientDisconnectedError("the client reads too slowly") from None
