"""Check 13: what others send. Roles, tools and fields that are not known here, and what coding agents send as they do.

The files in ``shapes`` hold the headers and fields of a first request and of the tool result behind it; all prose is
ours. ``make test-clients`` runs the agents themselves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ..server.conftest import parse_events
from ..text.test_formats import make
from .bodies import LIMITS, TALK, VALID, assert_refused, concrete, know_session
from .served import Served, scripted
from .test_check_12_tool_text import chat_stream, messages_stream, responses_stream

SHAPES = sorted((Path(__file__).parent / "shapes").glob("*.json"))
FOLD = {
    "/v1/chat/completions": chat_stream,
    "/v1/responses": responses_stream,
    "/v1/messages?beta=true": messages_stream,
}
FINAL = "All done."


def call_id(events: list[Any]) -> str:
    """The id that a stream gives its only call."""
    found = []
    for event in events:
        if event == "[DONE]":
            continue
        item, block = event.get("item") or {}, event.get("content_block") or {}
        deltas = [choice["delta"] for choice in event.get("choices") or ()]
        found += [call["id"] for delta in deltas for call in delta.get("tool_calls") or () if "id" in call]
        found += (
            [item["call_id"]]
            if event.get("type") == "response.output_item.added" and "call_id" in item
            else []
        )
        found += [block["id"]] if block.get("type") == "tool_use" else []
    (id,) = found
    return str(id)


def filled(value: Any, id: str, arguments: dict[str, Any]) -> Any:
    if isinstance(value, dict):
        return {key: filled(inner, id, arguments) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, id, arguments) for inner in value]
    return {"CALL_ID": id, "ARGUMENTS": json.dumps(arguments), "INPUT": arguments}.get(value, value)


async def turn(served: Served, shape: dict[str, Any], body: dict[str, Any]) -> tuple[list[Any], Any]:
    answer = await served.client.post(shape["path"], json=body, headers=shape["headers"])
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return parse_events(answer.text), answer


@pytest.mark.parametrize("file", SHAPES, ids=lambda file: file.stem)
@pytest.mark.parametrize("burst", [1, 7, 1000])
async def test_an_agents_requests_complete_a_tool_loop(file: Path, burst: int) -> None:
    shape = json.loads(file.read_text())
    call = json.dumps({"name": shape["tool"], "arguments": shape["arguments"]})

    def reply(prompt: str) -> str:
        return FINAL if "result" in prompt else f"<tool_call>\n{call}\n</tool_call>"

    async with scripted(reply=reply, burst=burst, reply_format=make("hermes")) as served:
        events, answer = await turn(served, shape, shape["body"])
        parts = FOLD[shape["path"]](events)
        ((_, name, arguments),) = [part for part in parts if part[0] == "call"]
        assert (name, json.loads(arguments)) == (shape["tool"], shape["arguments"])
        for dropped in shape["ignored_tools"]:
            assert dropped in answer.headers["warning"]
        added = filled(shape["appended"], call_id(events), shape["arguments"])
        body = {**shape["body"], shape["field"]: [*shape["body"][shape["field"]], *added]}
        events, _ = await turn(served, shape, body)
        assert [part for part in FOLD[shape["path"]](events) if part[0] == "text"] == [("text", FINAL)]
        first, second = served.engine.seen
        assert first.program.program == second.program.program == shape["program"]
        opening, later = (served.engine.decode(list(seen.prompt_token_ids)) for seen in (first, second))
        assert "volatile" not in opening
        assert later.startswith(opening.partition("[")[0])


def test_shapes_hold_no_prose_and_no_identities() -> None:
    assert len(SHAPES) == 3
    for file in SHAPES:
        text = file.read_text()
        assert len(text) < 6000
        assert "/home" not in text


@pytest.mark.parametrize("role", ["robot", "", "System", "function_call", "tool\n", 3, None, {}, []])
async def test_unknown_roles_are_refused(role: object) -> None:
    async with scripted() as served:
        for path, field in (
            ("/v1/chat/completions", "messages"),
            ("/v1/responses", "input"),
            ("/v1/messages", "messages"),
            ("/v1/messages/count_tokens", "messages"),
            ("/tokenize", "messages"),
        ):
            body = {name: value for name, value in VALID[path].items() if name != "prompt"}
            entries = [*TALK, {"role": role, "content": "x"}]
            answer = await served.client.post(path, json={**body, field: entries})
            assert_refused(answer, path)
            if isinstance(role, str) and role:
                assert repr(role) in answer.json()["error"]["message"] or role in answer.text
        assert not served.engine.seen


KNOWN_ELSEWHERE = (
    "web_search", "file_search", "code_interpreter", "mcp", "computer_use_preview", "local_shell", "apply_patch",
    "image_generation", "namespace", "tool_of_next_year",
)  # fmt: skip


@pytest.mark.parametrize("kind", KNOWN_ELSEWHERE)
async def test_unknown_tool_types_are_dropped_with_a_warning(kind: str) -> None:
    function = {"name": "f", "parameters": {"type": "object"}}
    foreign = {"type": kind, "name": "n", "display_width": 3, kind: {"deep": [1]}}
    tools: dict[str, list[dict[str, Any]]] = {
        "/v1/chat/completions": [foreign, {"type": "function", "function": function}],
        "/v1/responses": [foreign, {"type": "function", **function}],
        "/v1/messages": [foreign, {"name": "f", "input_schema": {"type": "object"}}],
    }
    async with scripted(reply="ok", reply_format=make("hermes")) as served:
        for path, given in tools.items():
            for stream in (False, True):
                answer = await served.client.post(
                    path, json={**VALID[path], "tools": given, "stream": stream}
                )
                assert answer.status_code == 200, (path, answer.text)
                assert "tools.0" in answer.headers["warning"]
                assert "[1 tools]" in served.engine.decode(list(served.engine.seen[-1].prompt_token_ids))


@pytest.mark.parametrize("kind", [3, None, {}, "", "a\r\nset-cookie: x=1"])
async def test_odd_tool_types_are_refused_or_dropped_and_never_reach_a_header(kind: object) -> None:
    async with scripted(reply="ok") as served:
        for path in LIMITS:
            if path == "/v1/completions":
                continue
            answer = await served.client.post(path, json={**VALID[path], "tools": [{"type": kind}]})
            assert answer.status_code in (200, 400), answer.text
            assert "set-cookie" not in answer.headers
            assert "set-cookie" not in answer.headers.get("warning", "")


async def test_unknown_fields_are_ignored_and_counted() -> None:
    async with scripted(reply="ok") as served:
        await know_session(served.client)
        for path, body in VALID.items():
            strange = {
                "field_of_next_year": {"a": [1]},
                "x" * 2000: 1,
                "\x00": 2,
                "__class__": "x",
                "$ref": "#",
            }
            answer = await served.client.post(concrete(path), json={**body, **strange})
            assert answer.status_code == 200, (path, answer.text)
        metrics = (await served.client.get("/metrics")).text
    (line,) = [line for line in metrics.splitlines() if line.startswith("braid_ignored_request_fields_total")]
    assert float(line.split()[-1]) >= 5 * len(LIMITS)


async def test_what_would_change_the_output_elsewhere_is_named() -> None:
    async with scripted(reply="ok") as served:
        for path in LIMITS:
            answer = await served.client.post(path, json={**VALID[path], "mirostat": 2})
            assert answer.status_code == 200
            assert "mirostat" in answer.headers["warning"]
