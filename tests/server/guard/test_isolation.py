"""What holds on every route, found by enumeration: a fault mended on one path returns on its sibling."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from braid.server.config import ServerConfig
from braid.server.guard.keys import named_keys

TALK = [{"role": "user", "content": "hi there"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": TALK, "max_tokens": 8},
    "/v1/completions": {"prompt": "hi there", "max_tokens": 8},
    "/v1/responses": {"model": "tiny", "input": "hi there", "max_output_tokens": 16},
    "/v1/messages": {"model": "tiny", "messages": TALK, "max_tokens": 8},
    "/v1/embeddings": {"model": "tiny", "input": "hi there"},
}
ANYTHING = {"model": "tiny", "messages": TALK, "prompt": "hi there", "input": "hi there", "max_tokens": 8}
"""For routes that are not here yet: whatever they read, they may find it."""
NO_STREAMS = ("/v1/embeddings",)
NO_PROGRAMS = ("/v1/embeddings",)


def posts(app: Starlette) -> list[str]:
    return [route.path for route in app.routes if "POST" in route.methods]  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def _pooling(engine: Any) -> None:
    engine.pooling = "last"


class TestKeys:
    @pytest.fixture
    def config(self) -> ServerConfig:
        return ServerConfig(api_keys=named_keys(("one", "two")))

    async def salts(
        self, client: httpx.AsyncClient, engine: Any, path: str, key: str, **more: Any
    ) -> set[str]:
        known = len(engine.seen)
        body = {**BODIES.get(path, ANYTHING), **more}
        answer = await client.post(path.replace("{id:path}", "x"), json=body, headers={"x-api-key": key})
        if path in BODIES and "n" not in more:  # not every dialect has several outputs
            assert answer.status_code == 200, (path, answer.text)
            assert len(engine.seen) > known, path
        return {request.cache_salt for request in engine.seen[known:]}

    async def test_no_route_shares_blocks_between_keys(
        self, app: Starlette, client: httpx.AsyncClient, engine: Any
    ) -> None:
        assert set(BODIES) <= set(posts(app))
        per_key: dict[str, set[str]] = {"one": set(), "two": set()}
        for path in posts(app):
            for key, seen in per_key.items():
                for more in ({}, {"stream": True}, {"n": 2}, {"cache_salt": "mine"}):
                    if path in NO_STREAMS and "stream" in more:
                        continue
                    seen |= await self.salts(client, engine, path, key, **more)
        assert not per_key["one"] & per_key["two"]
        assert "" not in per_key["one"] | per_key["two"]
        assert "mine" not in per_key["one"] | per_key["two"]

    async def test_within_a_key_they_are_shared(self, client: httpx.AsyncClient, engine: Any) -> None:
        found = [await self.salts(client, engine, path, "one") for path in BODIES for _ in range(2)]
        assert all(salts == found[0] for salts in found)
        assert len(found[0]) == 1

    async def test_a_clients_salt_separates_within_its_key(
        self, client: httpx.AsyncClient, engine: Any
    ) -> None:
        path = "/v1/chat/completions"
        plain = await self.salts(client, engine, path, "one")
        salted = await self.salts(client, engine, path, "one", cache_salt="mine")
        assert not plain & salted
        assert salted == await self.salts(client, engine, path, "one", cache_salt="mine")
        forged = next(iter(plain))
        assert not plain & await self.salts(client, engine, path, "two", cache_salt=forged)

    async def test_programs_are_known_on_every_route(self, client: httpx.AsyncClient, engine: Any) -> None:
        for path, body in BODIES.items():
            for stream in (False, True):
                if path in NO_PROGRAMS:
                    continue
                headers = {"x-api-key": "one", "X-Session-ID": f"s{path}"}
                asked = {**body, "stream": stream, "agent_hints": {"lease_s": 5}, "braid": {"outcomes": True}}
                answer = await client.post(path, json=asked, headers=headers)
                assert answer.status_code == 200, answer.text
                assert answer.headers["x-session-id"] == f"s{path}"
                assert answer.headers["x-braid-outcome"] == "agent_hints.lease_s=deferred"
                request = engine.seen[-1]
                assert (request.program.program, request.program.owner) == (f"s{path}", "key-1")
                assert request.intent.lease_s == 5


class TestShared:
    @pytest.fixture
    def config(self) -> ServerConfig:
        return ServerConfig(api_keys=named_keys(("one", "two")), share_prefix_cache=True)

    async def test_keys_share_where_the_operator_says_so(
        self, client: httpx.AsyncClient, engine: Any
    ) -> None:
        for key in ("one", "two"):
            for path, body in BODIES.items():
                await client.post(path, json=body, headers={"x-api-key": key})
        assert {request.cache_salt for request in engine.seen} == {""}


class TestOrigins:
    """No page of another site may read an answer, or send anything but what a form could."""

    async def test_nothing_is_said_to_other_origins(self, app: Starlette, client: httpx.AsyncClient) -> None:
        origin = {"origin": "https://evil.example"}
        paths = {route.path for route in app.routes}  # type: ignore[attr-defined]
        for path in [*paths, "/nowhere"]:
            for method in ("GET", "POST", "OPTIONS"):
                asked = {**origin, "access-control-request-method": "POST"} if method == "OPTIONS" else origin
                answer = await client.request(method, path.replace("{id:path}", "x"), headers=asked)
                assert not [name for name in answer.headers if name.startswith("access-control-")], path
                if method == "OPTIONS":
                    assert answer.status_code in (404, 405), path

    async def test_what_a_form_could_send_is_refused(self, client: httpx.AsyncClient, engine: Any) -> None:
        for path in BODIES:
            for media in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
                answer = await client.post(path, content=b"{}", headers={"content-type": media})
                assert answer.status_code == 415, path
        assert not engine.seen


class TestHealth:
    async def test_an_engine_that_died(self, client: httpx.AsyncClient, engine: Any) -> None:
        assert (await client.get("/health")).status_code == 200
        engine.ready = False
        answer = await client.get("/health")
        assert answer.status_code == 503
        assert "retry-after" in answer.headers
        engine.ready = True
        assert (await client.get("/health")).status_code == 200

    async def test_one_that_loads_is_alive(
        self, client: httpx.AsyncClient, engine: Any, monkeypatch: Any
    ) -> None:
        engine.ready = False
        monkeypatch.setattr(type(engine), "info", None)
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/ready")).status_code == 503
