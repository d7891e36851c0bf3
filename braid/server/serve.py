"""Running the application: a socket bound first, uvicorn on it, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import ipaddress
import logging
import math
import os
import socket
from collections.abc import Awaitable, Callable
from types import FrameType

import uvicorn
import uvloop

from braid.core.errors import BraidError
from braid.server.app import create_app
from braid.server.config import ServerConfig, ServerContext
from braid.server.guard.connection import guarded_protocol
from braid.server.lifecycle import Lifecycle

logger = logging.getLogger(__name__)

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8000
_BACKLOG = 1024
_ERROR_GRACE = 2.0
"""Seconds for the last error answers, once the drain time is over."""
_CONNECTION_GRACE = 2

Hook = Callable[[], Awaitable[object]]


def bind(
    host: str = DEFAULT_HOST, port: int = DEFAULT_PORT, *, config: ServerConfig, allow_open: bool = False
) -> socket.socket:
    """A listening socket, before anything slow is started. Port 0 takes a free one.

    Args:
        allow_open: let other machines reach a server that has no API key.

    Raises:
        BraidError: the port is in use or not allowed, the address is not ours, or the server would be open to others.
    """
    if not host or not 0 <= port <= 65_535:
        raise BraidError(f"cannot listen on {host!r} port {port}: a host and a port in [0, 65535] are needed")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise BraidError(f"cannot listen on {host!r} port {port}: {error}") from None
    if not config.api_keys and not allow_open and not _is_loopback(str(address[0])):
        raise BraidError(
            f"refusing to listen on {host} without an API key: everybody who reaches this machine could use it; "
            "set an API key (--api-key), listen on 127.0.0.1, or allow it (--allow-open)"
        )
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        in_use = error.errno == errno.EADDRINUSE
        reason = "the port is in use; choose another one" if in_use else os.strerror(error.errno or 0)
        raise BraidError(f"cannot listen on {host} port {port}: {reason}") from None
    listener.setblocking(False)
    return listener


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def run(
    context: ServerContext,
    host: str = DEFAULT_HOST,
    port: int = DEFAULT_PORT,
    *,
    allow_open: bool = False,
    listener: socket.socket | None = None,
    startup: Hook | None = None,
    shutdown: Hook | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; a second signal ends at once.

    Args:
        listener: a socket of ``bind``; without one ``host`` and ``port`` are bound here.
        startup: runs beside the server, in its event loop (the engine's start); its error ends the server.
        shutdown: runs when the last request is answered.

    Raises:
        BraidError: what ``bind`` refuses, or what ``startup`` raised.
    """
    sock = listener or bind(host, port, config=context.config, allow_open=allow_open)
    with contextlib.closing(sock), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(context, sock, startup, shutdown))


async def _serve(
    context: ServerContext, listener: socket.socket, startup: Hook | None, shutdown: Hook | None
) -> None:
    app = create_app(context, local=_is_loopback(str(listener.getsockname()[0])))
    config = uvicorn.Config(
        app,
        http=guarded_protocol(context.config),
        ws="none",
        lifespan="off",
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=math.ceil(context.config.idle_timeout),
        timeout_graceful_shutdown=_CONNECTION_GRACE,
    )
    server = DrainingServer(config, app.state.lifecycle, context.config.drain_timeout)
    name = listener.getsockname()
    logger.info("listening on http://%s:%d", f"[{name[0]}]" if ":" in name[0] else name[0], name[1])
    starting = asyncio.create_task(_start(startup, server))
    _spare_the_collector()
    try:
        await server.serve(sockets=[listener])
    finally:
        starting.cancel()
        await asyncio.wait([starting])
        if shutdown is not None:
            await shutdown()
        await asyncio.to_thread(app.state.observer.close)
    if not starting.cancelled():
        starting.result()


def _spare_the_collector() -> None:
    """What lives as long as the process (the vocabulary above all) need not be looked at by every full collection:
    that would stop all streams for tens of milliseconds."""
    gc.collect()
    gc.freeze()


async def _start(startup: Hook | None, server: DrainingServer) -> None:
    if startup is None:
        return
    try:
        await startup()
    except BaseException:
        server.should_exit = True
        raise


class DrainingServer(uvicorn.Server):
    """Goes on listening while it drains, so that probes and clients hear why they are turned away."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, drain_timeout: float) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._drain_timeout = drain_timeout
        self._loop = asyncio.get_running_loop()
        self._drain: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._on_signal)

    def _on_signal(self) -> None:
        if self._drain is None:
            logger.info("draining: %d requests in flight", self._lifecycle.in_flight)
            self._drain = asyncio.create_task(self._run_drain())
        else:
            logger.warning("second signal: ending at once")
            self._drain.cancel()
            self._lifecycle.stop()
            self.force_exit = self.should_exit = True

    async def _run_drain(self) -> None:
        self._lifecycle.draining = True
        try:
            async with asyncio.timeout(self._drain_timeout):
                await self._lifecycle.wait_idle()
        except TimeoutError:
            logger.warning("drain time is over: ending %d requests", self._lifecycle.in_flight)
            self._lifecycle.stop()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ERROR_GRACE):
                    await self._lifecycle.wait_idle()
        self.should_exit = True
