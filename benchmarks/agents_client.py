"""Plays programs against a server: streams every turn, runs the tool that its answer calls, and comes back."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import httpx
from agents_programs import Program, Words
from agents_tools import SYSTEM, Spoken, command_in, cut, run_tool, spoken, write_notes

_COUNTER = re.compile(r"^(braid_[a-z_]+)(?:\{([^}]*)\})? ([0-9.e+-]+)$", re.MULTILINE)
_LABEL = re.compile(r'([a-z_]+)="([^"]*)"')
FREE_COMMAND = "sort notes.txt"
"""What is run where the model may say anything."""


class Turn(NamedTuple):
    """What one turn was. Times in seconds from the run's start; ``tool_s`` is the tool call after it."""

    program: int
    turn: int
    sent_s: float
    first_s: float
    end_s: float
    prompt: int
    cached: int
    out: int
    tool_s: float = 0.0

    @property
    def ttft(self) -> float:
        return self.first_s - self.sent_s


class Played(NamedTuple):
    """A run: its turns in the order of their ends, what the server counted meanwhile, and its KV store."""

    turns: list[Turn]
    counters: dict[str, float]
    num_blocks: int
    block_size: int


class Asking(NamedTuple):
    """How programs ask.

    Args:
        model: as the server calls it.
        session: send a header that names the program; without it the server finds out itself.
        free: the model says what it likes, as many tokens as wanted; otherwise it is held to a reply that calls a
            tool, so that its history is the same under every policy.
    """

    model: str
    session: bool = True
    free: bool = False


async def play(url: str, programs: Sequence[Program], asking: Asking) -> Played:
    """All programs at their times.

    Raises:
        RuntimeError: a request failed.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=3600, limits=limits) as client:
        await _warm_up(client, asking)
        before = await scrape(client)
        begun = time.perf_counter()
        with TemporaryDirectory() as folder:
            agents = [
                _Agent(client, number, program, asking, begun, Path(folder))
                for number, program in enumerate(programs)
            ]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(agent.run()) for agent in agents]
        after = await scrape(client)
    turns = sorted((turn for task in tasks for turn in task.result()), key=lambda turn: turn.end_s)
    counters = {name: value - before.get(name, 0.0) for name, value in after.items() if "_total" in name}
    num_blocks, block_size = _store(after)
    return Played(turns, counters, num_blocks, block_size)


class _Agent:
    """One program, as a harness runs it."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        number: int,
        program: Program,
        asking: Asking,
        begun: float,
        folder: Path,
    ) -> None:
        self._client, self._number, self._program = client, number, program
        self._asking, self._begun = asking, begun
        self._folder = folder / str(number)
        self._messages = [{"role": "system", "content": SYSTEM}]
        self._padding = Words(program.name, "padding")

    async def run(self) -> list[Turn]:
        self._folder.mkdir()
        write_notes(self._folder, self._program)
        await asyncio.sleep(max(0.0, self._begun + self._program.start_s - time.perf_counter()))
        steps = self._program.steps
        self._say("user", Words(self._program.name, "task").take(steps[0].new))
        turns = []
        for number in range(len(steps)):
            turn, reply = await self._ask(number)
            if number + 1 < len(steps):
                result = await self._call(reply, steps[number + 1].gap_s)
                turn = turn._replace(tool_s=self._now() - turn.end_s)
                self._say("assistant", reply)
                self._say("user", cut(result, steps[number + 1].new, self._padding))
            turns.append(turn)
        return turns

    def _say(self, role: str, content: str) -> None:
        self._messages.append({"role": role, "content": content})

    def _now(self) -> float:
        return time.perf_counter() - self._begun

    async def _call(self, reply: str, gap_s: float) -> str:
        command = FREE_COMMAND if self._asking.free else command_in(reply)
        if command is None:
            raise RuntimeError(f"{self._program.name} called no tool, but said {reply!r}")
        return await run_tool(self._folder, command, gap_s)

    async def _ask(self, number: int) -> tuple[Turn, str]:
        wanted = None if self._asking.free else spoken(self._program, number)
        body = _body(self._asking, self._messages, self._program.steps[number].out, wanted)
        headers = {"x-session-id": self._program.name} if self._asking.session else {}
        sent, first = self._now(), None
        parts: list[str] = []
        usage: dict[str, Any] = {}
        async with self._client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            if answer.status_code != 200:
                raise RuntimeError(f"{answer.status_code}: {(await answer.aread())[:500]!r}")
            async for line in answer.aiter_lines():
                event = _event(line)
                usage = event.get("usage") or usage
                if text := _content(event):
                    first = first or self._now()
                    parts.append(text)
        end, reply = self._now(), "".join(parts)
        if first is None or not usage or (wanted is not None and reply != wanted.text):
            raise RuntimeError(f"{self._program.name}, turn {number}: an answer without its end: {reply!r}")
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        prompt, out = usage["prompt_tokens"], usage["completion_tokens"]
        return Turn(self._number, number, sent, first, end, prompt, cached, out), reply


def _body(asking: Asking, messages: list[dict[str, str]], out: int, wanted: Spoken | None) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": asking.model,
        "messages": messages,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if wanted is None:
        return body | {"max_tokens": out, "min_tokens": out}
    # Room for a tokenizer that needs more tokens for the same text.
    return body | {"max_tokens": 4 * out + 64, "structured_outputs": {"choice": [wanted.text]}}


def _event(line: str) -> dict[str, Any]:
    if not line.startswith("data: {"):
        return {}
    event: dict[str, Any] = json.loads(line[6:])
    if "error" in event:
        raise RuntimeError(f"the stream broke: {event['error']}")
    return event


def _content(event: dict[str, Any]) -> str:
    choices = event.get("choices")
    return choices[0]["delta"].get("content") or "" if choices else ""


async def _warm_up(client: httpx.AsyncClient, asking: Asking) -> None:
    """One request like the others, so that nobody pays for what is done once."""
    words = Words("warm up").take(200)
    wanted = None if asking.free else Spoken("Done.", None)
    body = _body(asking, [{"role": "user", "content": words}], 8, wanted)
    answer = await client.post("/v1/chat/completions", json=body | {"stream": False, "stream_options": None})
    if answer.status_code != 200:
        raise RuntimeError(f"{answer.status_code}: {answer.text[:500]}")


async def scrape(client: httpx.AsyncClient) -> dict[str, float]:
    """The server's own counters: ``name`` or ``name{label=value}``, without the labels that all of them have."""
    return counters_of((await client.get("/metrics")).text)


def counters_of(exposition: str) -> dict[str, float]:
    found = {}
    for name, labels, value in _COUNTER.findall(exposition):
        own = [f"{key}={text}" for key, text in _LABEL.findall(labels) if key not in ("model_name", "engine")]
        found[name + (f"{{{','.join(own)}}}" if own else "")] = float(value)
    return found


def _store(counters: dict[str, float]) -> tuple[int, int]:
    """Blocks, and tokens in each."""
    info = next(name for name in counters if name.startswith("braid_cache_config_info"))
    sizes = dict(part.split("=") for part in info.partition("{")[2].rstrip("}").split(","))
    return int(sizes["num_gpu_blocks"]), int(sizes["block_size"])
