"""Check 26: what the package never does, by its syntax; and what serving never does: reach out, mix tenants, tell."""

from __future__ import annotations

import ast
import itertools
import logging
import socket
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest

import braid
from braid.server.config import ServerConfig
from braid.server.guard.keys import named_keys
from braid.server.observe.access import JsonFormatter

from ..text.test_formats import make
from .bodies import LIMITS, TALK, VALID, concrete, know_session
from .served import at_baseline, real, scripted

PACKAGE = Path(braid.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "jsonpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "__import__"}
FORBIDDEN_ATTRIBUTES = {
    ("torch", "load"),
    ("torch", "save"),
    ("os", "system"),
    ("os", "popen"),
    ("asyncio", "create_subprocess_shell"),
    ("subprocess", "getoutput"),
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("yaml", "full_load"),
    ("numpy", "load"),
    ("np", "load"),
}
CHECKS_OF_INPUT = ("server", "checkpoint", "text", "cli")
"""Rooms that read what others wrote: an ``assert`` there may only state what the code itself has made true."""


@cache
def nodes() -> list[tuple[str, ast.AST]]:
    """What of the package's syntax is looked at, and its file."""
    kinds = (ast.Import, ast.ImportFrom, ast.Call, ast.Attribute, ast.keyword, ast.Assert)
    return [
        (str(file.relative_to(PACKAGE)), node)
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, kinds)
    ]


def _refuses_pickles(words: list[ast.keyword]) -> bool:
    """numpy's own files hold plain numbers where this is said, and only then."""
    said = [word.value for word in words if word.arg == "allow_pickle"]
    return len(said) == 1 and isinstance(said[0], ast.Constant) and said[0].value is False


def test_nothing_is_unpickled_evaluated_or_run_in_a_shell() -> None:
    found = []
    for where, node in nodes():
        match node:
            case ast.Import(names=names) if FORBIDDEN_MODULES & {name.name.split(".")[0] for name in names}:
                found.append(where)
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in FORBIDDEN_MODULES:
                found.append(where)
            case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_CALLS:
                found.append(where)
            case ast.Call(func=ast.Attribute(value=ast.Name(id=owner), attr=name), keywords=words) if (
                owner,
                name,
            ) in FORBIDDEN_ATTRIBUTES and not _refuses_pickles(words):
                found.append(where)
            case ast.keyword(arg="shell", value=ast.Constant(value=True)):
                found.append(where)
            case ast.keyword(arg="trust_remote_code" | "allow_pickle", value=value) if not (
                isinstance(value, ast.Constant) and value.value is False
            ):
                found.append(where)
            case ast.keyword(arg="weights_only"):
                found.append(where)
    assert found == []


def test_the_scan_finds_what_it_looks_for() -> None:
    assert len(FILES) > 100
    assert any(isinstance(node, ast.keyword) for _, node in nodes())


def test_no_remote_code_is_named() -> None:
    for file in FILES:
        assert "auto_map" not in file.read_text(), file


def test_asserts_do_not_check_input() -> None:
    """An assert vanishes under ``-O``. Those in rooms that read input say what a type checker cannot see."""
    wrong = []
    for where, node in nodes():
        if isinstance(node, ast.Assert) and where.split("/")[0] in CHECKS_OF_INPUT:
            words = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)}
            if words & {"body", "fields", "payload", "headers", "header", "metadata", "config_json", "data"}:
                wrong.append((where, ast.unparse(node)))
    assert wrong == []


# -- outbound sockets --------------------------------------------------------------------------------------


