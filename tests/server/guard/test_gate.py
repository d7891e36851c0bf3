from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from braid.core.errors import EngineDeadError
from braid.server.config import ServerConfig
from braid.server.generate import merge

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi, this is private"}]}
KEY = "sëcret-key"


def routes(app: Starlette) -> list[tuple[str, str]]:
    found = [(method, route.path) for route in app.routes for method in route.methods]  # type: ignore[attr-defined]
    return [(method, path.replace("{name:path}", "tiny")) for method, path in found]


class TestKey:
    @pytest.fixture
    def config(self) -> ServerConfig:
        return ServerConfig(api_key=KEY)

    async def test_every_route_but_health_needs_it(self, app: Starlette, client: httpx.AsyncClient) -> None:
        assert len(routes(app)) >= 10
        for method, path in [*routes(app), ("GET", "/unknown"), ("POST", "/docs"), ("GET", "/openapi.json")]:
            answer = await client.request(method, path)
            if path == "/health":
                assert answer.status_code == 200
            else:
                assert answer.status_code == 401, (method, path)
                assert "x-request-id" in answer.headers

    @pytest.mark.parametrize(
        "header",
        ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {KEY}", KEY, f"Bearer {KEY}x", f"Bearer x{KEY}"],
    )
    async def test_wrong_keys(self, client: httpx.AsyncClient, header: str) -> None:
        answer = await client.get("/v1/models", headers={b"authorization": header.encode()})  # type: ignore[dict-item]
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "invalid_api_key"

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
    async def test_the_right_key(self, client: httpx.AsyncClient, scheme: str) -> None:
        headers = {b"authorization": f"{scheme} {KEY}".encode()}
        assert (await client.get("/v1/models", headers=headers)).status_code == 200  # type: ignore[arg-type]

    async def test_bytes_that_are_no_text(self, client: httpx.AsyncClient) -> None:
        answer = await client.get("/v1/models", headers={b"authorization": b"Bearer \xff\xfe"})  # type: ignore[dict-item]
        assert answer.status_code == 401


async def test_unknown_paths_and_methods(client: httpx.AsyncClient) -> None:
    for path in ("/", "/v1", "/v1/nothing", "/v1/chat/completions/", "/docs"):
        answer = await client.get(path)
        assert answer.status_code == 404, path
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    answer = await client.get(CHAT)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_every_answer_has_an_id_of_its_own(app: Starlette, client: httpx.AsyncClient) -> None:
    ids = {(await client.request(method, path)).headers["x-request-id"] for method, path in routes(app)}
    assert len(ids) == len(routes(app))


async def test_draining(app: Starlette, client: httpx.AsyncClient) -> None:
    app.state.lifecycle.draining = True
    answer = await client.post(CHAT, json=BODY)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "5"
    assert (await client.get("/ready")).status_code == 503
    assert (await client.get("/health")).status_code == 200


class TestStrayCancellation:
    """Something a request waits for is cancelled, though nobody gave the request up."""

    @pytest.mark.parametrize("n", [1, 3])
    @pytest.mark.parametrize("stream", [False, True])
    async def test_of_the_engine_is_a_503(
        self, client: httpx.AsyncClient, engine: Any, n: int, stream: bool
    ) -> None:
        engine.error = asyncio.CancelledError()
        async with asyncio.timeout(20):
            answer = await client.post(CHAT, json={**BODY, "n": n, "stream": stream})
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == "server_error"
        assert "retry-after" in answer.headers

    @pytest.mark.parametrize("n", [1, 3])
    async def test_in_a_stream_is_an_error_event(
        self, client: httpx.AsyncClient, engine: Any, events: Any, n: int
    ) -> None:
        engine.error, engine.fail_after = asyncio.CancelledError(), 4
        async with asyncio.timeout(20):
            answer = await client.post(CHAT, json={**BODY, "n": n, "stream": True})
        assert events(answer.text)[-1]["error"]["type"] == "server_error"
        assert not engine.active

    async def test_anywhere_else_is_a_503(
        self, client: httpx.AsyncClient, engine: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def stats() -> None:
            raise asyncio.CancelledError

        engine.stats = stats
        answer = await client.get("/metrics")
        assert answer.status_code == 503
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert "cancelled by nobody" in caplog.text

    async def test_a_real_cancellation_passes(self, client: httpx.AsyncClient, engine: Any) -> None:
        engine.hold_after = 2
        task = asyncio.create_task(client.post(CHAT, json=BODY))
        while not engine.active:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not engine.active


async def test_a_panic_of_a_library_is_one_500(
    client: httpx.AsyncClient, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicError(BaseException):
        """As Rust libraries raise it: no Exception."""

    def panic(*args: Any, **options: Any) -> None:
        raise PanicError

    with monkeypatch.context() as patch:
        patch.setattr("braid.server.pipeline.render_turn", panic)
        answer = await client.post(CHAT, json=BODY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert (await client.post(CHAT, json=BODY)).status_code == 200


async def test_merge_ends_where_one_stream_is_cancelled() -> None:
    async def good() -> Any:
        yield 1
        await asyncio.Event().wait()

    async def stray() -> Any:
        yield 2
        raise asyncio.CancelledError

    async def drain() -> list[Any]:
        return [item async for item in merge([good(), stray()])]

    with pytest.raises(EngineDeadError):
        await asyncio.wait_for(drain(), 20)


class TestAccessLog:
    @pytest.fixture
    def lines(self, caplog: pytest.LogCaptureFixture) -> Any:
        caplog.set_level(logging.INFO, "braid.access")
        return lambda: [record.getMessage() for record in caplog.records if record.name == "braid.access"]

    async def test_one_line_without_prompt_text(
        self, client: httpx.AsyncClient, lines: Any, engine: Any
    ) -> None:
        answer = await client.post(CHAT, json=BODY)
        (line,) = lines()
        assert answer.headers["x-request-id"] in line
        assert "status=200" in line
        assert f"prompt_tokens={answer.json()['usage']['prompt_tokens']} cached_tokens=3" in line
        assert f"output_tokens={len(engine.reply.encode())}" in line
        assert "private" not in line

    async def test_errors_do_not_log_input(
        self, client: httpx.AsyncClient, engine: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        engine.error = RuntimeError("boom")
        await client.post(CHAT, json=BODY)
        assert "boom" in caplog.text
        assert "private" not in caplog.text

    async def test_control_characters_are_escaped(self, client: httpx.AsyncClient, lines: Any) -> None:
        await client.get("/x%0Astatus=200%1b[31m")
        (line,) = lines()
        assert "\n" not in line
        assert "\x1b" not in line
        assert "status=404" in line
