from __future__ import annotations

import json
import threading
import time
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.core.errors import InvalidParameterError
from braid.server.config import ServerConfig
from braid.server.dialects.schemas import ChatRequest
from braid.server.errors import HttpError
from braid.server.guard import body as body_module
from braid.server.guard.body import nesting_exceeds, parse_object, validate

CHAT = "/v1/chat/completions"
ROUTES = (CHAT, "/v1/completions", "/tokenize", "/detokenize")
JSON = {"content-type": "application/json"}


def nested(depth: int) -> bytes:
    return b'{"a":' * depth + b"1" + b"}" * depth


@pytest.mark.parametrize(
    ("body", "deep"),
    [
        (nested(64), False),
        (nested(65), True),
        (b"[" * 64 + b"]" * 64, False),
        (b"[" * 65, True),
        (b'{"a":"' + b"[" * 1000 + b'"}', False),
        (b'{"a":"\\"' + b"[" * 1000 + b'"}', False),
        (b"[" + b"[]," * 500 + b"[]]", False),
        (b'"' + b'\\"' * 200 + b"[" * 100, False),
        (b"", False),
    ],
)
def test_nesting(body: bytes, deep: bool) -> None:
    assert nesting_exceeds(body, 64) is deep


TEXT = st.text(st.sampled_from('a"\\[]{},:'), max_size=12)
JSON_VALUES = st.recursive(
    TEXT | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=20,
)


def depth(value: Any) -> int:
    if not isinstance(value, (list, dict)):
        return 0
    return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)


@given(JSON_VALUES)
def test_nesting_is_exact(value: Any) -> None:
    body = json.dumps(value).encode()
    assert not nesting_exceeds(body, depth(value))
    if depth(value) > 0:
        assert nesting_exceeds(body, depth(value) - 1)


@pytest.mark.parametrize("unit", [b'"\\"', b'\\"', b"[{", b"[]", b'"', b"\\"])
def test_nesting_guard_is_linear(unit: bytes) -> None:
    body = b"[" * 65 + unit * (2_000_000 // len(unit))
    start = time.process_time()
    nesting_exceeds(body, 64)
    assert time.process_time() - start < 5  # quadratic would be minutes


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"prompt": "x"',
        b'{"prompt": NaN}',
        b'{"prompt": Infinity}',
        b'{"prompt": -Infinity}',
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "\\udc00 x"}',
        b'{"prompt": "x", "seed": ' + b"1" * 5000 + b"}",
        b'{"prompt": "x", "temperature": 1e999}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        nested(65),
        b"[]",
        b'"text"',
        b"null",
        b"{} {}",
        b"\xef\xbb\xbf{}",
        b"\x00",
    ],
)
@pytest.mark.parametrize("route", ROUTES)
async def test_malformed_json_is_400(client: httpx.AsyncClient, route: str, body: bytes) -> None:
    answer = await client.post(route, content=body, headers=JSON)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) < 300


def test_the_last_of_duplicate_keys_wins() -> None:
    assert parse_object(b'{"a": 1, "a": 2}', ServerConfig()) == {"a": 2}


def test_depth_is_counted_before_parsing() -> None:
    with pytest.raises(HttpError, match="deeper than 64"):
        parse_object(nested(100_000), ServerConfig())


@pytest.mark.parametrize("unit", [b"{},", b"[],", b"[{", b"]", b'"[",', b"[[[" * 20 + b"]]]" * 20])
def test_brackets_are_counted_before_anything_else(unit: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "nesting_exceeds", None)
    with pytest.raises(HttpError, match="more than 400000 brackets"):
        parse_object(b'{"messages":[' + unit * 400_000 + b"1]}", ServerConfig())


def test_colons_are_counted_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "nesting_exceeds", None)
    with pytest.raises(HttpError, match="more than 400000 colons"):
        parse_object(b"{" + b'"a":1,' * 400_001 + b'"b":1}', ServerConfig())


