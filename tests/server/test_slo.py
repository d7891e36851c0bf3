"""Limits of time that clients wish, in every dialect: to the engine, checked, and counted."""

from __future__ import annotations

from math import inf
from typing import Any

import httpx
import pytest

from braid.core.errors import InvalidParameterError
from braid.core.request import NO_SLO, Slo
from braid.server.observe.metrics import SequenceTimer, ServerMetrics
from braid.server.observe.report import CallReport
from braid.server.slo import MAX_SLO_MS, SloFields, with_headers

from .conftest import FakeEngine

TURNS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/completions": {"prompt": "hi", "n": 2},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8},
}
HEADERS = {"x-braid-slo-ttft-ms": "2000", "x-braid-slo-tbt-ms": "75"}


@pytest.mark.parametrize("path", TURNS)
async def test_every_dialect_passes_limits_on(
    client: httpx.AsyncClient, engine: FakeEngine, path: str
) -> None:
    answer = await client.post(path, json={**TURNS[path], "slo_ttft_ms": 500, "slo_tbt_ms": 50.5})
    assert answer.status_code == 200, answer.text
    assert "warning" not in answer.headers
    assert {request.slo for request in engine.seen} == {Slo(0.5, 0.0505)}
    engine.seen.clear()
    await client.post(path, json={**TURNS[path], "slo_tbt_ms": 50}, headers=HEADERS)
    assert {request.slo for request in engine.seen} == {Slo(2.0, 0.05)}
    engine.seen.clear()
    await client.post(path, json=TURNS[path])
    assert {request.slo for request in engine.seen} == {NO_SLO}


@pytest.mark.parametrize("path", TURNS)
@pytest.mark.parametrize("value", [0, -1, MAX_SLO_MS + 1, "fast", True])
async def test_what_is_no_limit_is_refused(
    client: httpx.AsyncClient, engine: FakeEngine, path: str, value: Any
) -> None:
    answer = await client.post(path, json={**TURNS[path], "slo_tbt_ms": value})
    assert answer.status_code == 400
    assert "slo_tbt_ms" in answer.text
    assert not engine.seen


@pytest.mark.parametrize("text", ["fast", "", "nan", "inf", "-3", "0", "1" * 40, "1e9"])
async def test_headers_are_checked_like_fields(client: httpx.AsyncClient, text: str) -> None:
    answer = await client.post(
        "/v1/completions", json={"prompt": "hi"}, headers={"x-braid-slo-ttft-ms": text}
    )
    assert answer.status_code == 400
    assert "x-braid-slo-ttft-ms must be milliseconds above 0" in answer.text


def test_bounds() -> None:
    assert SloFields(slo_ttft_ms=MAX_SLO_MS).slo() == Slo(MAX_SLO_MS / 1000, inf)
    assert with_headers(Slo(tbt_s=0.1), {"x-braid-slo-tbt-ms": "nonsense"}) == Slo(tbt_s=0.1)
    for value in (inf, float("nan")):
        with pytest.raises(InvalidParameterError, match="slo_ttft_ms"):
            SloFields(slo_ttft_ms=value).slo()


def test_tokens_that_miss_an_impossible_limit_are_counted() -> None:
    metrics = ServerMetrics("tiny")
    report = CallReport("id", "tiny", ((1, 2, 3),), 1, "", 0.0)
    for slo in (Slo(1e-9, 1e-9), Slo(1e9, 1e9), NO_SLO):
        timer = SequenceTimer(metrics, report, 0, slo)
        for count in (1, 1, 3):
            timer.tokens(count)
    counted = {key: counter.value for key, counter in metrics.slo_tokens.items()}
    assert counted == {("ttft", False): 1, ("ttft", True): 1, ("tbt", False): 2, ("tbt", True): 2}
