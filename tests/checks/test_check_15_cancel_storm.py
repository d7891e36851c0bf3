"""Check 15: many requests cancelled at random moments leak nothing, and those that stay get what they always get."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from .asks import ASKS, Answer, ask_all
from .rig import Rig, leave, local, process

CONCURRENT = 12


def draw(source: random.Random) -> tuple[str, dict[str, Any]]:
    """One of the usual requests, sometimes with several outputs or prompts, always streamed or long."""
    wanted = source.choice(ASKS)
    body = json.loads(json.dumps(wanted.body))
    if "prompt" in body:
        if source.random() < 0.3:
            body["prompt"] = [f"{body['prompt']} {number}" for number in range(source.randint(2, 4))]
            body.pop("prompt_logprobs", None)
        body["stream"] = source.random() < 0.5 and "prompt_logprobs" not in body
    if "input" not in body:
        body["n"] = 1 if body.get("prompt_logprobs") else source.randint(1, 3)
        body["max_tokens"] = source.randint(1, 60)
    return wanted.path, body


async def one(rig: Rig, source: random.Random) -> None:
    """Send a request, and go away at some moment: at once, after some of the answer, or never."""
    path, body = draw(source)
    moment = source.choice(("turns", "lines", "end"))
    if moment == "lines" and body.get("stream"):
        await read_some(rig, path, body, source.randint(1, 20))
        return
    task = asyncio.create_task(rig.post(path, body))
    if moment == "end":
        assert (await task).status_code == 200
        return
    for _ in range(source.randint(0, 200)):
        await asyncio.sleep(0)
    await leave(task)


async def read_some(rig: Rig, path: str, body: dict[str, Any], num_lines: int) -> None:
    async with rig.client.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        async for _ in response.aiter_lines():
            num_lines -= 1
            if num_lines <= 0:
                return


async def storm(rig: Rig, seed: int, count: int) -> None:
    source = random.Random(seed)
    seats = asyncio.Semaphore(CONCURRENT)

    async def run(own: random.Random) -> None:
        async with seats:
            await one(rig, own)

    tasks = [run(random.Random(source.random())) for _ in range(count)]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    faults = [outcome for outcome in outcomes if outcome is not None]
    assert not faults, faults[:3]


async def test_a_small_storm(tiny_llama: Path, undisturbed: dict[str, Answer]) -> None:
    async with local(tiny_llama) as rig:
        await storm(rig, 15, 80)
        await rig.settle()
        assert await ask_all(rig) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
async def test_a_large_storm(tiny_llama: Path, undisturbed: dict[str, Answer], seed: int) -> None:
    async with process(tiny_llama) as rig:
        await storm(rig, seed, 1000)
        await rig.settle()
        assert await ask_all(rig) == undisturbed
