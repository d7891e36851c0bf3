"""Errors as HTTP answers, in the shape of the OpenAI API; on its own paths in that of the Anthropic API."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from braid.core.errors import BraidError, EngineDeadError, InvalidParameterError, OverloadedError
from braid.core.request import Delta, FinishReason

RETRY_RANGE = (1.0, 120.0)
"""SDKs ignore a delay of 0, and openai-python gives up above 120 s."""
ENGINE_RETRY_SECONDS = 2.0
NO_RETRY = {"x-should-retry": "false"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class HttpError(BraidError):
    """An answer that is not 2xx."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def payload(self) -> dict[str, Any]:
        error = {"message": str(self), "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> Response:
        return json_response(self.payload(), status=self.status, headers=self.headers)


class RequestFailedError(BraidError):
    """The engine failed on this one request; others are not touched."""


def failed(delta: Delta) -> BraidError:
    """Why the engine ended a request, whose last delta this is, without being asked to."""
    if delta.finish_reason is FinishReason.ABORT:
        return EngineDeadError("the engine gave the request up")
    message = delta.error or "the engine failed on this request"
    return OverloadedError(message) if delta.can_retry else RequestFailedError(message)


class ClientDisconnectedError(BraidError):
    """Nobody is left to answer."""


def unavailable(message: str, *, retry_after: float, code: str = "overloaded") -> HttpError:
    """503 with the two headers that SDKs read; ``retry_after`` in seconds is brought into what they obey."""
    return HttpError(503, message, type="server_error", code=code, headers=_retry_headers(retry_after))


def too_many(message: str, *, retry_after: float, code: str = "rate_limit_exceeded") -> HttpError:
    """429: not the server is full, but this client's share of it."""
    return HttpError(429, message, type="rate_limit_error", code=code, headers=_retry_headers(retry_after))


def _retry_headers(retry_after: float) -> dict[str, str]:
    seconds = min(max(retry_after, RETRY_RANGE[0]), RETRY_RANGE[1])
    return {"retry-after": str(math.ceil(seconds)), "retry-after-ms": str(math.ceil(seconds * 1000))}


def as_http_error(error: BaseException) -> HttpError:
    """The answer for an exception; what is not foreseen is a 500 without details."""
    if isinstance(error, HttpError):
        return error
    if isinstance(error, InvalidParameterError):
        return HttpError(400, str(error), param=error.param, code=error.code)
    if isinstance(error, OverloadedError):
        return unavailable(str(error), retry_after=error.retry_after)
    if isinstance(error, EngineDeadError):
        return unavailable(str(error), retry_after=ENGINE_RETRY_SECONDS)
    message = (
        str(error) if isinstance(error, BraidError) else "internal error; the server's log has the details"
    )
    return HttpError(500, message, type="server_error", code="internal_error", headers=NO_RETRY)


def is_anthropic(path: str) -> bool:
    """Whether clients of this path speak Anthropic's dialect, and hear of errors in it."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def anthropic_payload(error: HttpError, request_id: str) -> dict[str, Any]:
    """Anthropic's error object, for answers and for streams."""
    fallback = "invalid_request_error" if error.status < 500 else "api_error"
    kind = _ANTHROPIC_TYPES.get(error.status, fallback)
    return {"type": "error", "error": {"type": kind, "message": str(error)}, "request_id": request_id}


def error_response(error: HttpError, path: str, request_id: str) -> Response:
    """The answer that clients of ``path`` understand."""
    if is_anthropic(path):
        payload = anthropic_payload(error, request_id)
        return json_response(payload, status=error.status, headers=error.headers)
    return error.response()


def json_response(value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    body = msgspec.json.encode(value)
    return Response(body, status_code=status, headers=dict(headers or {}), media_type="application/json")
