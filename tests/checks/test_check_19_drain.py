"""Check 19: SIGTERM turns new requests away, lets the others finish, then ends; a second one ends at once."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import httpx
import psutil
import pytest

from braid.core.faults import Fault, FaultKind

from .rig import ALWAYS, ENGINE, eventually, sample
from .served_process import Started, started

BODY = {"prompt": "abc", "max_tokens": 60, "temperature": 0, "ignore_eos": True}
SLOW = Fault(point="forward", kind=FaultKind.DELAY, count=ALWAYS, seconds=0.05)
HANGING = Fault(point="forward", first=5, kind=FaultKind.DELAY, seconds=10_000)


async def number_at_engine(client: httpx.AsyncClient) -> float:
    """Running and waiting; -1 where a busy machine lets the engine answer too late to be in the metrics."""
    text = (await client.get("/metrics")).text
    names = ("braid_requests_running", "braid_requests_waiting")
    return sum(sample(text, name) for name in names) if f"\n{names[0]}" in text else -1


async def in_flight(client: httpx.AsyncClient) -> list[asyncio.Task[httpx.Response]]:
    """A stream and a whole answer, both at the engine."""
    tasks = [
        asyncio.create_task(client.post("/v1/completions", json={**BODY, "stream": stream}))
        for stream in (True, False)
    ]

    async def both_are() -> bool:
        return await number_at_engine(client) == len(tasks)

    await eventually(both_are)
    return tasks


async def signalled(server: Started, client: httpx.AsyncClient) -> None:
    """SIGTERM, and the server has heard of it."""
    server.process.send_signal(signal.SIGTERM)

    async def drains() -> bool:
        return (await client.get("/ready")).status_code == 503

    await eventually(drains)


async def test_what_is_under_way_is_finished(tiny_llama: Path) -> None:
    with started(tiny_llama, [(SLOW,)], engine=ENGINE) as server:
        children = psutil.Process(server.process.pid).children(recursive=True)
        async with server.client() as client:
            tasks = await in_flight(client)
            await signalled(server, client)
            refused = await client.post("/v1/completions", json=BODY)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            assert (await client.get("/health")).status_code == 200
            streamed, whole = await asyncio.gather(*tasks)
            assert streamed.text.endswith("data: [DONE]\n\n")
            assert whole.status_code == 200
            assert whole.json()["usage"]["completion_tokens"] == BODY["max_tokens"]
        assert await asyncio.to_thread(server.process.wait, 60) == 0
        assert children
        await eventually(lambda: not any(child.is_running() for child in children))


@pytest.mark.parametrize("signals", [2, pytest.param(1, marks=pytest.mark.slow)])
async def test_a_second_signal_or_the_end_of_the_time(tiny_llama: Path, signals: int) -> None:
    """The engine hangs, so nothing but these can end the server."""
    drain_timeout = 1000.0 if signals == 2 else 0.5
    with started(tiny_llama, [(HANGING,)], engine=ENGINE, drain_timeout=drain_timeout) as server:
        async with server.client() as client:
            tasks = await in_flight(client)
            server.process.send_signal(signal.SIGTERM)
            if signals == 2:
                await signalled(server, client)
                server.process.send_signal(signal.SIGTERM)
            answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert await asyncio.to_thread(server.process.wait, 60) == 0
        for answer in answers:
            broken = isinstance(answer, httpx.TransportError)
            assert broken or (isinstance(answer, httpx.Response) and "[DONE]" not in answer.text), answer
