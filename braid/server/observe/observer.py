"""Whoever wants to know of a request when it has ended: metrics, access log, request log, spans."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from starlette.types import Scope

from braid.core.errors import BraidError
from braid.core.hashing import Hasher
from braid.server.lifecycle import RequestRecord
from braid.server.observe.access import POLLED, log_request
from braid.server.observe.config import ObserveConfig
from braid.server.observe.instruments import OTHER
from braid.server.observe.metrics import ServerMetrics
from braid.server.observe.report import CallReport
from braid.server.observe.request_log import RequestLog

if TYPE_CHECKING:
    from braid.server.observe.spans import Spans


class Observer:
    """One per application.

    Args:
        paths: the server's own paths: what metrics may be labelled with.

    Raises:
        BraidError: the request log cannot be written, or OpenTelemetry is not installed.
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

        self._spans = _spans(config, self._hasher)

    def ended(self, record: RequestRecord, scope: Scope) -> None:
        """An HTTP request is over, whatever became of it."""
        path = scope["path"]
        route = path if path in self._paths else OTHER
        self._metrics.answered(route, record.status)
        for outcome in record.outcomes:
            self._metrics.outcome(outcome)
        if record.call is not None:
            self._count(record.call)
        log_request(record, scope["method"], path, self._hasher)
        if self._log is not None:
            self._log.note(record, path)
        if self._spans is not None and path not in POLLED:
            self._spans.ended(record, scope, route)

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
        if self._spans is not None:
            self._spans.close()


def _spans(config: ObserveConfig, hasher: Hasher) -> Spans | None:
    """OpenTelemetry is imported here, and only where it is asked for."""
    if config.otlp_endpoint is None:
        return None
    try:
        from braid.server.observe.spans import open_spans
    except ModuleNotFoundError as error:
        raise BraidError(f"otlp_endpoint needs {error.name}: pip install 'braid[otel]'") from None
    return open_spans(config.otlp_endpoint, hasher, legacy_names=config.otel_legacy_names)
