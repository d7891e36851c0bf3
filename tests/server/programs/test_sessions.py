"""Programs seen from outside: what the engine is told, and what /v1/sessions shows."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from braid.core.program import Applied, ProgramInfo, ProgramVerb
from braid.server.config import ServerConfig

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"


async def chat(client: httpx.AsyncClient, messages: list[dict[str, Any]], **more: Any) -> httpx.Response:
    headers = more.pop("headers", None)
    answer = await client.post(CHAT, json={"messages": messages, "max_tokens": 40, **more}, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def said(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


async def listed(client: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:
    answer = await client.get("/v1/sessions", params=query)
    assert answer.status_code == 200, answer.text
    data: list[dict[str, Any]] = answer.json()["data"]
    return data


class TestNamed:
    async def test_the_engine_hears_of_it_and_the_answer_repeats_it(
        self, client: httpx.AsyncClient, engine: Any
    ) -> None:
        answer = await chat(client, [said("hi")], headers={"X-Session-ID": "s-1", "X-Parent-Session-ID": "p"})
        assert answer.headers["x-session-id"] == "s-1"
        program = engine.seen[-1].program
        assert (program.program, program.parent, program.final) == ("s-1", "p", False)

    async def test_no_id_is_made_up_for_the_client(self, client: httpx.AsyncClient) -> None:
        assert "x-session-id" not in (await chat(client, [said("hi")])).headers

    async def test_in_a_stream_too(self, client: httpx.AsyncClient, engine: Any) -> None:
        answer = await chat(client, [said("hi")], stream=True, session_id="s-1")
        assert answer.headers["x-session-id"] == "s-1"
        assert engine.seen[-1].program.program == "s-1"

    async def test_ids_that_are_no_header_are_not_repeated(self, client: httpx.AsyncClient) -> None:
        assert "x-session-id" not in (await chat(client, [said("hi")], session_id="会話")).headers

    async def test_wrong_types_are_refused(self, client: httpx.AsyncClient, engine: Any) -> None:
        for path, body in ((CHAT, {"messages": [said("hi")]}), (TEXT, {"prompt": "hi"})):
            answer = await client.post(path, json={**body, "session_id": ["x"]})
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == "session_id"
        assert not engine.seen

    async def test_what_is_known_of_it(self, client: httpx.AsyncClient) -> None:
        first = await chat(client, [said("hi")], session_id="s-1")
        second = await chat(client, [said("hi")], session_id="s-1", parent_session_id="p")
        usage = [answer.json()["usage"] for answer in (first, second)]
        (shown,) = await listed(client)
        assert shown["id"] == "s-1"
        assert (shown["turns"], shown["active_turns"]) == (2, 0)
        assert (shown["parent_id"], shown["source"]) == ("p", "session_id")
        assert shown["prompt_tokens"] == sum(one["prompt_tokens"] for one in usage)
        assert shown["output_tokens"] == sum(one["completion_tokens"] for one in usage)
        assert shown["cached_tokens"] == 6
        assert 0 < shown["cached_share"] < 1
        assert shown["lease_seconds"] is None

    async def test_where_its_kv_lives(self, client: httpx.AsyncClient, engine: Any) -> None:
        await chat(client, [said("hi")], session_id="s-1", agent_hints={"lease_s": 30})
        await chat(client, [said("hi")], session_id="s-2")
        (shown, _) = await listed(client)
        assert (shown["kv"], shown["finish"], shown["expected_return_seconds"]) == (None, None, None)
        engine.listed = [
            ProgramInfo("", "s-1", num_turns=1, finish="tool", tool="pytest", num_blocks=9)._replace(
                num_device_blocks=5, num_lower_blocks=3, is_protected=True, lease_s=12.5, return_s=2.0
            ),
            ProgramInfo("another key", "s-2", num_turns=7, finish="text"),
        ]
        shown, other = await listed(client)
        assert shown["kv"] == {"blocks": 9, "device_blocks": 5, "lower_blocks": 3, "protected": True}
        assert (shown["finish"], shown["tool"]) == ("tool", "pytest")
        assert (shown["expected_return_seconds"], shown["lease_seconds"]) == (2.0, 12.5)
        assert other["kv"] is None
        assert (shown["state"], other["state"]) == ("tool", "idle")
        engine.listed[0] = engine.listed[0]._replace(return_s=3601.0)  # it is forgotten after an hour
        assert (await listed(client))[0]["expected_return_seconds"] is None

    async def test_without_an_engine_they_are_still_listed(
        self, client: httpx.AsyncClient, engine: Any
    ) -> None:
        await chat(client, [said("hi")], session_id="s-1")
        engine.ready = False
        (shown,) = await listed(client)
        assert (shown["id"], shown["kv"]) == ("s-1", None)

    async def test_the_last_turn_ends_it(self, client: httpx.AsyncClient, engine: Any) -> None:
        await chat(client, [said("hi")], session_id="s-1")
        await chat(client, [said("hi")], session_id="s-1", session_final=True)
        assert engine.seen[-1].program.final
        assert await listed(client) == []

    async def test_one_under_way(self, client: httpx.AsyncClient, engine: Any) -> None:
        engine.hold_after = 2
        task = asyncio.create_task(chat(client, [said("hi")], session_id="s-1"))
        while not engine.active:
            await asyncio.sleep(0)
        (shown,) = await listed(client)
        assert (shown["turns"], shown["active_turns"], shown["idle_seconds"]) == (0, 1, 0.0)
        task.cancel()
        await asyncio.wait([task])
        (shown,) = await listed(client)
        assert (shown["turns"], shown["active_turns"]) == (0, 0)


class TestUnnamed:
    async def turns(self, client: httpx.AsyncClient, engine: Any, **more: Any) -> list[Any]:
        """A conversation of three turns; each repeats what was answered."""
        messages = [said("please look at the file and tell me what is in it")]
        for _ in range(3):
            answer = await chat(client, messages, **more)
            reply = answer.json()["choices"][0]["message"]["content"]
            messages += [{"role": "assistant", "content": reply}, said("and then?")]
        return [request.program for request in engine.seen[-3:]]

    async def test_prompts_tell(self, client: httpx.AsyncClient, engine: Any) -> None:
        programs = await self.turns(client, engine)
        assert len({program.program for program in programs}) == 1
        assert [program.source for program in programs] == ["anonymous", "prefix", "prefix"]
        (shown,) = await listed(client)
        assert shown["turns"] == 3

    async def test_a_second_run_of_the_same_task_is_another(
        self, client: httpx.AsyncClient, engine: Any
    ) -> None:
        first = await self.turns(client, engine)
        second = await self.turns(client, engine)
        assert second[0].program != first[0].program
        assert second[0].parent is None

    async def test_prompt_cache_key_groups_and_prefixes_tell_apart(
        self, client: httpx.AsyncClient, engine: Any
    ) -> None:
        first = await self.turns(client, engine, prompt_cache_key="team")
        assert [program.source for program in first] == ["anonymous", "prompt_cache_key", "prompt_cache_key"]
        assert {program.group for program in first} == {"team"}
        await chat(
            client, [said("something quite different from all that came before")], prompt_cache_key="team"
        )
        other = engine.seen[-1].program
        assert other.program != first[0].program
        assert other.group == "team"

    async def test_another_key_does_not_join(self, client: httpx.AsyncClient, engine: Any) -> None:
        first = await self.turns(client, engine, prompt_cache_key="a")
        await self.turns(client, engine, prompt_cache_key="b")
        assert engine.seen[-1].program.program != first[0].program

    async def test_a_lost_header_is_made_up_for(self, client: httpx.AsyncClient, engine: Any) -> None:
        messages = [said("please look at the file and tell me what is in it")]
        answer = await chat(client, messages, headers={"X-Session-ID": "s-1"})
        reply = answer.json()["choices"][0]["message"]["content"]
        await chat(client, [*messages, {"role": "assistant", "content": reply}, said("go on")])
        assert engine.seen[-1].program.program == "s-1"
        assert engine.seen[-1].program.source == "prefix"

    async def test_a_fork_is_a_child(self, client: httpx.AsyncClient, engine: Any) -> None:
        start = [said("please look at the file and tell me what is in it")]
        answer = await chat(client, start)
        start.append({"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"]})
        await chat(client, [*start, said("and then?")])
        await chat(client, [*start, said("no, rather this")])
        root, tip, fork = (request.program for request in engine.seen)
        assert tip.program == root.program
        assert fork.program != root.program
        assert (fork.parent, fork.source) == (root.program, "fork")

    async def test_what_was_not_finished_can_be_sent_again(
        self, client: httpx.AsyncClient, engine: Any
    ) -> None:
        start = [said("please look at the file and tell me what is in it")]
        answer = await chat(client, start)
        start.append({"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"]})
        again = [*start, said("and then?")]
        engine.hold_after = 2
        task = asyncio.create_task(chat(client, again))
        while not engine.active:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        engine.hold_after = None
        await chat(client, again)
        assert len({request.program.program for request in engine.seen}) == 1
        assert engine.seen[-1].program.source == "prefix"

    async def test_text_completions(self, client: httpx.AsyncClient, engine: Any) -> None:
        text = "Question: what is in the file?\nThought:"
        for _ in range(3):
            answer = await client.post(TEXT, json={"prompt": text, "max_tokens": 40})
            text += answer.json()["choices"][0]["text"] + "\nObservation: nothing\nThought:"
        assert len({request.program.program for request in engine.seen}) == 1

    async def test_several_prompts_are_no_turn(self, client: httpx.AsyncClient, engine: Any) -> None:
        for _ in range(2):
            await client.post(TEXT, json={"prompt": ["one text", "one text and more"], "max_tokens": 4})
        assert len({request.program.program for request in engine.seen}) == 2


class TestWishes:
    async def test_reach_the_engine(self, client: httpx.AsyncClient, engine: Any) -> None:
        await chat(client, [said("hi")], agent_hints={"lease_s": 30, "tool": {"name": "pytest"}})
        intent = engine.seen[-1].intent
        assert (intent.lease_s, intent.tool, intent.boundaries) == (30.0, "pytest", ())
        (shown,) = await listed(client)
        assert 29 < shown["lease_seconds"] <= 30

    async def test_outcomes_are_told_only_to_who_asks(self, client: httpx.AsyncClient) -> None:
        hints = {"agent_hints": {"lease_s": 9999, "colour": "red"}}
        assert "x-braid-outcome" not in (await chat(client, [said("hi")], **hints)).headers
        expected = "agent_hints.*=ignored; reason=unsupported, agent_hints.lease_s=clipped; reason=quota"
        for more in ({"braid": {"outcomes": True}}, {"headers": {"x-braid-outcomes": "true"}}):
            for stream in (False, True):
                answer = await chat(client, [said("hi")], stream=stream, **hints, **more)
                assert answer.headers["x-braid-outcome"] == expected

    async def test_only_what_the_engine_acts_on_is_promised(
        self, client: httpx.AsyncClient, engine: Any
    ) -> None:
        hints = {"agent_hints": {"lease_s": 5, "tool": {"name": "f"}}, "braid": {"outcomes": True}}
        answer = await chat(client, [said("hi")], **hints)
        told = "agent_hints.lease_s=deferred, agent_hints.tool.name=deferred"
        assert answer.headers["x-braid-outcome"] == told
        engine.acts_on = ("lease_s",)
        answer = await chat(client, [said("hi")], **hints)
        told = "agent_hints.lease_s=deferred, agent_hints.tool.name=ignored; reason=unsupported"
        assert answer.headers["x-braid-outcome"] == told

    async def test_outcomes_are_counted(self, client: httpx.AsyncClient) -> None:
        await chat(client, [said("hi")], agent_hints={"lease_s": 30, "osl": 7})
        text = (await client.get("/metrics")).text
        lines = [line for line in text.splitlines() if line.startswith("braid_retention_outcomes_total")]
        assert any('outcome="deferred"' in line and line.endswith(" 1.0") for line in lines)
        assert any('outcome="ignored"' in line and 'reason="unsupported"' in line for line in lines)

    @pytest.mark.parametrize("key", ["cache_control", "prompt_cache_breakpoint"])
    async def test_boundaries(self, client: httpx.AsyncClient, engine: Any, key: str) -> None:
        def marked(content: str) -> dict[str, Any]:
            return {"role": "user", "content": [{"type": "text", "text": content, key: {"ttl": "1h"}}]}

        messages = [marked("first"), said("second"), marked("third"), said("fourth")]
        await chat(client, messages)
        request = engine.seen[-1]
        prompt = engine.decode(list(request.prompt_token_ids))
        *ends, whole = request.intent.boundaries
        assert whole == len(request.prompt_token_ids)
        assert request.intent.min_s == 3600
        shown = [engine.decode(list(request.prompt_token_ids[:end])) for end in ends]
        assert len(shown) == 2
        for end, word in zip(shown, ("first", "third"), strict=True):
            assert prompt.startswith(end)
            assert end.endswith(f"{word}<|im_end|>\n")

    async def test_marked_only(self, client: httpx.AsyncClient, engine: Any) -> None:
        part = {"type": "text", "text": "first", "prompt_cache_breakpoint": {"mode": "explicit"}}
        messages = [{"role": "user", "content": [part]}, said("second")]
        await chat(client, messages, prompt_cache_options={"mode": "explicit", "ttl": "30m"})
        (end,) = engine.seen[-1].intent.boundaries
        assert engine.decode(list(engine.seen[-1].prompt_token_ids[:end])).endswith("first<|im_end|>\n")

    async def test_only_the_last_four_marks_count(self, client: httpx.AsyncClient, engine: Any) -> None:
        messages = [{**said(f"message {number}"), "cache_control": {}} for number in range(9)]
        await chat(client, messages)
        assert len(engine.seen[-1].intent.boundaries) == 5  # and the whole prompt


class TestVerbs:
    @pytest.mark.parametrize("verb", ["close", "prefetch", "demote"])
    async def test_the_engine_is_asked(self, client: httpx.AsyncClient, engine: Any, verb: str) -> None:
        await chat(client, [said("hi")], session_id="a/b c")
        answer = await client.post(f"/v1/sessions/a%2Fb%20c/{verb}")
        assert answer.status_code == 200
        assert answer.json() == {
            "id": "a/b c",
            "object": "session.outcome",
            "verb": verb,
            "outcome": "applied",
            "reason": None,
        }
        ((asked, program, seconds),) = engine.verbs
        assert (asked, program.program, seconds) == (ProgramVerb(verb), "a/b c", None)
        assert len(await listed(client)) == (verb != "close")

    async def test_pin(self, client: httpx.AsyncClient, engine: Any) -> None:
        await chat(client, [said("hi")], session_id="s")
        answer = await client.post("/v1/sessions/s/pin", json={"seconds": 30})
        assert answer.json()["outcome"] == "applied"
        assert engine.verbs[-1][2] == 30
        assert 29 < (await listed(client))[0]["lease_seconds"] <= 30

    async def test_a_pin_is_capped(self, client: httpx.AsyncClient, engine: Any) -> None:
        await chat(client, [said("hi")], session_id="s")
        answer = await client.post("/v1/sessions/s/pin", json={"seconds": 1e9})
        assert (answer.json()["outcome"], answer.json()["reason"]) == ("clipped", "quota")
        assert engine.verbs[-1][2] == 3600

    async def test_a_long_pin_is_not_read(self, client: httpx.AsyncClient, engine: Any) -> None:
        await chat(client, [said("hi")], session_id="s")
        answer = await client.post("/v1/sessions/s/pin", json={"seconds": 30, "x": "x" * 5000})
        assert answer.status_code == 413

    async def test_a_refused_pin_is_no_lease(self, client: httpx.AsyncClient, engine: Any) -> None:
        engine.outcome = Applied.REJECTED
        await chat(client, [said("hi")], session_id="s")
        answer = await client.post("/v1/sessions/s/pin", json={"seconds": 30})
        assert answer.json()["outcome"] == "rejected"
        assert (await listed(client))[0]["lease_seconds"] is None

    @pytest.mark.parametrize(
        "body", [{}, {"seconds": 0}, {"seconds": -1}, {"seconds": "5m"}, {"seconds": None}, []]
    )
    async def test_wrong_pins(self, client: httpx.AsyncClient, engine: Any, body: object) -> None:
        await chat(client, [said("hi")], session_id="s")
        assert (await client.post("/v1/sessions/s/pin", json=body)).status_code == 400
        assert not engine.verbs

    async def test_unknown_ones(self, client: httpx.AsyncClient, engine: Any) -> None:
        for verb in ("close", "prefetch", "demote", "pin"):
            answer = await client.post(f"/v1/sessions/nobody/{verb}", json={"seconds": 5})
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "unknown_program"
        assert not engine.verbs
        assert (await client.post("/v1/sessions/nobody/dance")).status_code == 404

    async def test_without_an_engine(self, client: httpx.AsyncClient, engine: Any) -> None:
        await chat(client, [said("hi")], session_id="s")
        engine.ready = False
        answer = await client.post("/v1/sessions/s/close")
        assert answer.status_code == 503
        assert "retry-after" in answer.headers


class TestList:
    async def test_pages(self, client: httpx.AsyncClient) -> None:
        for number in range(5):
            await chat(client, [said("hi")], session_id=f"s{number}")
        first = (await client.get("/v1/sessions", params={"limit": 2})).json()
        assert [one["id"] for one in first["data"]] == ["s0", "s1"]
        assert (first["first_id"], first["last_id"], first["has_more"]) == ("s0", "s1", True)
        rest = (await client.get("/v1/sessions", params={"after": "s1"})).json()
        assert [one["id"] for one in rest["data"]] == ["s2", "s3", "s4"]
        assert not rest["has_more"]

    @pytest.mark.parametrize(
        "query", [{"limit": 0}, {"limit": 1001}, {"limit": "x"}, {"limit": -1}, {"after": "nobody"}]
    )
    async def test_wrong_pages(self, client: httpx.AsyncClient, query: dict[str, Any]) -> None:
        assert (await client.get("/v1/sessions", params=query)).status_code == 400


class TestBounds:
    @pytest.fixture
    def config(self) -> ServerConfig:
        return ServerConfig(max_programs=3)

    async def test_the_longest_unused_are_forgotten(self, client: httpx.AsyncClient) -> None:
        for name in ("a", "b", "a", "c", "d", "e"):
            await chat(client, [said("hi")], session_id=name)
        assert [one["id"] for one in await listed(client)] == ["c", "d", "e"]

    async def test_none_under_way_is_forgotten(self, client: httpx.AsyncClient, engine: Any) -> None:
        engine.hold_after = 0
        task = asyncio.create_task(chat(client, [said("hi")], session_id="held"))
        while not engine.active:
            await asyncio.sleep(0)
        engine.hold_after = None
        for number in range(5):
            await chat(client, [said("hi")], session_id=f"s{number}")
        assert "held" in [one["id"] for one in await listed(client)]
        engine.go.set()
        await task


class TestKeys:
    @pytest.fixture
    def config(self) -> ServerConfig:
        from braid.server.guard.keys import named_keys

        return ServerConfig(api_keys=named_keys(("one", "two")))

    async def test_programs_belong_to_their_key(
        self, app: Starlette, client: httpx.AsyncClient, engine: Any
    ) -> None:
        messages = [said("please look at the file and tell me what is in it")]
        mine, yours = {"x-api-key": "one"}, {"authorization": "Bearer two"}
        answer = await chat(client, messages, session_id="s", headers=mine)
        messages += [
            {"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"]},
            said("on"),
        ]
        assert (await client.get("/v1/sessions", headers=yours)).json()["data"] == []
        assert (await client.post("/v1/sessions/s/close", headers=yours)).status_code == 404
        await chat(client, messages, headers=yours)
        assert engine.seen[-1].program.program != "s"  # a continued prefix of another key is none
        await chat(client, messages, session_id="s", headers=yours)
        first, *_, last = (request.program for request in engine.seen)
        assert first.program == last.program == "s"
        assert first.owner != last.owner
        assert engine.seen[0].cache_salt != engine.seen[-1].cache_salt
