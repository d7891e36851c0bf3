"""Check 22: ten times what the engine can do. Queues stay bounded, every rejection says when to come back, and as much
work is finished per step as at its best.

Counted in steps of a scripted engine, not in seconds; ``benchmarks/overload.py`` measures a real one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import httpx
import pytest

from braid.core.request import Delta, FinishReason
from braid.engine.protocol import GenerateRequest
from braid.server.config import ServerConfig
from braid.server.guard.keys import named_keys

from ..server.conftest import FakeEngine
from .bodies import LIMITS, VALID
from .served import PATIENCE, Served, byte_tokenizer, scripted

SLOTS = 4
TOKENS = 8
QUEUED = 16
KEYS = ("one", "two", "three", "four", "five", "six")
TEXT = "/v1/completions"


@dataclass
class StepEngine(FakeEngine):
    """Gives the first ``SLOTS`` of its requests one token per step; the others wait."""

    waiting: list[asyncio.Queue[int]] = field(default_factory=list)
    steps: int = 0
    most: int = 0

    async def run(self) -> None:
        while True:
            await asyncio.sleep(0)
            if self.waiting:
                self.steps += 1
                for queue in self.waiting[:SLOTS]:
                    queue.put_nowait(self.steps)

    async def _deltas(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        queue: asyncio.Queue[int] = asyncio.Queue()
        self.waiting.append(queue)
        self.most = max(self.most, len(self.waiting))
        try:
            for _ in range(TOKENS - 1):
                await queue.get()
                yield Delta(request.request_id, (120,), None, 0, None)
            await queue.get()
        finally:
            self.waiting.remove(queue)
        yield Delta(request.request_id, (120,), None, 0, FinishReason.LENGTH)


class Tally:
    """What clients were told."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.waits: list[int] = []

    def note(self, answer: httpx.Response) -> None:
        self.statuses[answer.status_code] += 1
        if answer.status_code != 200:
            assert answer.status_code in (429, 503), answer.text
            self.waits.append(int(answer.headers["retry-after"]))
            assert 0 < int(answer.headers["retry-after-ms"]) <= 120_000
            error = answer.json()["error"]
            wanted = {429: ("rate_limit_error",), 503: ("server_error", "overloaded_error")}
            assert error["type"] in wanted[answer.status_code]


async def load(served: Served, clients: int, rounds: int) -> tuple[Tally, float]:
    """Closed-loop clients that come back at once when they are turned away; tokens finished per step."""
    tally, first = Tally(), served.engine.steps

    async def client(number: int) -> None:
        headers = {"x-api-key": KEYS[max(0, number % 12 - 6)]}  # the first key asks more than its share
        for _ in range(rounds):
            body = {"prompt": f"{number}", "max_tokens": TOKENS}
            tally.note(await served.client.post(TEXT, json=body, headers=headers))

    await asyncio.gather(*map(client, range(clients)))
    return tally, tally.statuses[200] * TOKENS / (served.engine.steps - first)


async def overload(rounds: int, factors: tuple[int, ...]) -> dict[int, tuple[Tally, float]]:
    tokenizer = byte_tokenizer()
    engine = StepEngine(decode=lambda ids: tokenizer.decode(ids, skip_special_tokens=False))
    config = ServerConfig(api_keys=named_keys(KEYS), max_queued=QUEUED, key_share=0.25)
    async with scripted(config, engine=engine) as served:
        running = asyncio.create_task(engine.run())
        results = {factor: await load(served, factor * SLOTS, rounds) for factor in factors}
        running.cancel()
        assert not engine.waiting
        assert engine.most <= QUEUED
    return results


def check(results: dict[int, tuple[Tally, float]]) -> None:
    peak = max(goodput for _, goodput in results.values())
    tally, goodput = results[10]
    assert goodput >= 0.9 * peak, {factor: goodput for factor, (_, goodput) in results.items()}
    assert tally.statuses[429] > 0
    assert tally.statuses[503] > 0
    for tally, _ in results.values():
        assert all(1 <= seconds <= 120 for seconds in tally.waits)


async def test_goodput_at_ten_times_the_capacity() -> None:
    results = await overload(12, (1, 2, 10))
    check(results)
    assert not results[1][0].waits


@pytest.mark.slow
async def test_goodput_at_every_load() -> None:
    check(await overload(50, (1, 2, 5, 10, 20)))


async def test_one_key_gets_429_and_all_together_503_on_every_route() -> None:
    async with scripted(
        ServerConfig(api_keys=named_keys(KEYS), max_queued=8, key_share=0.25), hold_after=0
    ) as served:
        held = []

        async def hold(key: str) -> None:
            headers = {"x-api-key": key}
            answer = await served.client.post(TEXT, json=VALID[TEXT], headers=headers)
            assert answer.status_code == 200

        async def fill(key: str, count: int) -> None:
            wanted = len(served.engine.active) + count
            held.extend(asyncio.create_task(hold(key)) for _ in range(count))
            async with asyncio.timeout(PATIENCE):
                while len(served.engine.active) < wanted:
                    await asyncio.sleep(0.005)

        for filled, (keys, status) in enumerate(((KEYS[:1], 429), (KEYS[1:4], 503))):
            for key in keys:
                await fill(key, 2)
            asking = KEYS[0] if filled == 0 else KEYS[5]
            for path in LIMITS:
                tally = Tally()
                answer = await served.client.post(path, json=VALID[path], headers={"x-api-key": asking})
                assert answer.status_code == status, (path, answer.text)
                tally.note(answer)
                assert 1 <= tally.waits[0] <= 120
        assert (await served.client.get("/v1/models", headers={"x-api-key": KEYS[5]})).status_code == 200
        served.engine.go.set()
        await asyncio.gather(*held)
        assert len(served.engine.seen) == 8
        assert (
            await served.client.post(TEXT, json=VALID[TEXT], headers={"x-api-key": KEYS[5]})
        ).status_code == 200


async def test_a_flood_of_bodies_is_turned_away_before_it_is_read() -> None:
    """What is refused at the door costs neither parsing nor a place in the engine."""
    async with scripted(ServerConfig(max_queued=4), hold_after=0) as served:
        held = [asyncio.create_task(served.client.post(TEXT, json=VALID[TEXT])) for _ in range(4)]
        async with asyncio.timeout(PATIENCE):
            while len(served.engine.active) < 4:
                await asyncio.sleep(0.005)
        tally = Tally()
        for _ in range(100):
            tally.note(
                await served.client.post(TEXT, content=b"not read", headers={"content-type": "text/plain"})
            )
        assert tally.statuses == {503: 100}
        served.engine.go.set()
        await asyncio.gather(*held)
