"""How turns have ended: read from their parts, and told to the engine by every dialect."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from braid.policy.agents.program import Finish
from braid.server.programs.endings import MAX_TEXT, ChoiceEnding, Ending, combined
from braid.text.reply import CallArguments, CallStart, Content, Reasoning, ReplyPart

RUN = "I run it.\n```bash\ncd x && pytest\n```\n"
TOOLS = [{"type": "function", "function": {"name": "Bash", "parameters": {"type": "object"}}}]
CALL = '<call>Bash\n{"command": "cd x && make -j"}</call>'
CALLS = f'<call>read_file\n{{"path": "x"}}</call>{CALL}'


def ending(
    *parts: ReplyPart, reason: str = "stop", stop: int | str | None = None, fences: bool = True
) -> ChoiceEnding:
    choice = ChoiceEnding(fences=fences)
    choice.add(parts)
    choice.end(reason, stop)
    return choice


def call(number: int, name: str, *arguments: str) -> list[ReplyPart]:
    return [CallStart(number, "id", name), *(CallArguments(number, piece) for piece in arguments)]


class TestReading:
    def test_text(self) -> None:
        assert ending(Content("Done.")).read() == Ending(Finish.TEXT)
        assert ending().read() == Ending(Finish.TEXT)

    def test_a_stop_string(self) -> None:
        assert ending(Content("Action: look"), stop="Observation:").read() == Ending(Finish.STOP)
        assert ending(Content(RUN), stop="Observation:").read() == Ending(Finish.STOP)

    def test_a_stop_token_is_an_ordinary_end(self) -> None:
        assert ending(Content("Done."), stop=7).read() == Ending(Finish.TEXT)

    def test_calls(self) -> None:
        parts = [*call(0, "Bash", '{"command": "cd ', 'x && make"}'), *call(1, "read", "{}")]
        assert ending(*parts, reason="tool_calls").read() == Ending(Finish.TOOL, "make+read")

    def test_a_fence_is_a_call_only_where_no_tools_were_given(self) -> None:
        assert ending(Content(RUN[:20]), Content(RUN[20:])).read() == Ending(Finish.TOOL, "pytest")
        assert ending(Content(RUN), fences=False).read() == Ending(Finish.TEXT)
        assert ending(Reasoning(RUN)).read() == Ending(Finish.TEXT)

    @pytest.mark.parametrize("reason", ["length", "abort", "error"])
    def test_what_the_engine_knows_itself(self, reason: str) -> None:
        assert ending(Content(RUN), reason=reason).read() is None

    def test_not_over(self) -> None:
        assert ChoiceEnding(fences=True).read() is None

    def test_long_ones_are_bounded(self) -> None:
        choice = ChoiceEnding(fences=True)
        choice.add([Content(RUN)])
        choice.add(Content("x" * 1000) for _ in range(MAX_TEXT // 1000 + 100))
        for number in range(1000):
            choice.add(call(number, f"tool{number}", *(["y" * 1000] * 100)))
        choice.end("tool_calls", None)
        read = choice.read()
        assert read is not None
        assert len(read.tool or "") < 100
        long = ending(Content(RUN), Content("x" * MAX_TEXT))
        assert long.read() == Ending(Finish.TEXT)


def test_several_outputs_are_one_turn() -> None:
    tool, text, stop = ending(Content(RUN)), ending(Content("x")), ending(stop="S")
    cut = ending(reason="length")
    assert combined([text, tool, ending(*call(0, "f"), reason="tool_calls")]) == (Finish.TOOL, "f+pytest")
    assert combined([text, stop]) == (Finish.STOP, None)
    assert combined([cut, text]) == (Finish.TEXT, None)
    assert combined([cut]) is None


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


async def ask(client: httpx.AsyncClient, path: str, body: dict[str, Any], *, stream: bool) -> None:
    answer = await client.post(path, json={**body, "stream": stream, "session_id": "s"})
    assert answer.status_code == 200, answer.text


DIALECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": user("hi")}),
    "responses": ("/v1/responses", {"input": "hi"}),
    "messages": ("/v1/messages", {"messages": user("hi"), "max_tokens": 500}),
    "completions": ("/v1/completions", {"prompt": "hi", "max_tokens": 500}),
}
GIVEN: dict[str, dict[str, Any]] = {
    "chat": {"tools": TOOLS},
    "responses": {"tools": [{"type": "function", **TOOLS[0]["function"]}]},
    "messages": {"tools": [{"name": "Bash", "input_schema": {"type": "object"}}]},
}


@pytest.mark.parametrize("stream", [False, True])
class TestTold:
    @pytest.fixture
    def reply_format(self, tiny_format: Any) -> Any:
        return tiny_format

    @pytest.mark.parametrize("name", list(DIALECTS))
    async def test_text_and_fences(
        self, client: httpx.AsyncClient, engine: Any, name: str, stream: bool
    ) -> None:
        path, body = DIALECTS[name]
        for engine.reply in ("Done.", RUN):
            await ask(client, path, body, stream=stream)
        told = [(program.program, finish, tool) for program, finish, tool in engine.endings]
        assert told == [("s", Finish.TEXT, None), ("s", Finish.TOOL, "pytest")]

    @pytest.mark.parametrize("name", list(GIVEN))
    async def test_calls(self, client: httpx.AsyncClient, engine: Any, name: str, stream: bool) -> None:
        path, body = DIALECTS[name]
        for engine.reply in (CALL, CALLS, RUN):
            await ask(client, path, {**body, **GIVEN[name]}, stream=stream)
        told = [ending[1:] for ending in engine.endings]
        assert told == [(Finish.TOOL, "make"), (Finish.TOOL, "make+read_file"), (Finish.TEXT, None)]

    @pytest.mark.parametrize("name", ["chat", "completions"])
    async def test_a_stop_string_is_told_after_the_abort(
        self, client: httpx.AsyncClient, engine: Any, name: str, stream: bool
    ) -> None:
        path, body = DIALECTS[name]
        engine.reply = "Action: look\nObservation: none"
        await ask(client, path, {**body, "stop": "\nObservation:"}, stream=stream)
        assert [ending[1:] for ending in engine.endings] == [(Finish.STOP, None)]
        assert len(engine.aborted) == 1

    async def test_the_only_call_that_is_allowed(
        self, client: httpx.AsyncClient, engine: Any, stream: bool
    ) -> None:
        path, body = DIALECTS["chat"]
        engine.reply = CALLS
        more = {**body, "tools": TOOLS, "parallel_tool_calls": False}
        await ask(client, path, more, stream=stream)
        assert [ending[1:] for ending in engine.endings] == [(Finish.TOOL, "read_file")]

    async def test_what_the_engine_knows_is_not_told(
        self, client: httpx.AsyncClient, engine: Any, stream: bool
    ) -> None:
        path, body = DIALECTS["chat"]
        await ask(client, path, {**body, "max_tokens": 3}, stream=stream)
        await ask(client, path, {**body, "session_final": True}, stream=stream)
        several = {"prompt": ["one", "two"], "max_tokens": 500}
        await ask(client, "/v1/completions", several, stream=stream)
        assert not engine.endings

    async def test_an_agent_without_an_id_is_told_of_too(
        self, client: httpx.AsyncClient, engine: Any, stream: bool
    ) -> None:
        body = {**DIALECTS["chat"][1], "stream": stream, "n": 2}
        assert (await client.post(DIALECTS["chat"][0], json=body)).status_code == 200
        ((program, finish, tool),) = engine.endings
        assert (program, finish, tool) == (engine.seen[-1].program, Finish.TEXT, None)


async def test_who_goes_away_is_told_of_by_nobody(client: httpx.AsyncClient, engine: Any) -> None:
    engine.hold_after = 2
    task = asyncio.create_task(client.post(DIALECTS["chat"][0], json=DIALECTS["chat"][1]))
    while not engine.active:
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert not engine.endings
    assert len(engine.aborted) == 1


async def test_the_older_spelling_of_calls(client: httpx.AsyncClient, engine: Any) -> None:
    body = {"messages": user("hi"), "functions": [TOOLS[0]["function"]], "session_id": "s"}
    answer = await client.post(
        "/v1/chat/completions", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert answer.status_code == 200
    assert [ending[1:] for ending in engine.endings] == [(Finish.TEXT, None)]
