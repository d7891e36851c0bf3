"""The server's own life: what is in flight, draining, and the watch over each client's connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple

from starlette.types import Receive

from braid.core.errors import BraidError
from braid.core.program import Outcome, ProgramRef
from braid.server.errors import ClientDisconnectedError, HttpError, unavailable
from braid.server.guard.keys import ANONYMOUS, Principal
from braid.server.observe.report import CallReport

DRAIN_RETRY_SECONDS = 5.0
RECORD = "braid.record"
"""Where the gate leaves a request's ``RequestRecord`` in its ASGI scope."""


@dataclass(slots=True, eq=False)
class RequestRecord:
    """What is known of one HTTP request: filled by the gate and the pipeline, read by the logs.

    ``start`` is on the ``perf_counter`` clock, in seconds; ``usage`` and ``program`` are set where text is generated.
    """

    request_id: str
    principal: Principal = ANONYMOUS
    start: float = field(default_factory=time.perf_counter)
    status: int = 0
    usage: Callable[[], Usage] | None = None
    program: ProgramRef | None = None
    call: CallReport | None = None
    """Of a request that generates; the rest is told by it when it has ended."""
    streamed: bool = False
    outcomes: list[Outcome] = field(default_factory=list)
    """What became of the client's retention wishes."""
    warnings: list[str] = field(default_factory=list)
    """What was ignored although it would have changed the output; sent as a header."""
    body: Mapping[str, Any] = field(default_factory=dict)
    """The JSON object that was sent."""
    session_id: str | None = None
    """The client's own name of its program, which every answer repeats."""
    wants_outcomes: bool = False
    """The client asked to be told what became of its wishes."""

    def headers(self) -> Iterator[tuple[str, str]]:
        """What every answer to this request says, beside its id."""
        if self.session_id is not None and self.session_id.isascii():
            yield "x-session-id", self.session_id
        if self.wants_outcomes and self.outcomes:
            yield "x-braid-outcome", ", ".join(map(_told, self.outcomes))


def _told(outcome: Outcome) -> str:
    reason = "" if outcome.reason is None else f"; reason={outcome.reason}"
    return f"{outcome.wish}={outcome.applied.value}{reason}"


class Usage(NamedTuple):
    """Token counts of one HTTP request."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    """Prompt tokens that were found in the prefix cache."""
    num_written_tokens: int = 0
    """Prompt tokens that can be found there from now on, and could not before."""
    num_reasoning_tokens: int = 0
    """Output tokens that were thinking."""


class Lifecycle:
    """Counts requests in flight; ``draining`` turns new ones away, ``stop`` ends those that are left."""

    def __init__(self) -> None:
        self.draining = False
        self.in_flight = 0
        self._watches: set[ConnectionWatch] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    def enter(self) -> None:
        self.in_flight += 1
        self._idle.clear()

    def leave(self) -> None:
        self.in_flight -= 1
        if self.in_flight == 0:
            self._idle.set()

    async def wait_idle(self) -> None:
        await self._idle.wait()

    def stop(self) -> None:
        """End what is still in flight with an error of its own."""
        for watch in tuple(self._watches):
            watch.interrupt(shutting_down())

    def watch(
        self,
        receive: Receive,
        *,
        every: float | None = None,
        on_tick: Callable[[], Awaitable[None]] | None = None,
    ) -> ConnectionWatch:
        return ConnectionWatch(self._watches, receive, every, on_tick)


def is_cancelled() -> bool:
    """Whether somebody cancelled the running task.

    Without that a CancelledError came out of something the task waited for: a failure like any other, which would
    otherwise pass every ``except Exception`` and leave the client without an answer.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def shutting_down() -> HttpError:
    return unavailable("the server is shutting down", retry_after=DRAIN_RETRY_SECONDS, code="shutting_down")


class ConnectionWatch:
    """``async with`` block that ends with ClientDisconnectedError as soon as the client goes away.

    ASGI tells of a disconnect only to who asks ``receive``, so a task asks while the block works. It cancels the
    block's task, and the exit turns that cancellation (and no other) into the error that caused it.
    ``on_tick`` runs whenever ``every`` seconds have passed.
    """

    def __init__(
        self,
        registry: set[ConnectionWatch],
        receive: Receive,
        every: float | None,
        on_tick: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self._registry = registry
        self._receive = receive
        self._every = every
        self._on_tick = on_tick
        self._cause: BraidError | None = None

    async def __aenter__(self) -> ConnectionWatch:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watcher = asyncio.create_task(self._run())
        self._registry.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._registry.discard(self)
        self._watcher.cancel()
        if self._cause is not None and kind is asyncio.CancelledError and self._task.uncancel() == 0:
            raise self._cause from None

    def interrupt(self, cause: BraidError) -> None:
        """End the block with ``cause``; only the first counts."""
        if self._cause is None:
            self._cause = cause
            self._task.cancel()

    async def _run(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._every):
                    message = await self._receive()
            except TimeoutError:
                if self._on_tick is not None:
                    await self._on_tick()
                continue
            if message["type"] == "http.disconnect":
                self.interrupt(ClientDisconnectedError("the client closed the connection"))
                return
