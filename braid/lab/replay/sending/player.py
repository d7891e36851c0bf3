"""Plays a sender's share of a folder: sends what is due, hears what comes, writes down how each request ended.

What is due is sent before anything is read: at every callback. Nothing waits for a connection that is in use.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

import numpy as np

from braid.lab.replay.outcome import Outcome, Status
from braid.lab.replay.sending.answer import Answer
from braid.lab.replay.sending.busy import Busy, ThreadCounts
from braid.lab.replay.sending.complaint import one_line
from braid.lab.replay.sending.connection import Connection
from braid.lab.replay.sending.exchange import BYTES_PER_TOKEN, MIN_MAX_BYTES, Exchange, parse_retry_after
from braid.lab.replay.sending.folder import Bodies, Folder, FolderError
from braid.lab.replay.sending.ledger import Ledger
from braid.lab.replay.sending.pool import ConnectionLimitError, Pool, connection_limit
from braid.lab.replay.sending.schedule import Schedule

TICK_S = 0.1
"""Time limits are looked after, and counters shown, so often."""
MAX_OPENED_BEFORE = 128
"""Connections that are opened before the first request is due, at most."""
STOPPED = "the run was stopped"
_GOOD: tuple[Status, ...] = ("ok", "cancelled")


class Player:
    """Plays its groups of a folder. All times are seconds of the run.

    Args:
        ledger: takes the outcomes.
        finished: called when all of them are there.

    Raises:
        FolderError, ScheduleError: the folder has nothing that this sender can play.
        ConnectionLimitError: the system does not allow the connections that it may need.
    """

    def __init__(
        self,
        folder: Folder,
        number: int,
        ledger: Ledger,
        loop: asyncio.AbstractEventLoop,
        finished: Callable[[], None],
    ) -> None:
        spec = folder.spec
        if number >= spec.num_senders or (spec.slots is not None and number >= len(spec.slots)):
            raise FolderError(
                f"{folder.path}: has work for {spec.num_senders} senders; there is none for {number}"
            )
        self.read_lag_s = 0.0
        self._folder = folder
        self._spec = spec
        self._ledger = ledger
        self._counts = ledger.counts
        self._loop = loop
        self._finished = finished
        self._schedule = Schedule(
            folder.requests,
            folder.after,
            sender=number,
            num_senders=spec.num_senders,
            num_slots=None if spec.slots is None else spec.slots[number],
            stop_on_failure=spec.stop_on_failure,
        )
        self._thread = ThreadCounts()
        self._busy = Busy(loop, self._thread)
        limit = connection_limit(spec, self._schedule.remaining)
        self._pool = Pool(spec, loop, self, self._unreachable, limit)
        self._bodies = Bodies(folder, None)
        self._open: dict[int, Exchange] = {}
        self._retrying: dict[int, Exchange] = {}
        self._num_opened_before = min(self._schedule.most_starts(1.0), MAX_OPENED_BEFORE)
        self._last_start_s = _last_start(folder)
        self._all_out_s = math.inf
        self._start = math.inf
        self._lag_s = 0.0
        self._is_sending = False
        self._ticker: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_s = math.inf
        self._is_over = False

    def begin(self, start: float, api_key: str | None) -> None:
        """The run begins at ``start``, on ``time.monotonic()``.

        Raises:
            FolderError: the key cannot be sent.
        """
        self._start = start
        self._bodies = Bodies(self._folder, api_key)
        if not self._schedule.remaining:
            self._finish()
            return
        self._pool.open_before(self._num_opened_before)
        self._tick()
        self._arm()

    def stop(self) -> None:
        """Send nothing more, hang up, and say so of everything that has not ended."""
        if not self._is_over:
            self._end_run("cut", STOPPED, STOPPED)

    def enter(self) -> float:
        """Every callback begins here: what is due is sent, then the callback may go on."""
        monotonic = time.monotonic()
        self.read_lag_s = self._busy.enter(monotonic)
        now_s = monotonic - self._start
        if now_s >= self._schedule.next_s and not self._is_over:
            self._send_due()
        return now_s

    def _now(self) -> float:
        return time.monotonic() - self._start if math.isfinite(self._start) else 0.0

    # Sending.

    def _send_due(self) -> None:
        if self._is_sending:
            return
        self._is_sending = True
        while not self._is_over and (due := self._schedule.pop(self._now())) is not None:
            self._attempt(*due)
        self._is_sending = False
        self._arm()

    def _attempt(self, due_s: float, number: int) -> None:
        exchange = self._retrying.pop(number, None)
        row = self._folder.request(number)
        if exchange is None:
            room = MIN_MAX_BYTES + BYTES_PER_TOKEN * max(row.out_tok, 0)
            exchange = Exchange(number, due_s, due_s, room, self._spec.late_read_s)
            self._counts["scheduled"] += 1
        answer = Answer(
            cancel_after_tok=row.cancel_after_tok if row.cancel_after_tok >= 0 else None,
            keep=self._spec.form if self._bodies.keeps_reply(number) else None,
        )
        exchange.begin_attempt(due_s, answer)
        self._open[number] = exchange
        self._send(exchange)

    def _send(self, exchange: Exchange, *, fresh: bool = False) -> None:
        """On an idle connection, or on a new one."""
        request = self._bodies.bytes_of(self._folder.request(exchange.number))
        connection = None if fresh else self._pool.take()
        if connection is None:
            try:
                connection = self._pool.open()
            except (ConnectionLimitError, OSError) as error:
                why = f"no connection{_because(error)}" if isinstance(error, OSError) else str(error)
                self._end(exchange, "unreachable", why, self._now())
                return
        exchange.connection = connection
        self._note_sent(exchange, fresh)
        connection.send(exchange, request)

    def _note_sent(self, exchange: Exchange, was_stale: bool) -> None:
        exchange.attempts += not was_stale
        if exchange.sent_s is None:
            exchange.sent_s = self._now()
            self._counts["sent"] += 1
            self._lag_s = max(self._lag_s, exchange.sent_s - exchange.scheduled_s)

    # What connections tell.

    def opened(self, connection: Connection) -> None:
        if self._is_over:
            connection.abort()
        elif connection.exchange is None:
            self._pool.give(connection)

    def answered(self, connection: Connection, now_s: float) -> None:
        """The verdict is known: let the connection go, then end the exchange."""
        exchange = connection.exchange
        assert exchange is not None
        answer = exchange.answer
        assert answer.status is not None
        if connection.is_complete:
            connection.exchange = None
            self._pool.give(connection)
        elif answer.status == "ok":
            self._pool.rest(connection, now_s)
        else:
            connection.exchange = None
            connection.abort()
        self._end(exchange, answer.status, answer.reason, now_s)

    def rested(self, connection: Connection) -> None:
        self._pool.give(connection)

    def closed(self, connection: Connection, error: Exception | None) -> None:
        """Its exchange, if it has one, is cut, or was never heard by a server that had closed it before."""
        self._pool.closed(connection)
        now_s = self.enter()
        exchange, connection.exchange = connection.exchange, None
        if exchange is None or exchange.number not in self._open:
            return
        answer = exchange.answer
        if connection.is_complete:
            answer.end(now_s)
        if answer.status is None and not connection.num_heard:
            if connection.has_carried and not exchange.was_stale:
                exchange.was_stale = True
                self._send(exchange, fresh=True)
                return
            answer.cut(f"the server hung up without an answer{_because(error)}", now_s)
        answer.cut(f"the connection ended inside the answer{_because(error)}", now_s)
        assert answer.status is not None
        self._end(exchange, answer.status, answer.reason, now_s)

    def _unreachable(self, connection: Connection, error: OSError) -> None:
        exchange, connection.exchange = connection.exchange, None
        if exchange is not None and exchange.number in self._open:
            self._end(exchange, "unreachable", one_line(f"no connection{_because(error)}"), self.enter())

    # Ends.

    def _end(self, exchange: Exchange, status: Status, reason: str, now_s: float) -> None:
        """An attempt has ended; unless it is tried again, the request has."""
        del self._open[exchange.number]
        exchange.connection = None
        if status == "refused":
            exchange.retry_after_s = parse_retry_after(exchange.retry_after)
        wait_s = self._spec.retry_wait_s if exchange.retry_after_s is None else exchange.retry_after_s
        may_retry = status == "refused" and wait_s <= self._spec.timeout_s
        if may_retry and exchange.attempts <= self._spec.max_retries:
            self._retrying[exchange.number] = exchange
            self._schedule.again(exchange.number, now_s + wait_s)
        else:
            self._conclude(exchange, status, reason, now_s)
        self._arm()

    def _conclude(self, exchange: Exchange, status: Status, reason: str, now_s: float) -> None:
        """Write it down; what waited for it is due, or never will be."""
        number = exchange.number
        self._write(exchange, status, reason, now_s)
        self._bodies.ended(number, self._folder.request(number), exchange.answer.reply)
        for other in self._schedule.ended(number, now_s, failed=status not in _GOOD):
            why = f"request {number}, which it follows, was {status}"
            self._ledger.add(Outcome(request=other, status="unsent", reason=why))
            self._bodies.ended(other, self._folder.request(other), [])
        if not self._schedule.remaining:
            self._finish()
        elif not self._open and self._schedule.is_stuck:
            self._give_up("what it waits for never ends")

    def _write(self, exchange: Exchange, status: Status, reason: str, now_s: float) -> None:
        self._ledger.add(exchange.outcome(status, reason, now_s))
        self._counts["output_tokens"] += exchange.answer.num_tokens

    def _let_go(self, exchange: Exchange) -> None:
        """Hang up on it."""
        connection, exchange.connection = exchange.connection, None
        if connection is not None:
            connection.exchange = None
            self._pool.drop(connection)

    def _end_run(self, status: Status, open_reason: str, reason: str) -> None:
        """Hang up on what is open, which is ``status``, and send nothing more."""
        now_s = self._now()
        for exchange in self._open.values():
            self._let_go(exchange)
            self._write(exchange, status, open_reason, now_s)
        self._open.clear()
        self._give_up(reason)

    def _give_up(self, reason: str) -> None:
        """Nothing more is sent."""
        now_s = self._now()
        for exchange in self._retrying.values():
            self._write(exchange, "refused", f"{exchange.answer.reason}; no further try: {reason}", now_s)
        for number in self._schedule.leftovers():
            if number not in self._retrying:
                self._ledger.add(Outcome(request=number, status="unsent", reason=reason))
        self._finish()

    def _finish(self) -> None:
        self._is_over = True
        for timer in (self._timer, self._ticker):
            if timer is not None:
                timer.cancel()
        self._pool.close()
        self._thread.close()
        self._beat(self._now())
        self._finished()

    # Timers.

    def _arm(self) -> None:
        """Be called when the next request is due. Loops count in milliseconds: late by one at most, never early."""
        next_s = self._schedule.next_s
        if self._is_over or self._is_sending or next_s >= self._timer_s:
            return
        wait_s = next_s - self._now()
        if wait_s <= 0:
            self._send_due()
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_s = next_s
        self._timer = self._loop.call_later(math.ceil(wait_s * 1e3) / 1e3, self._wake)

    def _wake(self) -> None:
        self._timer, self._timer_s = None, math.inf
        self.enter()
        self._arm()

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(TICK_S, self._tick)
        now_s = self.enter()
        self._expire(now_s)
        self._pool.sweep(now_s)
        if not self._is_over and now_s >= self._drained_s(now_s):
            limit = f"within {self._spec.drain_s:g} s of the last planned start"
            self._end_run("timed_out", f"no end {limit}", f"not due {limit}")
        elif not self._is_over:
            self._beat(now_s)

    def _expire(self, now_s: float) -> None:
        """Hang up on what has had its time. Attempts are in order of their due times, but for lags."""
        while self._open:
            exchange = next(iter(self._open.values()))
            if exchange.due_s + self._spec.timeout_s > now_s:
                return
            self._let_go(exchange)
            self._end(exchange, "timed_out", f"no end within {self._spec.timeout_s:g} s", now_s)

    def _drained_s(self, now_s: float) -> float:
        """When everything must have ended. Where programs wait for slots, the last start is not planned: it is when
        nothing is left to be started."""
        if self._spec.drain_s is None:
            return math.inf
        if self._spec.slots is None:
            return self._last_start_s + self._spec.drain_s
        if self._schedule.is_all_out and math.isinf(self._all_out_s):
            self._all_out_s = now_s
        return self._all_out_s + self._spec.drain_s

    def _beat(self, now_s: float) -> None:
        counts = self._counts
        counts["open"] = len(self._open)
        counts["waiting"] = 0 if self._is_over else self._schedule.remaining - len(self._open)
        counts["lag_max_us"] = int(self._lag_s * 1e6)
        self._ledger.beat(now_s)


def _because(error: Exception | None) -> str:
    if error is None:
        return ""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return f": {text}"


def _last_start(folder: Folder) -> float:
    starts = folder.requests["start_s"]
    known = starts[~np.isnan(starts)]
    return float(known.max()) if known.size else 0.0
