"""What every HTTP request passes first and last: identity, key, draining, errors, the access log."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from braid.core.errors import BraidError, EngineDeadError
from braid.server.config import ServerConfig
from braid.server.errors import ClientDisconnectedError, HttpError, as_http_error
from braid.server.lifecycle import RECORD, Lifecycle, RequestRecord, Usage, is_cancelled, shutting_down
from braid.server.observe.metrics import ServerMetrics

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("braid.access")

_POLLED = frozenset(("/health", "/ready", "/metrics"))
"""What monitors ask every few seconds: logged at debug level."""

OPEN_PATHS = frozenset({"/health"})
_CLIENT_GONE = 499
_LONGEST_PATH = 200


class Gate:
    """ASGI middleware. No exception leaves it: each becomes an answer, or a line in the log where none is possible.

    Routes are closed by default: with a key set, every path but ``OPEN_PATHS`` asks for it, known or not.
    """

    def __init__(
        self, app: ASGIApp, config: ServerConfig, lifecycle: Lifecycle, metrics: ServerMetrics
    ) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._key = None if config.api_key is None else config.api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(request_id=f"req-{uuid.uuid4().hex}")
        scope[RECORD] = record

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = record.request_id
            await send(message)

        self._lifecycle.enter()
        try:
            self._admit(scope)
            await self._app(scope, receive, send_marked)
        except ClientDisconnectedError:
            record.status = _CLIENT_GONE
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            logger.error("request %s was cancelled by nobody", record.request_id, exc_info=error)
            failure = EngineDeadError("what this request waited for was cancelled; it can be sent again")
            await self._answer_error(failure, record, scope, receive, send_marked)
        except Exception as error:
            await self._answer_error(error, record, scope, receive, send_marked)
        finally:
            self._lifecycle.leave()
            _log(record, scope)

    def _admit(self, scope: Scope) -> None:
        if self._key is not None and scope["path"] not in OPEN_PATHS:
            given = dict(scope["headers"]).get(b"authorization", b"")
            scheme, _, key = given.partition(b" ")
            if not hmac.compare_digest(key.strip(), self._key) or scheme.lower() != b"bearer":
                message = "missing or wrong API key; send it as 'Authorization: Bearer KEY'"
                challenge = {"www-authenticate": "Bearer"}
                raise HttpError(
                    401, message, type="authentication_error", code="invalid_api_key", headers=challenge
                )
        if self._lifecycle.draining and scope["method"] == "POST":
            raise shutting_down()

    async def _answer_error(
        self, error: Exception, record: RequestRecord, scope: Scope, receive: Receive, send: Send
    ) -> None:
        answer = as_http_error(error)
        if not isinstance(error, BraidError):
            logger.error("request %s failed", record.request_id, exc_info=error)
        if answer.status == 503:
            self._metrics.rejected(answer.code or "overloaded")
        if record.status == 0:
            await answer.response()(scope, receive, send)


def _log(record: RequestRecord, scope: Scope) -> None:
    """One line, never with text from a prompt; JSON quoting escapes control characters of the path."""
    usage = record.usage() if record.usage is not None else Usage(0, 0, 0)
    level = logging.DEBUG if scope["path"] in _POLLED else logging.INFO
    access_logger.log(
        level,
        "id=%s method=%s path=%s status=%d prompt_tokens=%d cached_tokens=%d output_tokens=%d ms=%.1f",
        record.request_id,
        scope["method"],
        json.dumps(scope["path"][:_LONGEST_PATH]),
        record.status,
        usage.num_prompt_tokens,
        usage.num_cached_tokens,
        usage.num_output_tokens,
        (time.perf_counter() - record.start) * 1000,
    )
