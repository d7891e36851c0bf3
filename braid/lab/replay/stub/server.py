"""A server that computes nothing: an OpenAI-compatible stub whose times, lengths and faults are known.

It serves the self-tests of replay and the measurement of send lag. One event loop, one protocol object per connection,
events encoded beforehand. Besides the API it answers ``GET /stub/log``: what it has seen, as JSON; ``DELETE``
makes it forget.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, cast

import httptools
import msgspec

from braid.lab.replay.stub.state import Body, RefusedError, Seen, Stub, StubError, StubOptions, parse
from braid.lab.replay.stub.words import REPLY, reply_text, usage_bytes

GENERATION = {"/v1/completions": False, "/v1/chat/completions": True}
"""Paths, and whether they are a chat's."""
TIMER_S = 0.0005
"""Timers are set late by so much, and may be early by as much: event loops count in milliseconds."""
PROGRAM, KEY = b"x-session-id", b"authorization"
NUM_WORDS = len(REPLY)

_encode = msgspec.json.Encoder().encode
_STREAM = (
    b"HTTP/1.1 200 OK\r\nserver: braid-stub\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
_DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
_PAGE = b"<!doctype html><html><body>Welcome to the gateway</body></html>"
_ERROR_EVENT = b'data: {"error":{"message":"the stub stopped","type":"server_error","code":500}}\n\n'
_REASONS = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    404: b"Not Found",
    429: b"Too Many Requests",
    500: b"Internal Server Error",
    503: b"Service Unavailable",
}


class Connection(asyncio.Protocol):
    """One client's connection; requests on it are answered in order."""

    def __init__(self, stub: Stub) -> None:
        self.stub = stub
        self.number = stub.num_connections
        stub.num_connections += 1
        self.write: Callable[[bytes], None] = _nowhere
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._url, self._program, self._key = b"", "", b""
        self._body: list[bytes] = []
        self._reply: Reply | None = None
        self._pending: deque[tuple[str, str, bytes, str, bytes, bool]] = deque()
        self._keep = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.write = self._transport.write
        self.stub.transports.add(self._transport)
        if delay := self.stub.options.accept_delay_s:
            self._transport.pause_reading()
            asyncio.get_running_loop().call_later(delay, self._listen)

    def _listen(self) -> None:
        if self._transport is not None:
            self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is not None:
            self.stub.transports.discard(self._transport)
        self._transport, self.write = None, _nowhere
        self._pending.clear()
        if self._reply is not None:
            self._reply.hung_up()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_message_begin(self) -> None:
        self._url, self._program, self._key = b"", "", b""
        self._body = []

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        lower = name.lower()
        if lower == PROGRAM:
            self._program = value.decode("latin-1")
        elif lower == KEY:
            self._key = value

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        method, path = self._parser.get_method().decode(), self._url.partition(b"?")[0].decode()
        keep = self._parser.should_keep_alive()
        request = (method, path, b"".join(self._body), self._program, self._key, keep)
        if self._reply is None:
            self._answer(*request)
        else:
            self._pending.append(request)

    def _answer(self, method: str, path: str, raw: bytes, program: str, key: bytes, keep: bool) -> None:
        self._keep = keep
        try:
            self._check_key(key)
            if method == "POST" and path in GENERATION:
                self._generate(path, parse(raw), program)
                return
            status, answer = 200, self.stub.info(method, path, raw)
        except RefusedError as error:
            status, answer = error.status, _error(error.status, str(error))
        self.write(whole(status, _encode(answer)))
        self.done()

    def _check_key(self, key: bytes) -> None:
        wanted = self.stub.options.api_key
        if wanted is not None and key != f"Bearer {wanted}".encode():
            raise RefusedError(401, "the API key is missing or wrong")

    def _generate(self, path: str, body: Body, program: str) -> None:
        seen, ids = self.stub.accept(path, body, program, self.number)
        self._reply = Reply(self, seen, body, ids)
        self._reply.go()

    def done(self) -> None:
        """An answer is complete: close, or go on to the next request."""
        self._reply = None
        if not self._keep:
            self.close()
        elif self._pending:
            self._answer(*self._pending.popleft())

    def close(self) -> None:
        """No more on this connection; what was written still goes out."""
        self._pending.clear()
        if self._transport is not None:
            self._transport.close()


