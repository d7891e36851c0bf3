from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from braid.server.app import create_app
from braid.server.config import ServerConfig, ServerContext
from braid.server.errors import HttpError
from braid.server.guard.hosts import HostCheck


def scope(*hosts: str, version: str = "1.1") -> dict[str, Any]:
    return {"headers": [(b"host", host.encode()) for host in hosts], "http_version": version}


OURS = [
    "localhost",
    "LocalHost:8000",
    "127.0.0.1",
    "127.0.0.1:1",
    "127.1.2.3:80",
    "[::1]",
    "[::1]:8000",
    "localhost.",
]
OTHERS = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "192.168.1.5:8000",
    "0.0.0.0:8000",
    "[::2]:8000",
    "[::ffff:10.0.0.1]",
    "",
    ":8000",
    "[",
    "localhost@evil.example",
    "evil.example,localhost",
]


@pytest.mark.parametrize("host", OURS)
def test_our_own_names(host: str) -> None:
    HostCheck((), local=True).check(scope(host))


@pytest.mark.parametrize("host", OTHERS)
def test_other_names(host: str) -> None:
    with pytest.raises(HttpError) as caught:
        HostCheck(("good.example",), local=True).check(scope(host))
    assert (caught.value.status, caught.value.code) == (421, "host_not_allowed")


def test_none_or_two() -> None:
    check = HostCheck((), local=True).check
    check(scope(version="1.0"))
    for wrong in (scope(), scope("localhost", "evil.example"), scope("localhost", "localhost")):
        with pytest.raises(HttpError):
            check(wrong)


def test_further_names() -> None:
    check = HostCheck(("Good.Example",), local=True).check
    for host in ("good.example", "GOOD.example:9", "localhost"):
        check(scope(host))


@pytest.mark.parametrize("host", OTHERS)
def test_elsewhere_nothing_is_checked_unless_told(host: str) -> None:
    HostCheck((), local=False).check(scope(host))
    HostCheck(("*",), local=True).check(scope(host))


def test_elsewhere_only_the_names_that_were_told() -> None:
    check = HostCheck(("good.example",), local=False).check
    check(scope("good.example:80"))
    for host in ("evil.example", "localhost"):
        with pytest.raises(HttpError):
            check(scope(host))


class TestServer:
    @pytest.fixture
    def config(self) -> ServerConfig:
        return ServerConfig(api_key="k")

    @pytest.fixture
    async def local(self, context: ServerContext) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(app=create_app(context, local=True))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            yield client

    async def test_every_path_but_health(self, local: httpx.AsyncClient) -> None:
        key = {"authorization": "Bearer k"}
        assert (await local.get("/v1/models", headers=key)).status_code == 200
        rebound = {"host": "evil.example", **key}
        for path in ("/v1/models", "/metrics", "/v1/sessions", "/nowhere", "/"):
            answer = await local.get(path, headers=rebound)
            assert answer.status_code == 421, path
            assert answer.json()["error"]["code"] == "host_not_allowed"
        assert (await local.post("/v1/chat/completions", headers=rebound, json={})).status_code == 421
        assert (await local.get("/health", headers=rebound)).status_code == 200

    async def test_the_key_is_not_looked_at_before(self, local: httpx.AsyncClient) -> None:
        assert (await local.get("/v1/models", headers={"host": "evil.example"})).status_code == 421
