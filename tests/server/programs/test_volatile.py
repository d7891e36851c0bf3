"""Lines that change on every request: the known one is left out in every dialect, others are found and named."""

from __future__ import annotations

import logging
import re
from typing import Any

import httpx
import pytest

from braid.server.config import ServerConfig
from braid.server.programs.volatile import Glance, strip

LINE = "x-anthropic-billing-header: cc_version=2.1.36.abc; cc_entrypoint=cli; cch={};"
BLOCK = 16


def system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


USER = {"role": "user", "content": "hi"}


class TestStrip:
    def test_from_the_beginning_of_a_system_text(self) -> None:
        messages = [system(f"{LINE}\nYou are an agent."), USER]
        assert strip(messages, ()) == ([system("You are an agent."), USER], (), 1)
        developer = {"role": "developer", "content": f"{LINE}\n\nBe short."}
        assert strip([developer, USER], ()).messages[0]["content"] == "Be short."

    def test_parts_and_messages_that_are_nothing_else_go(self) -> None:
        messages = [system([text(LINE), text("You are an agent.")]), USER]
        assert strip(messages, ()) == ([system([text("You are an agent.")]), USER], (), 1)
        alone = [system(LINE), system("You are an agent."), USER]
        assert strip(alone, (1, 2, 3)) == (alone[1:], (0, 1, 2), 1)
        assert strip([system([text(LINE)]), USER], ()).messages == [USER]

    @pytest.mark.parametrize(
        "messages",
        [
            [system("You are an agent."), USER],
            [system(f"Read this: {LINE}"), USER],
            [system("x\n" + LINE), USER],
            [{"role": "user", "content": LINE}],
            [{"role": "assistant", "content": LINE}, USER],
            [system(None), system([1, {"text": 5}]), USER],
            ["no message"],
        ],
    )
    def test_nothing_else_is_touched(self, messages: Any) -> None:
        assert strip(messages, (1,)) == (messages, (1,), 0)


PROMPTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", {"messages": [system(LINE + "\nYou are an agent."), USER]}),
    "chat in parts": ("/v1/chat/completions", {"messages": [system([text(LINE), text("You are.")]), USER]}),
    "responses": ("/v1/responses", {"instructions": LINE + "\nYou are an agent.", "input": "hi"}),
    "messages": (
        "/v1/messages",
        {"system": [text(LINE), text("You are an agent.")], "messages": [USER], "max_tokens": 40},
    ),
}


def filled(value: Any, cch: str) -> Any:
    if isinstance(value, dict):
        return {name: filled(part, cch) for name, part in value.items()}
    if isinstance(value, list):
        return [filled(part, cch) for part in value]
    return value.replace("cch={}", f"cch={cch}") if isinstance(value, str) else value


@pytest.mark.parametrize("name", list(PROMPTS))
async def test_requests_that_differ_in_it_are_the_same(
    client: httpx.AsyncClient, engine: Any, name: str
) -> None:
    path, body = PROMPTS[name]
    for cch in ("11111", "fffff"):
        assert (await client.post(path, json=filled(body, cch))).status_code == 200
    one, two = engine.seen
    assert one.prompt_token_ids == two.prompt_token_ids
    assert "billing" not in engine.decode(list(one.prompt_token_ids))
    metrics = (await client.get("/metrics")).text
    assert re.search(r"^braid_volatile_lines_stripped_total\{.*\} 2\.0$", metrics, re.MULTILINE)


class TestSwitchedOff:
    @pytest.fixture
    def config(self) -> ServerConfig:
        return ServerConfig(strip_volatile_line=False)

    @pytest.mark.parametrize("name", list(PROMPTS))
    async def test_it_stays(self, client: httpx.AsyncClient, engine: Any, name: str) -> None:
        path, body = PROMPTS[name]
        assert (await client.post(path, json=filled(body, "11111"))).status_code == 200
        assert "cch=11111" in engine.decode(list(engine.seen[0].prompt_token_ids))


REST = [*range(1000, 1400)]


class TestGlance:
    def test_alike_but_for_the_beginning(self) -> None:
        glance = Glance.at([1, 2, 3, 4, *REST], BLOCK)
        assert glance is not None
        assert glance.first_difference([1, 2, 9, 4, *REST, 5, 6, 7]) == 2
        assert glance.first_difference([1, 2, 3, 3, 4, *REST]) == 3  # all behind it has moved

    def test_the_same_beginning(self) -> None:
        glance = Glance.at([1, 2, 3, 4, *REST], BLOCK)
        assert glance is not None
        assert glance.first_difference([1, 2, 3, 4, *REST[:200], 7]) is None

    def test_something_else(self) -> None:
        glance = Glance.at([1, 2, 3, 4, *REST], BLOCK)
        assert glance is not None
        assert glance.first_difference([9, 2, 3, 4, *range(5000, 5400)]) is None
        assert glance.first_difference([9, 2, 3, 4, *REST[:300], *range(5000, 5100)]) is None
        assert glance.first_difference([]) is None

    def test_short_prompts_tell_nothing(self) -> None:
        assert Glance.at(range(100), BLOCK) is None
        assert Glance.at([], BLOCK) is None


async def test_other_lines_are_named_once_by_their_place(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    def body(stamp: str, program: str) -> dict[str, Any]:
        told = f"{stamp} You are an agent. {'Work in /repo, and be careful with what is there. ' * 5}"
        return {"messages": [system(told), USER], "max_tokens": 4, "session_id": program}

    with caplog.at_level(logging.WARNING, logger="braid.server.programs.registry"):
        for stamp in ("12:01", "12:02", "12:03"):
            for program in ("secret-a", "secret-b"):
                answer = await client.post("/v1/chat/completions", json=body(stamp, program))
                assert answer.status_code == 200
    (record,) = caplog.records
    told = record.getMessage()
    assert "differ at token 12" in told  # one for the message's beginning, 7 for "system\n", and "12:0"
    assert "secret" not in told
    assert "12:0" not in told


async def test_programs_that_share_their_beginning_are_not_warned_of(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="braid.server.programs.registry"):
        for number in range(3):
            messages = [system("You are an agent. " * 20), {"role": "user", "content": f"{number}"}]
            await client.post(
                "/v1/chat/completions", json={"messages": messages, "max_tokens": 4, "session_id": "s"}
            )
    assert not caplog.records
