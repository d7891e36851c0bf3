"""A client's HTTP/1.1 connection: one request at a time, its answer parsed as it comes.

What may be here: bytes, sockets, the framing of messages, and bounds on their size. What an answer means is
``answer.py``'s; what is sent when, the owner's.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Protocol, cast

import httptools

from braid.lab.replay.sending.exchange import Exchange

MAX_HEAD = 1 << 16
"""Bytes of an answer's header lines, those of interim answers too."""
MAX_REST = 1 << 16
"""Bytes that may follow what an answer's verdict was clear from, if the connection is to be used again."""


class Owner(Protocol):
    """Whom a connection tells.

    Attributes:
        read_lag_s: for how long what is read in this callback can have been there.
    """

    read_lag_s: float

    def enter(self) -> float:
        """A callback begins: the time, in seconds of the run."""
        ...

    def opened(self, connection: Connection) -> None:
        """It is open, and what it was opened for is sent."""
        ...

    def answered(self, connection: Connection, now_s: float) -> None:
        """The verdict on its exchange is known, or its answer is complete, or both."""
        ...

    def rested(self, connection: Connection) -> None:
        """The rest of an answer, whose verdict was known before, is there."""
        ...

    def closed(self, connection: Connection, error: Exception | None) -> None:
        """Nothing more can be sent on it; its answer, if it carried an exchange, may be complete."""
        ...


class Connection(asyncio.Protocol):
    """One connection, from before it is opened until it is closed.

    Attributes:
        exchange: what it carries now.
        is_complete: the last answer has come to its end.
        is_reusable: it may carry another request after that.
        has_carried: it has carried a request before this one.
        num_heard: bytes that came since the request was sent.
        failure: what sending met.
    """

    def __init__(self, owner: Owner) -> None:
        self.exchange: Exchange | None = None
        self.is_complete = False
        self.is_reusable = True
        self.has_carried = False
        self.num_heard = 0
        self.is_open = False
        self.failure: OSError | None = None
        self._unsent = memoryview(b"")
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._fd = -1
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._now_s = 0.0
        self._aborted = False
        self._first_message()

    def begin(self, opening: socket.socket, *, tls: bool) -> None:
        """It is being opened on this socket."""
        if not tls:
            self._fd = opening.fileno()

    def send(self, exchange: Exchange, request: bytes) -> None:
        """Begin an exchange. The bytes are with the kernel, as many as it takes, when this returns; with TLS when the
        loop comes to it. On a connection that is being opened, the rest follows when it is open."""
        assert self.exchange is None
        self.exchange = exchange
        self.num_heard = 0
        self._first_message()
        self._write(memoryview(request))

    def _write(self, data: memoryview) -> None:
        # Loops may keep writes until all that can be read now is read, which would be a lag that nobody sees.
        if self._fd >= 0:
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                pass
            except OSError as error:
                if error.errno != errno.ENOTCONN:
                    self.failure = error
                    self.abort()
                    return
        if data and self._transport is not None:
            self._transport.write(data)
        else:
            self._unsent = data

    def abort(self) -> None:
        """Close it at once; ``closed`` follows later."""
        self.is_reusable = False
        self._aborted = True
        self._fd = -1
        if self._transport is not None:
            self._transport.abort()

    @property
    def is_drained(self) -> bool:
        """All of the request has left this process."""
        return self._transport is not None and not self._transport.get_write_buffer_size()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._aborted:
            self._transport.abort()
            return
        self.is_open = True
        self._owner.enter()
        if self._unsent and self.exchange is not None:
            self.exchange.open_lag_s = self._owner.read_lag_s
            self._write(self._unsent)
        self._unsent = memoryview(b"")
        self._owner.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = self.is_reusable = False
        self._fd = -1
        is_end = error is None and self._in_body and not self._is_framed
        if is_end and self.exchange is not None and not self._aborted:
            self.is_complete = True
        self._owner.closed(self, error or self.failure)
        self._parser = self._transport = None

    def data_received(self, data: bytes) -> None:
        exchange, parser = self.exchange, self._parser
        if self._aborted or parser is None:
            return
        if exchange is None and self.is_complete:
            self.abort()  # Nobody asked.
            return
        now_s = self._now_s = self._owner.enter()
        self.num_heard += len(data)
        if exchange is not None:
            exchange.heard(now_s, self._owner.read_lag_s)
        spoiled = self._parse(parser, data)
        if exchange is None:
            self._read_rest(spoiled)
            return
        if spoiled:
            exchange.answer.spoil(spoiled)
        if self.is_complete:
            exchange.answer.end(now_s)
        if exchange.answer.status is not None:
            self._owner.answered(self, now_s)

    def _parse(self, parser: httptools.HttpResponseParser, data: bytes) -> str:
        """Why the answer is none; empty if nothing is wrong with it."""
        try:
            parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            raise error.__context__ or error from None
        except httptools.HttpParserUpgrade:
            self.is_reusable = False
            return "the server wants to speak another protocol"
        except httptools.HttpParserError as error:
            self.is_reusable = False
            return "" if self.is_complete else f"not HTTP: {error}"
        if not self._in_body:
            self._num_head += len(data)
            if self._num_head > MAX_HEAD:
                return f"more than {MAX_HEAD} bytes of header lines"
        elif self.exchange is not None and self.num_heard > self.exchange.max_bytes:
            return f"more than {self.exchange.max_bytes} bytes"
        return ""

    def _read_rest(self, spoiled: str) -> None:
        if spoiled:
            self.abort()
        elif self.is_complete:
            self._owner.rested(self)
        elif self.num_heard > MAX_REST:
            self.abort()

    def begin_rest(self) -> None:
        """The exchange is over, its answer's last bytes are not here yet."""
        self.exchange = None
        self.num_heard = 0

    def _first_message(self) -> None:
        self.is_complete = False
        self._in_body = False
        self._num_head = 0
        self._next_message()

    def _next_message(self) -> None:
        self._content_type = b""
        self._retry_after = b""
        self._is_framed = False

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self.is_complete:
            self.is_reusable = False  # A second answer to one question.

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self._content_type = value
        elif name in (b"content-length", b"transfer-encoding"):
            self._is_framed = True
        elif name == b"retry-after":
            self._retry_after = value

    def on_headers_complete(self) -> None:
        parser, exchange = self._parser, self.exchange
        assert parser is not None
        if self.is_complete or exchange is None:
            return
        status = parser.get_status_code()
        if status < 200:
            return
        self._in_body = True
        self.is_reusable = self.is_reusable and parser.should_keep_alive()
        exchange.retry_after = self._retry_after
        exchange.answer.begin(status, self._content_type)

    def on_body(self, body: bytes) -> None:
        if self.exchange is not None and not self.is_complete:
            self.exchange.answer.feed(body, self._now_s)

    def on_message_complete(self) -> None:
        if self._in_body:
            self.is_complete = True
        else:
            self._next_message()
