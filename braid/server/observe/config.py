"""What is written about requests, and where to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from braid.core.errors import InvalidParameterError

_LEAST_LOG_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ObserveConfig:
    """Off unless asked for: no file is written and no socket opened.

    Args:
        request_log: one JSON line per prompt goes here, for the workload lab.
        request_log_bytes: a longer file becomes ``FILE.1``, which replaces the one of before.
        otlp_endpoint: base URL of an OpenTelemetry collector that takes OTLP over HTTP.
        otel_legacy_names: spans have the older names of token counts as well.

    Raises:
        InvalidParameterError: naming the field, the value and the valid range.
    """

    request_log: Path | None = None
    request_log_bytes: int = 256 << 20
    otlp_endpoint: str | None = None
    otel_legacy_names: bool = False

    def __post_init__(self) -> None:
        if self.request_log_bytes < _LEAST_LOG_BYTES:
            message = f"request_log_bytes must be >= {_LEAST_LOG_BYTES} (1MiB), got {self.request_log_bytes}"
            raise InvalidParameterError(message, param="request_log_bytes")
        endpoint = self.otlp_endpoint
        if endpoint is not None and not endpoint.startswith(("http://", "https://")):
            message = f"otlp_endpoint must begin with http:// or https://, got {endpoint!r}"
            raise InvalidParameterError(message, param="otlp_endpoint")
