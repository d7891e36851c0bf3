"""Connections that cost something before they are requests: too many, too slow, or with heads too long."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from braid.server.config import ServerConfig

logger = logging.getLogger(__name__)

_FREE_FILES = 128
"""Descriptors left for everything that is no connection."""
_LEAST_CONNECTIONS = 16


def guarded_protocol(config: ServerConfig) -> type[HttpToolsProtocol]:
    """uvicorn's HTTP protocol within the bounds of ``config``."""
    limit = max_connections(config.max_connections)

    class Protocol(GuardedProtocol):
        bounds = config
        most_connections = limit

    return Protocol


def max_connections(wanted: int) -> int:
    """As many as wanted, or as the process may have open files."""
    try:
        import resource  # not everywhere
    except ImportError:
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = wanted + _FREE_FILES
    if soft != resource.RLIM_INFINITY and soft < need:
        raised = need if hard == resource.RLIM_INFINITY else min(need, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
        except (OSError, ValueError) as error:
            logger.debug("the limit of open files stays at %d: %s", soft, error)
        return max(_LEAST_CONNECTIONS, min(wanted, soft - _FREE_FILES))
    return wanted


class GuardedProtocol(HttpToolsProtocol):
    """Closes connections whose heads do not come in time, or are too long; turns away more than there may be.

    The clock runs from the first moment of a connection, and from the first byte after an answer, to the end of the
    next head. Between an answer and that byte uvicorn's own timer for idle connections runs.
    """

    bounds: ServerConfig
    most_connections: int

    def __init__(self, config: uvicorn.Config, server_state: Any, app_state: Any, _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._head_timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._in_head = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            self._refuse(503, b"too many connections", b"retry-after: 2\r\nretry-after-ms: 2000\r\n")
        else:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is not None and self.cycle.response_complete:
            self._start_timer()
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > self.bounds.max_header_bytes and not self.transport.is_closing():
                self._refuse(431, b"the head of the request is too long")

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()

    def _start_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.bounds.header_timeout, self._too_slow)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self._in_head:
            self._refuse(408, b"the head of the request did not arrive in time")
        else:  # nothing was asked: a connection without a byte, or the rest of a body that was answered long ago
            self.transport.close()

    def _refuse(self, status: int, message: bytes, headers: bytes = b"") -> None:
        """Answer without an application: there is no request yet that it could be asked about."""
        reasons = {
            408: b"Request Timeout",
            431: b"Request Header Fields Too Large",
            503: b"Service Unavailable",
        }
        kinds = {503: b"server_error"}
        kind = kinds.get(status, b"invalid_request_error")
        body = b'{"error":{"message":"%s","type":"%s","param":null,"code":null}}' % (message, kind)
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n%s\r\n%s"
            % (status, reasons[status], len(body), headers, body)
        )
        self.transport.close()