async def test_serving_opens_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every route, with addresses in all places that might be fetched."""
    reached: list[object] = []

    def refuse(*args: object, **options: object) -> Any:
        reached.append(args)
        raise OSError("blocked")

    image = {"type": "image_url", "image_url": {"url": "http://192.0.2.1/x.png"}}
    async with scripted(reply="ok", reply_format=make("hermes")) as served:
        for name in ("connect", "connect_ex", "sendto"):
            monkeypatch.setattr(socket.socket, name, refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        monkeypatch.setattr(socket, "create_connection", refuse)
        await know_session(served.client)
        for path, body in VALID.items():
            assert (await served.client.post(concrete(path), json=body)).status_code == 200
            for more in (
                {"messages": [{"role": "user", "content": [image]}]},
                {
                    "input": [
                        {
                            "role": "user",
                            "content": [{"type": "input_image", "image_url": "http://192.0.2.1"}],
                        }
                    ]
                },
                {"guided_json": {"$ref": "http://192.0.2.1/schema.json"}},
                {"tools": [{"type": "mcp", "server_url": "http://192.0.2.1"}]},
                {"metadata": {"url": "http://192.0.2.1"}, "webhook": "http://192.0.2.1"},
            ):
                answer = await served.client.post(concrete(path), json={**body, **more})
                assert answer.status_code in (200, 400), (path, answer.text)
    assert reached == []


# -- tenants -----------------------------------------------------------------------------------------------

LONG = "a prefix that is longer than several blocks of the cache, so that it can be found again " * 3


CLAIMS: tuple[dict[str, Any], ...] = (
    {},
    {"cache_salt": "shared"},
    {"session_id": "same", "prompt_cache_key": "same"},
)
"""What a client might say to be taken for another."""


def asked(path: str, text: str) -> dict[str, Any]:
    field = next(name for name in ("messages", "input", "prompt") if name in VALID[path])
    return {**VALID[path], field: [{"role": "user", "content": text}] if field == "messages" else text}


def cached(answer: dict[str, Any]) -> int:
    usage = answer["usage"]
    if "cache_read_input_tokens" in usage:
        return int(usage["cache_read_input_tokens"])
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details")
    return int(details["cached_tokens"])


async def test_keys_never_hit_each_others_blocks(tiny_llama: Path) -> None:
    """On no route, not through a claimed salt, session or cache key: 0 cached tokens across keys, more within one."""
    config = ServerConfig(api_keys=named_keys(("one", "two")))
    async with real(tiny_llama, config) as served:
        for number, (path, claim) in enumerate(itertools.product(LIMITS, CLAIMS)):
            body = {**asked(path, f"{number} {LONG}"), **claim}
            seen = []
            for key in ("one", "two", "one", "two"):
                answer = await served.client.post(path, json=body, headers={"x-api-key": key})
                assert answer.status_code == 200, answer.text
                seen.append(cached(answer.json()))
            assert seen[:2] == [0, 0], (path, claim, seen)
            assert min(seen[2:]) > 100, (path, claim, seen)
        engine = psutil.Process(served.engine.engine_pid)
        for process in (engine, *engine.children(recursive=True)):
            assert process.net_connections(kind="inet") == []
        await at_baseline(served.engine)


# -- logs --------------------------------------------------------------------------------------------------

SECRET = "customer-4711-diagnosis"


async def test_logs_hold_no_text_of_a_prompt(caplog: pytest.LogCaptureFixture) -> None:
    """At every level, of every route, of good requests, refused ones and ones that fail."""
    caplog.set_level(logging.DEBUG)
    talk = [{"role": "user", "content": SECRET}]
    for error in (None, RuntimeError("injected")):
        async with scripted(reply=f"told {SECRET}", error=error) as served:
            for path in VALID:
                body = {**VALID[path]}
                body |= {
                    name: talk if name == "messages" else SECRET
                    for name in ("messages", "prompt", "input")
                    if name in body
                }
                for more in (
                    {},
                    {"stream": True},
                    {"temperature": SECRET},
                    {"user": SECRET, "session_id": SECRET},
                ):
                    await served.client.post(concrete(path), json={**body, **more})
                await served.client.post(concrete(path), content=f'{{"{SECRET}'.encode())
            text = [{"role": "assistant", "content": [{"type": SECRET}]}, *TALK]
            await served.client.post("/v1/chat/completions", json={"messages": text})
    records = [record for record in caplog.records if record.name.startswith("braid")]
    assert len(records) > 50
    plain, lines = logging.Formatter(), JsonFormatter()
    for record in records:
        assert SECRET not in plain.format(record), plain.format(record)
        assert SECRET not in lines.format(record)


async def test_logs_escape_control_characters(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "braid")
    nasty = "a\nstatus=200 id=forged\x1b[31m\x00\r\u202e"
    async with scripted(ServerConfig(api_keys=named_keys(("k",)))) as served:
        for path in ("/v1/models/%0Aforged%1B[31m%00", "/%0D%0Aforged", "/v1/responses/%0Aforged"):
            await served.client.get(path, headers={"x-api-key": "k"})
            await served.client.get(path)
        for name in ("session_id", "user", "model", "x\nforged"):
            await served.client.post(
                "/v1/completions", json={**VALID["/v1/completions"], name: nasty}, headers={"x-api-key": "k"}
            )
    assert caplog.records
    for record in caplog.records:
        message = record.getMessage()
        assert not [char for char in message if not char.isprintable()], repr(message)
