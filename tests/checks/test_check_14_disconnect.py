"""Check 14: a client that goes away costs at most two more steps, and leaves its finished prefix to the next."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from braid.core.faults import Faults
from braid.text.reply import Content, PlainReader, ReplyPart
from braid.text.reply_format import PlainFormat
from braid.text.tools import Tool

from .rig import ENGINE, Gate, Rig, eventually, held_steps, leave, local

TALK = [{"role": "user", "content": "abcdefgh" * 5}]
"""One chunk."""
LONG_TALK = [{"role": "user", "content": "abcdefgh" * 20}]
"""Three chunks of 64 tokens."""
DIALECTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": TALK, "max_tokens": 100, "ignore_eos": True},
    "/v1/completions": {"prompt": "abcdefgh" * 5, "max_tokens": 100, "ignore_eos": True},
    "/v1/responses": {"model": "tiny", "input": "abcdefgh" * 5, "max_output_tokens": 100, "store": False},
    "/v1/messages": {"model": "tiny", "messages": TALK, "max_tokens": 100},
}
MOST_STEPS = 2


class SilentReader(PlainReader):
    """Shows nothing of a reply before its end, as a tool call that is still being read."""

    def __init__(self) -> None:
        super().__init__()
        self._text = ""

    def feed(self, text: str) -> list[ReplyPart]:
        self._text += text
        return []

    def finish(self) -> list[ReplyPart]:
        return [Content(self._text)]


class SilentFormat(PlainFormat):
    def reader(self, *, prompt: str, tools: Sequence[Tool]) -> SilentReader:
        return SilentReader()


async def leave_and_count(rig: Rig, gate: Gate, task: asyncio.Task[Any]) -> None:
    """With a step in flight the client goes away: the blocks come back within the bound."""
    before = (await rig.stats()).num_steps
    await leave(task)

    async def is_gone() -> bool:
        stats = await rig.stats()
        return stats.num_running + stats.num_waiting == 0

    await eventually(is_gone)
    gate.step()
    await eventually(rig.is_free)
    assert (await rig.stats()).num_steps - before <= MOST_STEPS


async def cached_tokens(rig: Rig, gate: Gate, path: str, body: dict[str, Any]) -> int:
    """How much of the prompt the next request finds."""
    gate.open()
    hits = (await rig.stats()).prefix_hits
    response = await rig.post(path, {**body, "stream": False})
    assert response.status_code == 200
    return (await rig.stats()).prefix_hits - hits


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("path", DIALECTS)
async def test_in_decode(tiny_llama: Path, gate: Gate, path: str, streaming: bool) -> None:
    body = DIALECTS[path]
    async with local(tiny_llama, faults=Faults([held_steps()], sleep=gate), gate=gate) as rig:
        task = asyncio.create_task(rig.post(path, {**body, "stream": streaming}))
        gate.step(3)
        await gate.reached(4)
        await leave_and_count(rig, gate, task)
        assert await cached_tokens(rig, gate, path, body) >= 32


@pytest.mark.parametrize("streaming", [True, False])
async def test_in_prefill(tiny_llama: Path, gate: Gate, streaming: bool) -> None:
    body = {"messages": LONG_TALK, "max_tokens": 20}
    async with local(tiny_llama, faults=Faults([held_steps()], sleep=gate), gate=gate) as rig:
        task = asyncio.create_task(rig.post("/v1/chat/completions", {**body, "stream": streaming}))
        gate.step()
        await gate.reached(2)
        await leave_and_count(rig, gate, task)
        found = await cached_tokens(rig, gate, "/v1/chat/completions", body)
        assert found >= ENGINE["max_num_batched_tokens"]


async def test_while_the_reply_is_parsed(tiny_llama: Path, gate: Gate) -> None:
    body = DIALECTS["/v1/chat/completions"]
    faults = Faults([held_steps()], sleep=gate)
    async with local(tiny_llama, faults=faults, gate=gate, reply_format=SilentFormat()) as rig:
        task = asyncio.create_task(rig.post("/v1/chat/completions", {**body, "stream": True}))
        gate.step(10)
        await gate.reached(11)
        await leave_and_count(rig, gate, task)
        assert await cached_tokens(rig, gate, "/v1/chat/completions", body) >= 32


async def test_with_several_outputs(tiny_llama: Path, gate: Gate) -> None:
    body = {"prompt": ["abcd" * 8, "efgh" * 8], "n": 2, "max_tokens": 50, "ignore_eos": True}
    async with local(tiny_llama, faults=Faults([held_steps()], sleep=gate), gate=gate) as rig:
        task = asyncio.create_task(rig.post("/v1/completions", body))
        gate.step(5)
        await gate.reached(6)
        await leave_and_count(rig, gate, task)


@pytest.mark.parametrize("streaming", [True, False])
async def test_in_the_queue(tiny_llama: Path, gate: Gate, streaming: bool) -> None:
    body = DIALECTS["/v1/completions"]
    faults = Faults([held_steps()], sleep=gate)
    async with local(tiny_llama, faults=faults, gate=gate, max_num_seqs=1) as rig:
        first = asyncio.create_task(rig.post("/v1/completions", {**body, "prompt": "first"}))
        await gate.reached(1)
        second = asyncio.create_task(rig.post("/v1/completions", {**body, "stream": streaming}))
        await eventually(lambda: is_waiting(rig, 1))
        before = await rig.stats()
        await leave(second)
        await eventually(lambda: is_waiting(rig, 0))
        assert (await rig.stats()).num_steps == before.num_steps
        gate.open()
        assert (await first).status_code == 200


async def is_waiting(rig: Rig, count: int) -> bool:
    return (await rig.stats()).num_waiting == count


@pytest.mark.slow
async def test_at_every_step(tiny_llama: Path, gate: Gate) -> None:
    """One request after the other, left one step later each."""
    body = {"messages": LONG_TALK, "max_tokens": 40, "ignore_eos": True, "stream": True}
    async with local(tiny_llama, faults=Faults([held_steps()], sleep=gate), gate=gate) as rig:
        for step in range(1, 40):
            gate.close()
            body["cache_salt"] = str(step)
            task = asyncio.create_task(rig.post("/v1/chat/completions", body))
            gate.step(step - 1)
            await gate.reached(step)
            await leave_and_count(rig, gate, task)
