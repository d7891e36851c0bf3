"""The loop: three calls per step, one blocking call, and the only place where scheduler and executor meet.

Rules:
    1. The loop owns the timers: ``tick`` before planning, ``next_deadline`` feeds ``wait``.
    2. Work unfinished, nothing in flight and no deadline is a stall, and a stall is an error.
    3. ``wait`` is the only blocking call, so a wall clock and a virtual clock differ in the executor alone.
    4. Only the loop's thread touches the scheduler; other threads post commands.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from braid.core.errors import BraidError
from braid.core.request import Delta, Request
from braid.core.step import Executor
from braid.sched.config import TIER
from braid.sched.scheduler import Scheduler, SchedulerStats

Result = TypeVar("Result")
Sink = Callable[[list[Delta]], None]

BLOCKS_CHECKED_PER_STEP = 100
"""The integrity check of an idle engine reads every block; it waits until enough steps have earned it."""


class _Command(NamedTuple):
    """What another thread wants done, and where it waits for the outcome."""

    call: Callable[[Scheduler, float], Any]
    future: Future[Any]

    def run(self, scheduler: Scheduler, now: float) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            value = self.call(scheduler, now)
        except Exception as error:
            self.future.set_exception(error)
        else:
            self.future.set_result(value)


class StallError(BraidError):
    """Requests are unfinished and nothing can ever happen; the text holds the scheduler's state."""


class Loop:
    """Drives ``scheduler`` on ``executor`` and hands every batch of deltas to ``sink``, on the loop's
    thread.

    A sink that raises ends the loop: it is part of the engine, not of a request.

    Args:
        checks: called beside the scheduler's own integrity check.
        before_plan: called with the time before every plan.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        executor: Executor,
        sink: Sink,
        checks: Sequence[Callable[[], None]] = (),
        before_plan: Callable[[float], None] = lambda now: None,
    ) -> None:
        self._scheduler = scheduler
        self._executor = executor
        self._sink = sink
        self._checks = checks
        self._before_plan = before_plan
        self._in_flight: set[str] = set()
        self._inbox: deque[_Command] = deque()
        self._lock = threading.Lock()
        self._failure: BaseException | None = None
        self._unchecked_steps = 0

    # -- from any thread -----------------------------------------------------------------------------------

    def post(self, command: Callable[[Scheduler, float], Result]) -> Future[Result]:
        """Run ``command(scheduler, now)`` on the loop's thread before the next step is planned.

        What it returns or raises arrives in the future; it never harms the loop. After the loop has died, the
        future holds what killed it.
        """
        future: Future[Result] = Future()
        with self._lock:
            if self._failure is not None:
                future.set_exception(self._failure)
                return future
            self._inbox.append(_Command(command, future))
        self._executor.wake()
        return future

    def add(self, request: Request) -> Future[None]:
        """Queue a request; the future raises what ``Scheduler.add`` raises."""
        return self.post(lambda scheduler, now: scheduler.add(request, now))

    def abort(self, request_id: str) -> Future[bool]:
        return self.post(lambda scheduler, now: scheduler.abort(request_id, now))

    def stats(self) -> Future[SchedulerStats]:
        return self.post(lambda scheduler, now: scheduler.stats())

    # -- on the loop's thread ------------------------------------------------------------------------------

    def run(self, stop: Callable[[], bool]) -> None:
        """Step until ``stop()``, which is asked between steps; post a command (or wake the executor) to
        have it asked.

        Raises:
            StallError: see rule 2.
        """
        try:
            while not stop():
                self.run_once()
        except BaseException as failure:
            self.close(failure)
            raise

    def run_until_idle(self) -> None:
        """Step until every request added so far has ended and nothing is in flight."""
        self.run(lambda: self.is_idle)

    @property
    def is_idle(self) -> bool:
        return not (self._inbox or self._in_flight or self._scheduler.has_unfinished)

    @property
    def computing(self) -> set[str]:
        """The lanes with a step that computes in flight."""
        return self._in_flight - {TIER}

    def run_once(self) -> None:
        """Plan on every free lane, then wait for whatever comes first and take it in."""
        self._drain_inbox()
        self._plan()
        failures = self._scheduler.failures()
        if failures:
            self._sink(failures)
        until = self._scheduler.next_deadline()
        if not self._in_flight:
            self._rest(until)
        results = self._executor.wait(until)
        now = self._executor.now()
        for result in results:
            self._in_flight.discard(result.lane)
            deltas = self._scheduler.update(result, now)
            if deltas:
                self._sink(deltas)

    def _plan(self) -> None:
        now = self._executor.now()
        self._scheduler.tick(now)
        self._before_plan(now)
        for lane in self._executor.lanes:
            if lane in self._in_flight:
                continue
            plan = self._scheduler.schedule(lane, now)
            if plan is not None:
                self._unchecked_steps += 1
                self._in_flight.add(lane)
                self._executor.submit(plan)
        for lane, units in self._scheduler.reshare():
            self._executor.reshare(lane, units)

    def _rest(self, until: float | None) -> None:
        """Nothing runs: all is done, or a time is waited for, or this is a stall (unless a command came)."""
        if self._scheduler.has_unfinished:
            if until is None and not self._inbox:
                raise StallError(
                    f"unfinished requests, but no step can be planned:\n{self._scheduler.dump()}"
                )
        elif self._unchecked_steps * BLOCKS_CHECKED_PER_STEP >= self._scheduler.config.num_blocks:
            self._scheduler.check_integrity()
            for check in self._checks:
                check()
            self._unchecked_steps = 0

    def _drain_inbox(self) -> None:
        while self._inbox:
            self._inbox.popleft().run(self._scheduler, self._executor.now())

    def close(self, failure: BaseException) -> None:
        """Nobody will answer any more: tell those who wait, and those who come."""
        with self._lock:
            self._failure = failure
            pending, self._inbox = self._inbox, deque()
        for command in pending:
            if command.future.set_running_or_notify_cancel():
                command.future.set_exception(failure)
