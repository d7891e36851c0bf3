"""The ASGI application: which path leads where."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from braid.server.config import ServerContext
from braid.server.dialects.chat import ChatRoutes
from braid.server.dialects.completions import CompletionRoutes
from braid.server.dialects.embeddings import EmbeddingRoutes
from braid.server.dialects.info import InfoRoutes
from braid.server.dialects.messages import MessageRoutes
from braid.server.dialects.responses import ResponseRoutes
from braid.server.encode import PromptEncoder
from braid.server.errors import HttpError, error_response
from braid.server.guard.gate import Gate
from braid.server.guard.hosts import HostCheck
from braid.server.guard.keys import KeyRing
from braid.server.guard.quota import Quotas
from braid.server.lifecycle import Lifecycle
from braid.server.observe.metrics import ServerMetrics
from braid.server.observe.observer import Observer
from braid.server.pipeline import Pipeline, record_of
from braid.server.programs.sessions import SessionRoutes

Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(context: ServerContext, *, local: bool = False) -> Starlette:
    """The HTTP shell around an engine; ``app.state.lifecycle`` drains it, ``app.state.observer`` closes its logs.

    Args:
        local: it listens on loopback only, so no other host's name may lead here.
    """
    lifecycle = Lifecycle()
    metrics = ServerMetrics(context.served_model_names[0])
    app = Starlette()
    app.router.redirect_slashes = False
    app.state.lifecycle = lifecycle
    app.add_exception_handler(HTTPException, _plain_error)
    config = context.config
    quotas = Quotas(config, lambda: _kv_tokens(context))
    pipeline = Pipeline(context, PromptEncoder(context), lifecycle, metrics, quotas)
    routes = _routes(pipeline)
    observer = Observer(metrics, context.observe, (path for _, path, _ in routes))
    app.state.observer = observer
    app.add_middleware(
        Gate,
        keys=KeyRing(config.api_keys, share_prefixes=config.share_prefix_cache),
        hosts=HostCheck(config.allowed_hosts, local=local),
        quotas=quotas,
        max_body_bytes=config.max_body_bytes,
        lifecycle=lifecycle,
        metrics=metrics,
        observer=observer,
    )
    for method, path, endpoint in routes:
        app.add_route(path, endpoint, methods=[method])
    return app


def _routes(pipeline: Pipeline) -> tuple[tuple[str, str, Endpoint], ...]:
    chat, text, info = ChatRoutes(pipeline), CompletionRoutes(pipeline), InfoRoutes(pipeline)
    responses, sessions = ResponseRoutes(pipeline), SessionRoutes(pipeline)
    messages = MessageRoutes(pipeline)
    return (
        ("POST", "/v1/chat/completions", chat.completions),
        ("POST", "/v1/completions", text.completions),
        ("POST", "/v1/responses", responses.create),
        ("GET", "/v1/responses/{id}", responses.stored),
        ("DELETE", "/v1/responses/{id}", responses.stored),
        ("POST", "/v1/responses/{id}/cancel", responses.stored),
        ("GET", "/v1/responses/{id}/input_items", responses.stored),
        ("POST", "/v1/messages", messages.messages),
        ("POST", "/v1/messages/count_tokens", messages.count_tokens),
        ("POST", "/v1/embeddings", EmbeddingRoutes(pipeline).embeddings),
        ("GET", "/v1/models", info.models),
        ("GET", "/v1/models/{name:path}", info.model),
        ("GET", "/v1/sessions", sessions.sessions),
        ("POST", "/v1/sessions/{id:path}/close", sessions.close),
        ("POST", "/v1/sessions/{id:path}/prefetch", sessions.prefetch),
        ("POST", "/v1/sessions/{id:path}/demote", sessions.demote),
        ("POST", "/v1/sessions/{id:path}/pin", sessions.pin),
        ("POST", "/tokenize", info.tokenize),
        ("POST", "/detokenize", info.detokenize),
        ("GET", "/health", info.health),
        ("GET", "/ready", info.ready),
        ("GET", "/version", info.version),
        ("GET", "/metrics", info.metrics),
    )


def _kv_tokens(context: ServerContext) -> int | None:
    """How many tokens the engine can keep; None until it has been ready once."""
    info = context.engine.info
    return None if info is None else info.num_blocks * info.block_size


async def _plain_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the shape of the API."""
    assert isinstance(error, HTTPException)
    messages = {404: "there is no such path", 405: "this path does not take this method"}
    message = messages.get(error.status_code, str(error.detail))
    answer = HttpError(error.status_code, message, code=_code(error.status_code), headers=error.headers)
    return error_response(answer, request.url.path, record_of(request).request_id)


def _code(status: int) -> str | None:
    return {404: "not_found", 405: "method_not_allowed"}.get(status)
