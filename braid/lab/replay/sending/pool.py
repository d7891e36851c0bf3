"""The connections of a sender: idle ones kept, new ones opened, and never one that waits for another."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import resource
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from braid.core.errors import BraidError
from braid.lab.replay.files import RunSpec
from braid.lab.replay.sending.connection import Connection, Owner

SPARE_FILES = 64
"""Descriptors for everything that is no connection."""
REST_S = 10.0
"""How long the last bytes of an answer are waited for after ``[DONE]``."""
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


class ConnectionLimitError(BraidError, RuntimeError):
    """More connections at a time than this machine, or the run, allows; the text says which."""


class Pool:
    """Connections to one server.

    Args:
        owner: of each connection.
        failed: told of a connection that could not be opened.
        limit: connections at a time, idle ones too.

    Raises:
        OSError: the server's name has no address.
    """

    def __init__(
        self,
        spec: RunSpec,
        loop: asyncio.AbstractEventLoop,
        owner: Owner,
        failed: Callable[[Connection, OSError], None],
        limit: int,
    ) -> None:
        self._spec = spec
        self._loop = loop
        self._owner = owner
        self._failed = failed
        self._limit = limit
        found = socket.getaddrinfo(spec.address or spec.host, spec.port, type=socket.SOCK_STREAM)
        self._family, self._place = found[0][0], found[0][4]
        self._tls = ssl.create_default_context() if spec.tls else None
        self._idle: dict[Connection, None] = {}
        self._spare: dict[Connection, None] = {}
        self._all: dict[Connection, asyncio.Task[None] | None] = {}
        self._resting: dict[Connection, float] = {}

    def __len__(self) -> int:
        return len(self._all)

    def take(self) -> Connection | None:
        """An idle one, that which was used last; None if there is none."""
        while self._idle:
            connection, _ = self._idle.popitem()
            if connection.is_reusable:
                return connection
        return None

    def open(self) -> Connection:
        """One that is being opened; its owner hears when it is open, or that it failed.

        Raises:
            ConnectionLimitError: there are too many.
            OSError: the system has no socket, or no way there.
        """
        if self._spare:
            return self._spare.popitem()[0]
        if len(self._all) >= self._limit:
            raise ConnectionLimitError(
                f"{self._limit} connections are open already, which is the client's limit"
            )
        opening = self._socket()
        connection = Connection(self._owner)
        connection.begin(opening, tls=self._tls is not None)
        task = self._loop.create_task(self._connect(connection, opening))
        task.add_done_callback(_raise)
        self._all[connection] = task
        return connection

    def open_before(self, num: int) -> None:
        """So many, for nobody yet."""
        with contextlib.suppress(OSError):  # said where one is needed
            opened = [self.open() for _ in range(min(num, self._limit))]
            self._spare.update(dict.fromkeys(opened))

    def give(self, connection: Connection) -> None:
        """It carries nothing now."""
        self._resting.pop(connection, None)
        self._spare.pop(connection, None)
        if not connection.is_open:
            return
        if connection.is_reusable and connection.is_drained:
            connection.has_carried = True
            connection.is_complete = True
            self._idle[connection] = None
        else:
            connection.abort()

    def rest(self, connection: Connection, now_s: float) -> None:
        """Its request is answered, but the answer's end is not here yet."""
        connection.begin_rest()
        self._resting[connection] = now_s + REST_S

    def drop(self, connection: Connection) -> None:
        """Hang up, or stop opening it."""
        task = self._all.get(connection)
        connection.abort()
        if task is not None and not connection.is_open:
            task.cancel()
            self._all.pop(connection, None)

    def closed(self, connection: Connection) -> None:
        """It is closed."""
        self._all.pop(connection, None)
        self._resting.pop(connection, None)
        self._idle.pop(connection, None)

    def sweep(self, now_s: float) -> None:
        """Hang up on answers that do not come to their end."""
        while self._resting:
            connection, until_s = next(iter(self._resting.items()))
            if until_s > now_s:
                return
            del self._resting[connection]
            connection.abort()

    def close(self) -> None:
        """Hang up on all."""
        for connection in list(self._all):
            self.drop(connection)

    def _socket(self) -> socket.socket:
        """The way there begins now, not when the loop comes to it."""
        opening = socket.socket(self._family, socket.SOCK_STREAM)
        opening.setblocking(False)
        opening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        status = opening.connect_ex(self._place)
        if status not in (0, errno.EINPROGRESS):
            opening.close()
            raise OSError(status, os.strerror(status))
        return opening

    async def _connect(self, connection: Connection, opening: socket.socket) -> None:
        try:
            if connection.failure is None:
                await self._loop.sock_connect(opening, self._place)
            if connection.failure is not None:
                raise connection.failure
            name = self._spec.host if self._tls is not None else None
            await self._loop.create_connection(
                lambda: connection, sock=opening, ssl=self._tls, server_hostname=name
            )
        except OSError as error:
            opening.close()
            self._all.pop(connection, None)
            self._spare.pop(connection, None)
            self._failed(connection, error)
        except asyncio.CancelledError:
            opening.close()
            raise
        else:
            if connection in self._all:
                self._all[connection] = None


def _raise(task: asyncio.Task[None]) -> None:
    """What nobody foresaw goes to the loop's handler of errors."""
    if not task.cancelled():
        task.result()


def connection_limit(spec: RunSpec, num_requests: int) -> int:
    """How many connections a sender may have, with the files for them allowed.

    Raises:
        ConnectionLimitError: the system does not allow as many as the run may need.
    """
    wanted = max(1, min(spec.max_connections, num_requests))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = math.inf if hard == resource.RLIM_INFINITY else hard
    if files < wanted + SPARE_FILES:
        raise ConnectionLimitError(
            f"{wanted} connections at a time need {wanted + SPARE_FILES} open files, and the system allows {hard} "
            "(ulimit -Hn): allow more, or fewer connections"
        )
    enough = int(min(files, spec.max_connections + SPARE_FILES))
    if soft != resource.RLIM_INFINITY and soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
    return min(enough - SPARE_FILES, max(1, num_ports() // spec.num_senders))


def num_ports() -> int:
    """Ports that this machine has for connections to one server."""
    try:
        first, last = map(int, _PORT_RANGE.read_text().split())
    except (OSError, ValueError):
        return 16384  # 49152 to 65535, what IANA leaves for this
    return last - first + 1
