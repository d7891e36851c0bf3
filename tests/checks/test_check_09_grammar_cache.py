"""Check 9: many different schemas through a real engine: the process does not grow with their number.

The cache's own account, with a bound of its own, is in ``tests/engine/test_grammar.py``.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import psutil
import pytest

from braid.engine.grammar import CACHE_BYTES

from .served import Served, at_baseline, real

SLACK = 48 << 20


def body(number: int) -> dict[str, object]:
    names = [f"field_{number}_{index}" for index in range(8)]
    properties = {name: {"type": "string", "pattern": f"^[a-z]{{1,{number % 9 + 1}}}$"} for name in names}
    schema = {"type": "object", "properties": properties, "required": names[:4]}
    return {"prompt": "x", "max_tokens": 2, "guided_json": schema, "temperature": 0}


async def ask(served: Served, numbers: range) -> None:
    async def work() -> None:
        for number in left:
            answer = await served.client.post("/v1/completions", json=body(number))
            assert answer.status_code == 200, answer.text
            assert answer.json()["choices"][0]["text"].startswith("{")

    left = iter(numbers)
    await asyncio.gather(*(work() for _ in range(4)))


async def check(model: Path, first: int, count: int) -> None:
    async with real(model) as served:
        process = psutil.Process(served.engine.engine_pid)
        await ask(served, range(first))
        before = process.memory_info().rss
        await ask(served, range(first, first + count))
        grown = process.memory_info().rss - before
        assert grown < CACHE_BYTES + SLACK, f"{grown >> 20} MiB more after {count} schemas"
        await at_baseline(served.engine)
        answer = await served.client.post("/v1/completions", json=body(0))
        assert json.loads(answer.text)["usage"]["completion_tokens"] == 2


async def test_three_hundred_schemas(tiny_llama: Path) -> None:
    await check(tiny_llama, 20, 300)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_ten_thousand_schemas(tiny_llama: Path) -> None:
    """Thirty times as many, and no more memory."""
    await check(tiny_llama, 300, 10_000)
