from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.server.config import ServerConfig
from braid.server.errors import HttpError
from braid.server.guard.gate import _body_bytes
from braid.server.guard.keys import ANONYMOUS, Principal, named_keys
from braid.server.guard.quota import DrainRate, Quotas

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
ANN, BOB = Principal(name="ann"), Principal(name="bob")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def quotas(clock: Clock, *, kv_tokens: int | None = 1000, **settings: Any) -> Quotas:
    keys = named_keys(("one", "two"))
    return Quotas(ServerConfig(api_keys=keys, **settings), lambda: kv_tokens, clock)


def refusal(quota: Quotas, principal: Principal, sequences: int = 1, tokens: int = 1) -> HttpError:
    with pytest.raises(HttpError) as caught:
        quota.enter(principal, sequences, tokens)
    return caught.value


def test_the_server_is_full(clock: Clock) -> None:
    quota = quotas(clock, max_queued=4)
    tickets = [quota.enter(ANONYMOUS, 2, 1) for _ in range(2)]
    assert (refusal(quota, ANONYMOUS).status, refusal(quota, ANN).status) == (503, 503)
    tickets[0].release()
    tickets[0].release()
    assert quota.num_sequences == 2
    quota.enter(ANONYMOUS, 2, 1)
    assert refusal(quota, ANONYMOUS).status == 503


def test_a_key_has_its_share(clock: Clock) -> None:
    quota = quotas(clock, max_queued=16)
    for _ in range(4):
        quota.enter(ANN, 1, 1)
    error = refusal(quota, ANN)
    assert (error.status, error.type) == (429, "rate_limit_error")
    assert {"retry-after", "retry-after-ms"} <= set(error.headers)
    for _ in range(4):
        quota.enter(BOB, 1, 1)


def test_the_only_key_may_have_all(clock: Clock) -> None:
    config = ServerConfig(api_keys=named_keys(("one",)), max_queued=4)
    quota = Quotas(config, lambda: None, clock)
    for _ in range(4):
        quota.enter(ANN, 1, 1)
    assert refusal(quota, ANN).status == 503


def test_prompt_tokens_count_too(clock: Clock) -> None:
    quota = quotas(clock, kv_tokens=100)
    first = quota.enter(ANONYMOUS, 1, 700)
    assert refusal(quota, ANONYMOUS, tokens=101).status == 503
    assert refusal(quota, ANN, tokens=101).status == 503
    quota.enter(ANN, 1, 100)
    first.release()
    assert refusal(quota, ANN, tokens=101).status == 429
    quota.enter(BOB, 1, 101)


def test_without_an_engine_tokens_have_no_bound(clock: Clock) -> None:
    quota = quotas(clock, kv_tokens=None)
    for _ in range(3):
        quota.enter(ANONYMOUS, 1, 10**9)


def test_whoever_has_nothing_under_way_may_take_one_share_however_large(clock: Clock) -> None:
    quota = quotas(clock, max_queued=16, kv_tokens=100)
    with quota.enter(ANN, 16, 10**6):
        assert refusal(quota, BOB).status == 503
    quota.enter(BOB, 1, 1)
    with pytest.raises(HttpError):
        quota.enter(ANN, 16, 1)


def test_a_refusal_takes_nothing(clock: Clock) -> None:
    quota = quotas(clock, kv_tokens=100)
    quota.enter(ANONYMOUS, 1, 800)
    for _ in range(100):
        refusal(quota, ANONYMOUS, sequences=8)
    assert quota.num_sequences == 1


@given(
    st.lists(
        st.tuples(st.sampled_from(["", "ann", "bob"]), st.integers(1, 9), st.integers(1, 900), st.booleans())
    )
)
def test_nothing_is_lost(steps: list[tuple[str, int, int, bool]]) -> None:
    quota = quotas(Clock(), max_queued=24, kv_tokens=200)
    tickets = []
    refused = []
    for name, sequences, tokens, leave in steps:
        if leave and tickets:
            tickets.pop(0).release()
        try:
            tickets.append(quota.enter(Principal(name=name), sequences, tokens))
        except HttpError as error:
            refused.append(error)
        assert quota.num_sequences <= 24
    assert all(error.status in (429, 503) for error in refused)
    assert all(1 <= int(error.headers["retry-after"]) <= 120 for error in refused)
    for ticket in tickets:
        ticket.release()
    assert quota.num_sequences == 0
    quota.enter(ANN, 24, 10**6)


def test_bytes_of_bodies_count_before_they_are_read(clock: Clock) -> None:
    quota = quotas(clock, max_pending_bytes=1000)
    quota.arrive(ANN, 200)
    with pytest.raises(HttpError, match="this key may have 250 bytes of request bodies"):
        quota.arrive(ANN, 51)
    quota.arrive(BOB, 800)
    with pytest.raises(HttpError, match="1000 bytes of request bodies are under way"):
        quota.arrive(Principal(name="eve"), 1)
    assert quota.num_requests == 2


