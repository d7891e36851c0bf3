"""Whoever wants to know of a request when it has ended: metrics, access log, request log."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.types import Scope

from braid.server.lifecycle import RequestRecord
from braid.server.observe.access import log_request
from braid.server.observe.config import ObserveConfig
from braid.server.observe.hashing import Hasher
from braid.server.observe.instruments import OTHER
from braid.server.observe.metrics import ServerMetrics
from braid.server.observe.report import CallReport
from braid.server.observe.request_log import RequestLog


class Observer:
    """One per application.

    Args:
        paths: the server's own paths: what metrics may be labelled with.

    Raises:
        BraidError: the request log cannot be written.
    """

    def __init__(self, metrics: ServerMetrics, config: ObserveConfig, paths: Iterable[str]) -> None:
        self._metrics = metrics
        self._paths = frozenset(paths)
        self._hasher = Hasher()
        self._log: RequestLog | None = None
        if config.request_log is not None:
            self._log = RequestLog(
                config.request_log, config.request_log_bytes, self._hasher, metrics.log_dropped
            )

    def ended(self, record: RequestRecord, scope: Scope) -> None:
        """An HTTP request is over, whatever became of it."""
        path = scope["path"]
        self._metrics.answered(path if path in self._paths else OTHER, record.status)
        for outcome in record.outcomes:
            self._metrics.outcome(outcome)
        if record.call is not None:
            self._count(record.call)
        log_request(record, scope["method"], path, self._hasher)
        if self._log is not None:
            self._log.note(record, path)

    def _count(self, call: CallReport) -> None:
        self._metrics.tool_calls.inc(len(call.call_names))
        if call.constraint is not None:
            self._metrics.constrained(call.constraint)
        if call.program is not None:
            self._metrics.turn_of(call.program.source)

    def close(self) -> None:
        """Write what is not written yet."""
        if self._log is not None:
            self._log.close()