class Reply:
    """The answer to one generation request."""

    __slots__ = ("_at", "_body", "_connection", "_due", "_ids", "_num", "_seen", "_started", "_stop", "_stub",
                 "_timer")  # fmt: skip

    def __init__(self, connection: Connection, seen: Seen, body: Body, ids: list[int]) -> None:
        self._connection, self._stub, self._seen, self._body, self._ids = (
            connection,
            connection.stub,
            seen,
            body,
            ids,
        )
        self._num = self._stub.num_tokens(body, seen.max_tokens)
        self._stop = self._num // 2 if seen.fault in ("cut", "error_event") else self._num
        self._at = 0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._started = False

    def go(self) -> None:
        """Begin when there is room, or be at fault."""
        if self._seen.fault in ("", "cut") or (self._seen.fault == "error_event" and self._body.stream):
            self._stub.start(self._begin)
        else:
            self._fail(self._seen.fault)

    def hung_up(self) -> None:
        """The client is gone."""
        if self._timer is not None:
            self._timer.cancel()
        if not self._seen.ended:
            self._seen.ended = "hung_up"
        if self._started:
            self._stub.end()
        else:
            self._stub.drop(self._begin)

    def _begin(self) -> None:
        self._started = True
        options, seen = self._stub.options, self._seen
        uncached = seen.prompt_tokens - seen.cached_tokens
        self._due = time.monotonic() + options.ttft_s + options.ttft_per_token_s * uncached
        if not self._body.stream:
            self._due += options.tbt_s * (self._num - 1)
        self._wait()

    def _wait(self) -> None:
        left = self._due - time.monotonic()
        if left <= TIMER_S:
            self._tick()
        else:
            self._timer = asyncio.get_running_loop().call_later(left + TIMER_S, self._tick)

    def _tick(self) -> None:
        now = time.monotonic()
        if self._due > now + TIMER_S:
            self._wait()
            return
        if not self._body.stream:
            self._all_at_once()
            return
        out: list[bytes] = []
        if self._at == 0:
            out += (_STREAM, self._stub.pieces[self._is_chat].first)
        while self._at < self._stop and self._due <= now + TIMER_S:
            out.append(self._event())
            self._at += 1
            self._due += self._stub.options.tbt_s
            self._seen.token_times_s.append(now)
        if self._at < self._stop:
            self._connection.write(b"".join(out))
            self._wait()
            return
        fault = self._seen.fault
        if not fault:
            self._ending(out)
        elif fault == "error_event":
            out += (b"%x\r\n%b\r\n" % (len(_ERROR_EVENT), _ERROR_EVENT), _DONE)
        self._connection.write(b"".join(out))
        self._finish(close=fault == "cut")

    def _event(self) -> bytes:
        """Of the next token."""
        at, word = self._at, self._at % NUM_WORDS
        last = at == self._num - 1
        reason = ("length" if self._num == self._seen.max_tokens else "stop") if last else None
        pieces = self._stub.pieces[self._is_chat]
        if self._body.return_token_ids:
            prompt = self._ids if at == 0 else None
            usage = self._usage(at + 1) if self._tells_usage else b""
            return pieces.with_ids(word, reason, self._stub.reply_ids[word], prompt, usage)
        if self._tells_usage:
            return pieces.with_usage(word, reason, self._usage(at + 1))
        return pieces.words[word] if reason is None else pieces.ends[reason][word]

    def _ending(self, out: list[bytes]) -> None:
        options = self._body.stream_options
        if options is not None and options.include_usage:
            out.append(self._stub.pieces[self._is_chat].usage(self._usage(self._num)))
        out.append(_DONE)

    def _all_at_once(self) -> None:
        seen, num = self._seen, self._num
        text, reason = reply_text(num), "length" if num == seen.max_tokens else "stop"
        choice: dict[str, Any] = {"index": 0, "finish_reason": reason}
        if self._is_chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice |= {"text": text, "logprobs": None}
        if self._body.return_token_ids:
            choice["token_ids"] = [self._stub.reply_ids[at % NUM_WORDS] for at in range(num)]
            choice["prompt_token_ids"] = self._ids
        name = "chat.completion" if self._is_chat else "text_completion"
        body: dict[str, Any] = {"id": "stub", "object": name, "created": 0, "model": self._stub.options.model}
        body |= {"choices": [choice], "usage": msgspec.Raw(self._usage(num))}
        data = whole(200, _encode(body))
        cut = seen.fault == "cut"
        self._connection.write(data[: len(data) - len(data) // 4] if cut else data)
        self._finish(close=cut)

    @property
    def _is_chat(self) -> bool:
        return GENERATION[self._seen.path]

    @property
    def _tells_usage(self) -> bool:
        options = self._body.stream_options
        return options is not None and options.continuous_usage_stats and self._stub.options.continuous_usage

    def _usage(self, output: int) -> bytes:
        return usage_bytes(self._seen.prompt_tokens, self._seen.cached_tokens, output)

    def _finish(self, close: bool) -> None:
        self._seen.ended = self._seen.fault or "done"
        if not self._seen.fault:
            self._stub.answered(self._ids, self._num)
        self._timer, self._started = None, False
        connection = self._connection
        if close:
            connection.close()
        connection.done()
        self._stub.end()

    def _fail(self, fault: str) -> None:
        """A fault before anything was done."""
        self._seen.ended = fault
        if fault == "silence":
            return
        connection = self._connection
        if fault in ("429", "503"):
            retry = b"retry-after: %d\r\n" % self._stub.options.retry_after_s
            connection.write(whole(int(fault), _encode(_error(int(fault), "too busy")), more=retry))
        elif fault in ("500", "error_event"):
            connection.write(whole(500, _encode(_error(500, "the stub failed"))))
        elif fault == "html":
            connection.write(whole(200, _PAGE, b"text/html"))
        elif fault == "rubbish":
            connection.write(self._rubbish())
        elif fault == "not_http":
            connection.write(b"\x15\x03\x01\x00\x02\x02\x0a\r\n\r\n")
        if fault in ("not_http", "reset"):
            connection.close()
        connection.done()

    def _rubbish(self) -> bytes:
        if not self._body.stream:
            return whole(200, b'{"choices": [{"text": "half an ans')
        event = b'data: {"choices": [{"text": \n\n'
        return b"%b%x\r\n%b\r\n%b" % (_STREAM, len(event), event, _DONE)


def whole(status: int, body: bytes, kind: bytes = b"application/json", more: bytes = b"") -> bytes:
    """An answer in one piece."""
    head = b"HTTP/1.1 %d %b\r\nserver: braid-stub\r\ncontent-type: %b\r\ncontent-length: %d\r\n%b\r\n"
    return head % (status, _REASONS[status], kind, len(body), more) + body


async def start(options: StubOptions, host: str, port: int) -> tuple[Stub, asyncio.Server]:
    """A stub that listens; with ``port`` 0 at one that is free.

    Raises:
        StubError: the address cannot be had.
    """
    stub = Stub(options)
    loop = asyncio.get_running_loop()
    try:
        server = await loop.create_server(lambda: Connection(stub), host, port, backlog=4096)
    except OSError as error:
        raise StubError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
    stub.url = f"http://{host}:{server.sockets[0].getsockname()[1]}"
    return stub, server


def serve(options: StubOptions, host: str, port: int, ready: Callable[[Stub], None]) -> Stub:
    """Serve until SIGINT or SIGTERM; ``ready`` hears of the stub when it listens.

    Raises:
        StubError: the address cannot be had.
    """

    async def until_signal() -> Stub:
        over = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, over.set)
        return await _serve(options, host, port, ready, over)

    loop = new_loop()
    try:
        return loop.run_until_complete(until_signal())
    finally:
        loop.close()


@contextlib.contextmanager
def running(options: StubOptions) -> Iterator[Stub]:
    """A stub in a thread of this process, for tests.

    Raises:
        StubError: it cannot listen.
    """
    there: Future[Stub] = Future()
    loop, over = new_loop(), asyncio.Event()

    def work() -> None:
        try:
            loop.run_until_complete(_serve(options, "127.0.0.1", 0, there.set_result, over))
        except BaseException as error:
            if there.done():
                raise
            there.set_exception(error)

    thread = threading.Thread(target=work, name="stub")
    thread.start()
    try:
        yield there.result()
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


def new_loop() -> asyncio.AbstractEventLoop:
    """The fastest event loop there is here."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


async def _serve(
    options: StubOptions, host: str, port: int, ready: Callable[[Stub], None], over: asyncio.Event
) -> Stub:
    stub, server = await start(options, host, port)
    ready(stub)
    await over.wait()
    server.close()
    for transport in list(stub.transports):
        transport.abort()
    await asyncio.sleep(0)  # their ends are told in the loop's next turn
    return stub


def _error(status: int, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "stub_error", "code": status}}


def _nowhere(data: bytes) -> None:
    pass