@pytest.mark.parametrize("unit", [b"1,", b'"",'])
def test_commas_are_counted_before_anything_else(unit: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_module, "nesting_exceeds", None)
    with pytest.raises(HttpError, match="more than 2000000 commas"):
        parse_object(b'{"prompt":[' + unit * 2_000_001 + b"1]}", ServerConfig())


def test_many_parts_are_fine_up_to_the_bounds() -> None:
    config = ServerConfig(max_json_brackets=6, max_json_commas=3)
    assert parse_object(b'{"a":["[",",[",1]}', config) == {"a": ["[", ",[", 1]}
    with pytest.raises(HttpError, match="6 brackets"):
        parse_object(b'{"a":["[","[[",1]}', config)
    with pytest.raises(HttpError, match="3 commas"):
        parse_object(b'{"a":["[",",,",1]}', config)


@pytest.mark.parametrize("name", ["metadata", "logit_bias"])
def test_an_object_of_wrong_entries_is_not_looked_through(name: str) -> None:
    wrong = {str(number): None for number in range(2049)}
    with pytest.raises(InvalidParameterError, match="2049 keys, at most 2048") as caught:
        validate(ChatRequest, {"messages": [], name: wrong})
    assert caught.value.param == name


class TestThread:
    @pytest.fixture
    def config(self) -> ServerConfig:
        return ServerConfig(large_bytes=1000)

    @pytest.mark.parametrize(("size", "apart"), [(900, False), (1100, True)])
    async def test_large_bodies_are_parsed_off_the_loop(
        self, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, size: int, apart: bool
    ) -> None:
        threads = []

        def parse(body: bytes, config: ServerConfig) -> dict[str, Any]:
            threads.append(threading.get_ident())
            return parse_object(body, config)

        monkeypatch.setattr(body_module, "parse_object", parse)
        answer = await client.post("/tokenize", json={"prompt": "x" * size})
        assert answer.json()["count"] == size
        assert (threads[0] != threading.get_ident()) is apart


@pytest.mark.parametrize(
    "content_type",
    [None, "", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=latin-1"],
)
@pytest.mark.parametrize("route", ROUTES)
async def test_other_content_types_are_415(
    client: httpx.AsyncClient, route: str, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    answer = await client.post(route, content=b"{}", headers=headers)
    assert answer.status_code == 415
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("content_type", ["application/json", "Application/JSON; charset=UTF-8"])
async def test_json_content_types(client: httpx.AsyncClient, content_type: str) -> None:
    body = json.dumps({"prompt": "hi"}).encode()
    answer = await client.post("/tokenize", content=body, headers={"content-type": content_type})
    assert answer.status_code == 200


class TestSize:
    @pytest.fixture
    def config(self) -> ServerConfig:
        return ServerConfig(max_body_bytes=1000)

    @pytest.mark.parametrize("route", ROUTES)
    async def test_declared_length(self, client: httpx.AsyncClient, route: str) -> None:
        answer = await client.post(route, content=b"x" * 1001, headers=JSON)
        assert answer.status_code == 413
        assert "1000" in answer.json()["error"]["message"]

    @pytest.mark.parametrize("route", ROUTES)
    async def test_without_a_length(self, client: httpx.AsyncClient, route: str) -> None:
        async def chunks():  # type: ignore[no-untyped-def]
            for _ in range(100):
                yield b"x" * 100

        answer = await client.post(route, content=chunks(), headers=JSON)
        assert answer.status_code == 413

    async def test_at_the_limit(self, client: httpx.AsyncClient) -> None:
        body = json.dumps({"prompt": ""}).encode()
        body = json.dumps({"prompt": "x" * (1000 - len(body))}).encode()
        assert len(body) == 1000
        answer = await client.post("/tokenize", content=body, headers=JSON)
        assert answer.status_code == 200
        assert answer.json()["count"] == 1000 - len(b'{"prompt": ""}')