@pytest.mark.parametrize(
    ("headers", "size"),
    [
        ([(b"content-length", b"7")], 7),
        ([(b"content-length", b"999999999999999999999999")], 100),
        ([(b"content-length", b"-1")], 0),
        ([(b"content-length", b"7, 7")], 0),
        ([(b"transfer-encoding", b"chunked")], 100),
        ([], 0),
    ],
)
def test_what_a_body_takes(headers: list[tuple[bytes, bytes]], size: int) -> None:
    assert _body_bytes({"headers": headers}, 100) == size


class TestDrainRate:
    def test_unknown_at_first(self, clock: Clock) -> None:
        assert DrainRate(clock).seconds_for(100) == 2.0

    @pytest.mark.parametrize("per_second", [0.2, 4, 50])
    def test_is_learnt(self, clock: Clock, per_second: float) -> None:
        rate = DrainRate(clock)
        for _ in range(300):
            clock.now += 1 / per_second
            rate.ended(1)
        assert rate.seconds_for(10) == pytest.approx(10 / per_second, rel=0.1)

    def test_follows_a_change(self, clock: Clock) -> None:
        rate = DrainRate(clock)
        for seconds in (0.01, 2.0):
            for _ in range(200):
                clock.now += seconds
                rate.ended(1)
        assert rate.seconds_for(1) == pytest.approx(2, rel=0.1)

    def test_is_forgotten(self, clock: Clock) -> None:
        rate = DrainRate(clock)
        rate.ended(1)
        clock.now += 3600
        assert rate.seconds_for(100) == 2.0

    def test_what_had_no_amount_says_nothing(self, clock: Clock) -> None:
        """Requests without a body, where bytes are counted."""
        rate = DrainRate(clock)
        clock.now += 1
        rate.ended(0)
        assert rate.seconds_for(100) == 2.0


def test_the_wait_is_as_long_as_the_work(clock: Clock) -> None:
    quota = quotas(clock, max_queued=100, kv_tokens=None)
    held = [quota.enter(ANONYMOUS, 1, 1) for _ in range(100)]
    for ticket in held[:60]:
        clock.now += 1
        ticket.release()
    for _ in range(60):
        quota.enter(ANONYMOUS, 1, 1)
    waits = [
        int(refusal(quota, ANONYMOUS, sequences=number).headers["retry-after"]) for number in (1, 10, 100)
    ]
    assert waits[0] <= 2
    assert 9 <= waits[1] <= 12
    assert 90 <= waits[2] <= 120


class TestServer:
    @pytest.fixture
    def config(self) -> ServerConfig:
        return ServerConfig(max_queued=4, api_keys=named_keys(("ann", "bob")))

    async def hold(self, client: httpx.AsyncClient, engine: Any, key: str) -> asyncio.Task[httpx.Response]:
        known = len(engine.active)
        task = asyncio.create_task(client.post(CHAT, json=BODY, headers={"x-api-key": key}))
        while len(engine.active) == known:
            await asyncio.sleep(0)
        return task

    async def test_a_key_then_everybody(self, client: httpx.AsyncClient, engine: Any) -> None:
        engine.hold_after = 0
        held = [await self.hold(client, engine, "ann")]
        refused = await client.post(CHAT, json=BODY, headers={"x-api-key": "ann"})
        assert refused.status_code == 429
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert 1 <= int(refused.headers["retry-after"]) <= 120
        assert int(refused.headers["retry-after-ms"]) >= 1000
        held.append(await self.hold(client, engine, "bob"))
        engine.go.set()
        for task in held:
            assert (await task).status_code == 200

    async def test_nothing_of_a_body_is_read_before(self, client: httpx.AsyncClient, engine: Any) -> None:
        engine.hold_after = 0
        held = await self.hold(client, engine, "ann")
        read = []

        async def body() -> Any:
            read.append(1)
            yield b"{" * 1000

        answer = await client.post(CHAT, content=body(), headers={"x-api-key": "ann"})
        assert answer.status_code == 429
        assert not read
        engine.go.set()
        await held

    async def test_sessions_and_gauges_still_answer(self, client: httpx.AsyncClient, engine: Any) -> None:
        engine.hold_after = 0
        held = await self.hold(client, engine, "ann")
        key = {"x-api-key": "ann"}
        assert (await client.get("/metrics", headers=key)).status_code == 200
        assert (await client.get("/v1/sessions", headers=key)).status_code == 200
        assert (await client.post("/v1/sessions/x/close", headers=key)).status_code == 404
        engine.go.set()
        await held

    async def test_failed_and_left_requests_give_their_share_back(
        self, app: Any, client: httpx.AsyncClient, engine: Any
    ) -> None:
        engine.error = RuntimeError("boom")
        for _ in range(5):
            assert (await client.post(CHAT, json=BODY, headers={"x-api-key": "ann"})).status_code == 500
            assert (await client.post(CHAT, content=b"{", headers={"x-api-key": "ann"})).status_code in (
                400,
                415,
            )
        engine.error, engine.hold_after = None, 0
        for _ in range(5):
            task = await self.hold(client, engine, "ann")
            task.cancel()
            await asyncio.wait([task])
        engine.hold_after = None
        assert (await client.post(CHAT, json=BODY, headers={"x-api-key": "ann"})).status_code == 200
