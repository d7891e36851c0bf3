"""Check 25: what can be reached, by whom and from where. Every route is enumerated, so that a new one is closed too.

Spellings of keys, hosts and origins are tested in ``tests/server/guard``.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

import braid.server.guard.keys as keys_module
from braid.cli.options import ServerOptions
from braid.core.errors import BraidError
from braid.server.app import create_app
from braid.server.config import ServerConfig
from braid.server.guard.keys import named_keys
from braid.server.serve import DEFAULT_HOST, bind

from .bodies import concrete
from .served import scripted

OPEN = {"/health"}
UNKNOWN = ("/", "/nowhere", "/docs", "/openapi.json", "/health/", "//health", "/v1/health", "/HEALTH")
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS")
WRONG_KEYS: tuple[dict[str, str], ...] = (
    {},
    {"authorization": "Bearer"},
    {"authorization": "Bearer "},
    {"authorization": "Bearer wrong"},
    {"authorization": "Basic cmlnaHQ="},
    {"authorization": "right"},
    {"x-api-key": ""},
    {"x-api-key": "Right"},
    {"x-api-key": "right\x00"},
    {"x-api-key": "right" * 1000},
    {"cookie": "api_key=right"},
)


def paths(app: Starlette) -> list[str]:
    return sorted({route.path.replace("{name:path}", "tiny") for route in app.routes})  # type: ignore[attr-defined]


async def test_every_route_but_health_needs_the_key() -> None:
    async with scripted(ServerConfig(api_keys=named_keys(("right",)))) as served:

        async def new(request: Request) -> Response:
            return PlainTextResponse("a route of tomorrow")

        served.app.add_route("/tomorrow", new, methods=["GET", "POST"])
        known = paths(served.app)
        assert "/tomorrow" in known
        assert set(known) >= OPEN
        for path in (
            *known,
            "/",
            "/nowhere",
            "/docs",
            "/openapi.json",
            "/health/",
            "//health",
            "/v1/health",
            "/HEALTH",
        ):
            for method in METHODS:
                for headers in WRONG_KEYS if method in ("GET", "POST") else WRONG_KEYS[:1]:
                    answer = await served.client.request(method, concrete(path), headers=headers)
                    if path in OPEN:
                        assert answer.status_code in (200, 405), (method, path)
                        continue
                    assert answer.status_code == 401, (method, path, headers, answer.status_code)
                    assert answer.headers["www-authenticate"] == "Bearer"
                    assert "right" not in answer.text
        assert not served.engine.seen
        answer = await served.client.get("/tomorrow", headers={"x-api-key": "right"})
        assert answer.text == "a route of tomorrow"


async def test_health_tells_nothing_but_health() -> None:
    async with scripted(ServerConfig(api_keys=named_keys(("right",)))) as served:
        assert (await served.client.get("/health")).json() == {"status": "ok"}


async def test_without_keys_nothing_is_hidden_behind_one() -> None:
    async with scripted() as served:
        for path in ("/v1/models", "/ready", "/version", "/metrics", "/v1/sessions"):
            assert (await served.client.get(path)).status_code == 200


def test_keys_are_compared_in_constant_time_and_never_with_equality() -> None:
    """Structure, not a stopwatch: every comparison of the module is of something else, or is ``compare_digest``."""
    tree = ast.parse(inspect.getsource(keys_module))
    calls = [
        node.func.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]
    assert "compare_digest" in calls
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            for side in (node.left, *node.comparators):
                name = getattr(side, "attr", None) or getattr(side, "id", None)
                assert name not in ("digest", "given", "key"), ast.unparse(node)


def test_loopback_is_the_default() -> None:
    assert DEFAULT_HOST == ServerOptions().host == "127.0.0.1"
    assert not ServerOptions().allow_open
    with bind(port=0, config=ServerConfig()) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "0", "00.0.0.0", "::ffff:0.0.0.0"])
def test_every_spelling_of_every_network_needs_a_key(host: str) -> None:
    with pytest.raises(BraidError):
        bind(host, 0, config=ServerConfig())


async def test_other_hosts_are_refused_on_every_route_of_a_local_server() -> None:
    async with scripted() as served:
        local = create_app(served.context, local=True)
        transport = httpx.ASGITransport(app=local)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for path in paths(local):
                for host in (
                    "evil.example",
                    "127.0.0.1.evil.example",
                    "localhost.evil.example",
                    "evil.example:80",
                ):
                    for method in ("GET", "POST"):
                        answer = await client.request(method, concrete(path), headers={"host": host})
                        if path in OPEN:
                            continue
                        assert answer.status_code == 421, (method, path, host)
            assert (await client.get("/v1/models")).status_code == 200
        assert not served.engine.seen


async def test_no_route_speaks_to_other_origins() -> None:
    async with scripted() as served:
        for path in paths(served.app):
            for method in METHODS:
                headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
                answer = await served.client.request(method, concrete(path), headers=headers)
                assert not [name for name in answer.headers if name.startswith("access-control-")], (
                    method,
                    path,
                )


def test_no_part_listens_on_tcp_but_the_server() -> None:
    """One place binds a TCP socket; the parts speak over local sockets."""
    package = Path(keys_module.__file__).parents[2]
    binding = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("bind", "listen")
    }
    assert binding == {"server/serve.py", "engine/client.py"}
    assert "tcp://" not in "".join(file.read_text() for file in package.rglob("*.py"))
