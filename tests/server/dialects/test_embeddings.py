from __future__ import annotations

import asyncio
import base64
import math
import struct
from typing import Any

import httpx
import pytest

from braid.core.errors import EngineDeadError, OverloadedError
from braid.server.embed import MAX_CONCURRENT, shorten

ROUTE = "/v1/embeddings"


@pytest.fixture(autouse=True)
def pooling(engine: Any) -> None:
    engine.pooling = "mean"


async def ask(client: httpx.AsyncClient, input: Any = "hi", **fields: Any) -> httpx.Response:
    return await client.post(ROUTE, json={"input": input, **fields})


@pytest.mark.parametrize(
    ("input", "lengths"),
    [("hi", [2]), (["a", "bcd"], [1, 3]), ([1, 2, 3], [3]), ([[1], [2, 3]], [1, 2]), (["a", [1, 2]], [1, 2])],
)
async def test_inputs(client: httpx.AsyncClient, engine: Any, input: Any, lengths: list[int]) -> None:
    body = (await ask(client, input)).json()
    assert (body["object"], body["model"]) == ("list", "tiny")
    assert [entry["index"] for entry in body["data"]] == list(range(len(lengths)))
    for entry, length in zip(body["data"], lengths, strict=True):
        norm = math.hypot(3, 4, length)
        assert entry["embedding"] == pytest.approx([3 / norm, 4 / norm, 0, length / norm])
    assert body["usage"]["prompt_tokens"] == body["usage"]["total_tokens"] == sum(lengths)
    assert {request.pooling for request in engine.seen} == {"mean"}
    assert len({request.request_id for request in engine.seen}) == len(lengths)


async def test_base64_is_the_same_in_float32(client: httpx.AsyncClient) -> None:
    floats = (await ask(client, encoding_format="float")).json()["data"][0]["embedding"]
    text = (await ask(client, encoding_format="base64")).json()["data"][0]["embedding"]
    assert struct.unpack("<4f", base64.b64decode(text)) == pytest.approx(floats, rel=1e-6)


@pytest.mark.parametrize(("dimensions", "expected"), [(1, [1.0]), (2, [0.6, 0.8]), (3, [0.6, 0.8, 0.0])])
async def test_fewer_dimensions_have_length_one(
    client: httpx.AsyncClient, dimensions: int, expected: list[float]
) -> None:
    body = (await ask(client, dimensions=dimensions)).json()
    assert body["data"][0]["embedding"] == pytest.approx(expected)


def test_a_vector_of_zeros_stays_one() -> None:
    assert shorten((0.0, 0.0, 1.0), 2) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": None}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": ["a", 5]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": [259]}, "input"),
        ({"input": [[1], [-1]]}, "input"),
        ({"input": "x" * 1024}, "input"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 5}, "dimensions"),
        ({"dimensions": 2.0}, "dimensions"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"truncate_prompt_tokens": 5}, "truncate_prompt_tokens"),
        ({"user": 5}, "user"),
        ({"priority": -1}, "priority"),
        ({"cache_salt": "x" * 257}, "cache_salt"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_bad_fields_name_themselves(
    client: httpx.AsyncClient, engine: Any, fields: dict[str, Any], param: str
) -> None:
    answer = await client.post(ROUTE, json={"input": "hi", **fields})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert not engine.seen


async def test_a_model_without_pooling_names_the_option(client: httpx.AsyncClient, engine: Any) -> None:
    engine.pooling = None
    answer = await ask(client)
    assert answer.status_code == 400
    assert "--pooling" in answer.json()["error"]["message"]
    assert not engine.seen


async def test_unknown_model(client: httpx.AsyncClient) -> None:
    assert (await ask(client, model="other")).status_code == 404


async def test_many_inputs_go_some_at_a_time(client: httpx.AsyncClient, engine: Any) -> None:
    engine.hold_after = 0
    count = MAX_CONCURRENT + 10
    task = asyncio.create_task(ask(client, [f"{index}" for index in range(count)]))
    while len(engine.active) < MAX_CONCURRENT:
        await asyncio.sleep(0)
    assert len(engine.seen) == MAX_CONCURRENT
    engine.go.set()
    answer = await task
    assert len(answer.json()["data"]) == count
    assert [request.prompt_token_ids for request in engine.seen][:MAX_CONCURRENT] == [
        tuple(engine.encode(f"{index}")) for index in range(MAX_CONCURRENT)
    ]
    assert not engine.aborted


@pytest.mark.parametrize(
    ("error", "status"),
    [(OverloadedError("full"), 503), (EngineDeadError("gone"), 503), (ValueError("x"), 500)],
)
async def test_one_failure_ends_all(
    client: httpx.AsyncClient, engine: Any, error: Exception, status: int
) -> None:
    engine.error = error
    assert (await ask(client, ["a", "b", "c"])).status_code == status
    assert not engine.active


async def test_an_engine_that_makes_no_vector_is_an_error(client: httpx.AsyncClient, engine: Any) -> None:
    engine.embed = lambda ids: None if len(ids) > 1 else (1.0,)
    answer = await ask(client)
    assert answer.status_code == 500
    assert "no embedding" in answer.json()["error"]["message"]


async def test_a_closed_connection_aborts(url: str, engine: Any) -> None:
    engine.hold_after = 0
    async with httpx.AsyncClient(base_url=url) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(ROUTE, json={"input": ["a", "b"]}, timeout=0.3)
    async with asyncio.timeout(5):
        while engine.active:
            await asyncio.sleep(0.01)
    assert len(engine.aborted) == 2
