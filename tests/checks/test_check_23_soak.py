"""Check 23: mixed traffic, good and bad, taken and left: memory, files, threads and blocks come back to the start."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from .bodies import LIMITS, VALID
from .fuzz import CONFIG, Fuzzer, send
from .served import Served, at_baseline, real

MIB = 1 << 20


class Footprint(NamedTuple):
    """Of this process and of the engine's."""

    rss: int
    engine_rss: int
    files: int
    engine_files: int
    threads: int
    engine_threads: int


async def footprint(served: Served) -> Footprint:
    await at_baseline(served.engine)
    gc.collect()
    own, engine = psutil.Process(os.getpid()), psutil.Process(served.engine.engine_pid)
    return Footprint(
        own.memory_info().rss,
        engine.memory_info().rss,
        own.num_fds(),
        engine.num_fds(),
        own.num_threads(),
        engine.num_threads(),
    )


async def one(served: Served, fuzzer: Fuzzer, number: int) -> None:
    """A good request, a stream, one that is left half-way, or one that nobody foresaw."""
    path = sorted(LIMITS)[number % len(LIMITS)]
    kind = number % 5
    if kind == 4:
        await send(served.client, fuzzer.case(number))
        return
    limit = 200 if kind == 3 else 8
    body = {**VALID[path], LIMITS[path]: limit, "stream": kind != 0, "session_id": f"s{number % 40}"}
    if kind == 3:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.02):
                await served.client.post(path, json=body)
        return
    answer = await served.client.post(path, json=body)
    assert answer.status_code == 200, answer.text


async def traffic(served: Served, numbers: Iterator[int]) -> None:
    fuzzer = Fuzzer(23)

    async def work() -> None:
        for number in numbers:
            await one(served, fuzzer, number)

    await asyncio.gather(*(work() for _ in range(6)))


def check(before: Footprint, after: Footprint, memory: int) -> None:
    assert after.rss - before.rss < memory, f"{(after.rss - before.rss) / MIB:.1f} MiB"
    assert after.engine_rss - before.engine_rss < memory, (
        f"{(after.engine_rss - before.engine_rss) / MIB:.1f} MiB"
    )
    assert after.files <= before.files + 2
    assert after.engine_files <= before.engine_files + 2
    assert after.threads <= before.threads + 4
    assert after.engine_threads <= before.engine_threads + 2


async def test_hundreds_of_requests_leave_nothing(tiny_llama: Path) -> None:
    async with real(tiny_llama, CONFIG) as served:
        await traffic(served, iter(range(120)))
        before = await footprint(served)
        await traffic(served, iter(range(120, 360)))
        check(before, await footprint(served), 40 * MIB)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_five_minutes(tiny_llama: Path) -> None:
    """The second half of the time adds next to nothing."""
    async with real(tiny_llama, CONFIG) as served:
        prints: list[Footprint] = []
        first = 0
        for _ in range(5):
            ends = time.monotonic() + 60
            while time.monotonic() < ends:
                await traffic(served, iter(range(first, first + 500)))
                first += 500
            prints.append(await footprint(served))
            print(first, prints[-1])
        check(prints[2], prints[4], 16 * MIB)
