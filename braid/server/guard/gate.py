"""What every HTTP request passes first and last: identity, key, draining, errors, the access log."""

from __future__ import annotations

import asyncio
import logging
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from braid.core.errors import BraidError, EngineDeadError
from braid.server.errors import (
    ClientDisconnectedError,
    HttpError,
    as_http_error,
    error_response,
    is_anthropic,
)
from braid.server.guard.hosts import HostCheck
from braid.server.guard.keys import KeyRing
from braid.server.guard.quota import Quotas, Ticket
from braid.server.lifecycle import RECORD, Lifecycle, RequestRecord, is_cancelled, shutting_down
from braid.server.observe.access import POLLED
from braid.server.observe.metrics import ServerMetrics
from braid.server.observe.observer import Observer

logger = logging.getLogger(__name__)
OPEN_PATHS = frozenset({"/health"})
_LIGHT_PATHS = "/v1/sessions"
"""What a full server still answers: it may be what ends the fullness."""
_CLIENT_GONE = 499


class Gate:
    """ASGI middleware. No exception leaves it: each becomes an answer, or a line in the log where none is possible.

    Routes are closed by default: with a key set, every path but ``OPEN_PATHS`` asks for it, known or not. What may
    become heavy, every POST but those of sessions, is counted here, before anything of its body is read.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyRing,
        hosts: HostCheck,
        quotas: Quotas,
        max_body_bytes: int,
        lifecycle: Lifecycle,
        metrics: ServerMetrics,
        observer: Observer,
    ) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._metrics = metrics
        self._observer = observer
        self._keys = keys
        self._hosts = hosts
        self._quotas = quotas
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(request_id=f"req-{uuid.uuid4().hex}")
        scope[RECORD] = record

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = record.request_id
                if is_anthropic(scope["path"]):
                    headers["request-id"] = record.request_id
                for name, value in record.headers():
                    headers[name] = value
            await send(message)

        self._lifecycle.enter()
        ticket: Ticket | None = None
        try:
            ticket = self._admit(scope, record)
            await self._app(scope, receive, send_marked)
        except ClientDisconnectedError:
            record.status = _CLIENT_GONE
        except asyncio.CancelledError as error:
            if is_cancelled():
                raise
            logger.error("request %s was cancelled by nobody", record.request_id, exc_info=error)
            failure = EngineDeadError("what this request waited for was cancelled; it can be sent again")
            await self._answer_error(failure, record, scope, receive, send_marked)
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # a panic of the tokeniser or the template engine is no Exception
            await self._answer_error(error, record, scope, receive, send_marked)
        finally:
            if ticket is not None:
                ticket.release()
            self._lifecycle.leave()
            self._observer.ended(record, scope)

    def _admit(self, scope: Scope, record: RequestRecord) -> Ticket | None:
        if scope["path"] in OPEN_PATHS:
            return None
        self._hosts.check(scope)
        principal = self._keys.find(scope["headers"])
        if principal is None:
            message = "missing or wrong API key; send it as 'Authorization: Bearer KEY' or 'X-Api-Key: KEY'"
            challenge = {"www-authenticate": "Bearer"}
            raise HttpError(
                401, message, type="authentication_error", code="invalid_api_key", headers=challenge
            )
        record.principal = principal
        if scope["method"] != "POST":
            return None
        if self._lifecycle.draining:
            raise shutting_down()
        if scope["path"].startswith(_LIGHT_PATHS):
            return None
        return self._quotas.arrive(principal, _body_bytes(scope, self._max_body_bytes))

    async def _answer_error(
        self, error: BaseException, record: RequestRecord, scope: Scope, receive: Receive, send: Send
    ) -> None:
        answer = as_http_error(error)
        if not isinstance(error, BraidError):
            logger.error("request %s failed", record.request_id, exc_info=error)
        if answer.status in (429, 503) and scope["path"] not in POLLED:
            self._metrics.rejected(answer.code or "overloaded")
        if record.status == 0:
            response = error_response(answer, scope["path"], record.request_id)
            await response(scope, receive, send)


def _body_bytes(scope: Scope, most: int) -> int:
    """What a body takes at most; longer ones are refused before they are read to their end."""
    headers = dict(scope["headers"])
    declared = headers.get(b"content-length", b"")
    if declared.isdigit():
        return min(int(declared[:20]), most)
    return most if b"transfer-encoding" in headers else 0
