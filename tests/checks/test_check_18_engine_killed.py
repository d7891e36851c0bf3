"""Check 18: an engine that is killed, or hangs, is replaced; everybody who waited is told, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from braid.core.faults import Fault, FaultKind

from .asks import Answer, ask_all
from .rig import ALWAYS, Rig, eventually, process

BODY = {"prompt": "abc", "max_tokens": 240, "temperature": 0, "ignore_eos": True}
DIALECTS: dict[str, dict[str, Any]] = {
    "/v1/completions": BODY,
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 200,
        "ignore_eos": True,
    },
    "/v1/messages": {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 200,
        "ignore_eos": True,
    },
    "/v1/responses": {
        "model": "tiny",
        "input": "hi",
        "max_output_tokens": 200,
        "store": False,
        "ignore_eos": True,
    },
}
SLOW = Fault(point="forward", kind=FaultKind.DELAY, count=ALWAYS, seconds=0.05)
"""So that no stream ends before it is looked at; how long exactly does not matter."""
HANGING = Fault(point="forward", first=20, kind=FaultKind.DELAY, seconds=10_000)
DYING = Fault(point="forward", first=20, kind=FaultKind.KILL)


def all_dialects(rig: Rig) -> list[asyncio.Task[httpx.Response]]:
    return [
        asyncio.create_task(rig.post(path, {**body, "stream": streaming}))
        for path, body in DIALECTS.items()
        for streaming in (True, False)
    ]


async def in_flight(rig: Rig) -> list[asyncio.Task[httpx.Response]]:
    """A stream and a whole answer in each dialect, all under way."""
    tasks = all_dialects(rig)

    async def all_run() -> bool:
        return (await rig.stats()).num_running + sum(task.done() for task in tasks) == len(tasks)

    await eventually(all_run)
    return tasks


def check_ends(answers: list[httpx.Response]) -> None:
    """Streams end with an error event and nothing after it; what had not begun gets 503 and when to try again."""
    streams = 0
    for answer in answers:
        if _may_have_finished(answer):
            continue
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
            continue
        streams += 1
        assert answer.status_code == 200
        events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        assert "error" in events[-1] or events[-1].get("type") == "response.failed", events[-1]
        assert "[DONE]" not in answer.text
    assert 1 <= streams <= len(DIALECTS)


def _may_have_finished(answer: httpx.Response) -> bool:
    """This dialect cannot forbid the end token, so an answer may have been complete before."""
    return answer.url.path == "/v1/responses" and answer.status_code == 200 and '"completed"' in answer.text


async def serves_again(rig: Rig, pid: int | None, undisturbed: dict[str, Answer]) -> None:
    await eventually(lambda: rig.engine.is_ready)
    assert rig.engine.engine_pid != pid
    assert (await rig.client.get("/ready")).status_code == 200
    assert await ask_all(rig) == undisturbed
    rig.restarts += 1
    await rig.settle()


async def test_killed_from_outside(tiny_llama: Path, undisturbed: dict[str, Answer]) -> None:
    async with process(tiny_llama, plans=[(SLOW,)]) as rig:
        rig.allowed.add(503)
        tasks = await in_flight(rig)
        pid = rig.engine.engine_pid
        os.kill(pid, signal.SIGKILL)
        answers = await asyncio.gather(*tasks)
        for path in ("/health", "/ready"):  # a new engine takes longer than this
            assert (await rig.client.get(path)).status_code == 503
        check_ends(answers)
        refused = await rig.post("/v1/completions", BODY)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert (await rig.client.get("/metrics")).status_code == 200
        await serves_again(rig, pid, undisturbed)


async def test_killed_in_a_step_and_hung_in_the_next_life(
    tiny_llama: Path, undisturbed: dict[str, Answer]
) -> None:
    """A process that lives and answers, but whose step never ends, is as good as dead."""
    async with process(tiny_llama, plans=[(DYING,), (HANGING,)], hang_timeout=4.0) as rig:
        rig.allowed.add(503)
        for _ in range(2):
            await eventually(lambda: rig.engine.is_ready)
            pid = rig.engine.engine_pid
            answers = await asyncio.gather(*all_dialects(rig))
            check_ends(answers)
            await eventually(lambda pid=pid: rig.engine.engine_pid not in (None, pid))
            rig.restarts += 1
        rig.restarts -= 1
        await serves_again(rig, None, undisturbed)


@pytest.mark.slow
async def test_a_stopped_process_is_replaced(tiny_llama: Path, undisturbed: dict[str, Answer]) -> None:
    async with process(tiny_llama, hang_timeout=4.0) as rig:
        rig.allowed.add(503)
        pid = rig.engine.engine_pid
        os.kill(pid, signal.SIGSTOP)
        answer = await rig.post("/v1/completions", BODY)
        assert answer.status_code == 503
        await serves_again(rig, pid, undisturbed)


@pytest.mark.slow
async def test_long_steps_are_no_hang(tiny_llama: Path) -> None:
    """Many steps that each take a good part of the limit, together far more than it."""
    slow = Fault(point="forward", kind=FaultKind.DELAY, count=ALWAYS, seconds=1.0)
    async with process(tiny_llama, plans=[(slow,)], hang_timeout=10.0) as rig:
        answer = await rig.post("/v1/completions", {**BODY, "max_tokens": 25})
        assert answer.status_code == 200


@pytest.mark.slow
async def test_killed_again_and_again(tiny_llama: Path, undisturbed: dict[str, Answer]) -> None:
    """Every waiting client hears of each death within a second."""
    async with process(tiny_llama, plans=[(SLOW,)] * 6) as rig:
        rig.allowed.add(503)
        for _ in range(5):
            await eventually(lambda: rig.engine.is_ready)
            tasks = await in_flight(rig)
            os.kill(rig.engine.engine_pid, signal.SIGKILL)
            begin = time.monotonic()
            check_ends(await asyncio.gather(*tasks))
            assert (await rig.client.get("/health")).status_code == 503
            assert time.monotonic() - begin < 1.0
            rig.restarts += 1
        rig.restarts -= 1
        await eventually(lambda: rig.engine.is_ready)
        rig.restarts += 1
        assert (await rig.post("/v1/completions", {**BODY, "max_tokens": 4})).status_code == 200
