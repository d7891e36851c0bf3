from __future__ import annotations

from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from braid.server.observe.metrics import ALIASES

MESSAGES = [{"role": "user", "content": "hi"}]


async def test_tokenize_and_back(client: httpx.AsyncClient) -> None:
    text = "Hé, <|im_end|> 😀"
    answer = (await client.post("/tokenize", json={"prompt": text, "return_token_strs": True})).json()
    assert answer["count"] == len(answer["tokens"]) == len(answer["token_strs"])
    assert answer["max_model_len"] == 1024
    back = await client.post("/detokenize", json={"tokens": answer["tokens"]})
    assert back.json() == {"prompt": text}


async def test_tokenize_messages_counts_like_chat(client: httpx.AsyncClient) -> None:
    counted = (await client.post("/tokenize", json={"messages": MESSAGES})).json()["count"]
    chat = await client.post("/v1/chat/completions", json={"messages": MESSAGES})
    assert chat.json()["usage"]["prompt_tokens"] == counted


async def test_tokenize_counts_tools(client: httpx.AsyncClient) -> None:
    tools = [{"type": "function", "function": {"name": "f"}}, {"type": "custom", "name": "c"}, {"type": "x"}]
    fields = {"messages": MESSAGES, "tools": tools}
    counted = (await client.post("/tokenize", json=fields)).json()["count"]
    assert counted > (await client.post("/tokenize", json={"messages": MESSAGES})).json()["count"]
    chat = await client.post("/v1/chat/completions", json=fields)
    assert chat.json()["usage"]["prompt_tokens"] == counted
    bad = await client.post("/tokenize", json={**fields, "tools": [{"type": "function"}]})
    assert bad.json()["error"]["param"] == "tools"


@pytest.mark.parametrize(
    "fields", [{}, {"prompt": "x", "messages": MESSAGES}, {"prompt": 5}, {"prompt": ["x"]}, {"messages": []}]
)
async def test_bad_tokenize(client: httpx.AsyncClient, fields: dict[str, Any]) -> None:
    assert (await client.post("/tokenize", json=fields)).status_code == 400


@pytest.mark.parametrize("tokens", [None, "x", [-1], [259], [2**63], [1.0], [True], [10**30]])
async def test_bad_detokenize(client: httpx.AsyncClient, tokens: Any) -> None:
    answer = await client.post("/detokenize", json={"tokens": tokens})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "tokens"


async def test_detokenize_takes_a_context_at_most(client: httpx.AsyncClient) -> None:
    assert (await client.post("/detokenize", json={"tokens": [1] * 1024})).status_code == 200
    answer = await client.post("/detokenize", json={"tokens": [10**9] * 1025})
    assert answer.status_code == 400
    assert "1025" in answer.json()["error"]["message"]


async def test_ready_follows_the_engine(client: httpx.AsyncClient, engine: Any) -> None:
    assert (await client.get("/ready")).status_code == 200
    engine.ready = False
    answer = await client.get("/ready")
    assert answer.status_code == 503
    assert "engine" in answer.json()["error"]["message"]
    assert "retry-after" in answer.headers
    dead = await client.get("/health")
    assert (dead.status_code, dead.json()["error"]["code"]) == (503, "engine_down")


async def test_a_loading_engine_is_alive_and_not_ready(client: httpx.AsyncClient, engine: Any) -> None:
    engine.ready, engine.loading = False, True
    assert (await client.get("/health")).status_code == 200
    assert (await client.get("/ready")).status_code == 503
    for path, body in (
        ("/v1/chat/completions", {"messages": MESSAGES}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/embeddings", {"input": "x"}),
        ("/tokenize", {"prompt": "x"}),
    ):
        answer = await client.post(path, json=body)
        assert answer.status_code == 503, path
        assert "retry-after" in answer.headers
    assert (await client.get("/v1/models")).json()["data"][0]["max_model_len"] is None
    assert "torch" not in (await client.get("/version")).json()


async def test_version(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/version")).json()
    assert answer["model"] == "tiny"
    assert answer["torch"] == "2"


async def test_models(client: httpx.AsyncClient) -> None:
    answer = (await client.get("/v1/models")).json()
    assert [model["id"] for model in answer["data"]] == ["tiny", "alias"]
    assert answer["data"][0]["max_model_len"] == 1024
    missing = await client.get("/v1/models/org/other")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "model_not_found"


async def scrape(client: httpx.AsyncClient) -> dict[str, float]:
    answer = await client.get("/metrics")
    assert answer.status_code == 200
    samples = [sample for family in text_string_to_metric_families(answer.text) for sample in family.samples]
    assert all({"model_name", "engine"} <= sample.labels.keys() for sample in samples)
    ours = {"model_name", "engine", "le"}
    key = lambda sample: "/".join([sample.name, *(v for k, v in sample.labels.items() if k not in ours)])  # noqa: E731
    return {key(sample): sample.value for sample in samples if "le" not in sample.labels}


async def test_metrics_count(client: httpx.AsyncClient, engine: Any) -> None:
    before = await scrape(client)
    await client.post("/v1/chat/completions", json={"messages": MESSAGES, "made_up": 1, "other": 2})
    await client.post(
        "/v1/chat/completions", json={"messages": MESSAGES, "max_tokens": 4, "n": 2, "stream": True}
    )
    after = await scrape(client)
    tokens = len(engine.reply.encode())
    gained = {name: value - before.get(name, 0) for name, value in after.items()}
    for prefix in ("braid_", "vllm:"):
        assert gained[f"{prefix}time_to_first_token_seconds_count"] == 3
        assert gained[f"{prefix}inter_token_latency_seconds_count"] == tokens - 1 + 2 * 3
        assert gained[f"{prefix}request_generation_tokens_sum"] == tokens + 8
        assert gained[f"{prefix}prompt_tokens_cached_total"] == 9
        assert after[f"{prefix}prefix_cache_hits_total"] == 5
    assert gained["vllm:request_success_total/stop"] == 1
    assert gained["vllm:request_success_total/length"] == 2
    assert gained["vllm:e2e_request_latency_seconds_count"] == 3
    assert gained["braid_ignored_request_fields_total"] == 2
    assert after["vllm:kv_cache_usage_perc"] == pytest.approx(0.6)
    assert after["vllm:num_requests_running"] == 2
    assert after["braid_engine_up"] == 1


async def test_every_alias_is_exposed(client: httpx.AsyncClient, engine: Any) -> None:
    engine.error = None
    engine.ready = True
    from braid.core.errors import OverloadedError

    engine.error = OverloadedError("full")
    await client.post("/v1/completions", json={"prompt": "x"})
    text = (await client.get("/metrics")).text
    for alias, ours in ALIASES.items():
        assert f"vllm:{alias}" in text
        assert f"# TYPE {ours}" in text
    assert 'vllm:admission_rejections_total{engine="0",model_name="tiny",reason="overloaded"} 1.0' in text


async def test_a_probe_is_not_turned_away(client: httpx.AsyncClient, engine: Any) -> None:
    engine.ready = False
    assert (await client.get("/ready")).status_code == 503
    assert "braid_admission_rejections_total{" not in (await client.get("/metrics")).text


async def test_metrics_while_the_engine_is_down(client: httpx.AsyncClient, engine: Any) -> None:
    engine.ready = False
    samples = await scrape(client)
    assert samples["braid_engine_up"] == 0
    assert "braid_requests_running" not in samples


async def test_an_abort_is_counted(client: httpx.AsyncClient, engine: Any) -> None:
    engine.delta_error = "no"
    await client.post("/v1/completions", json={"prompt": "x"})
    samples = await scrape(client)
    assert samples["braid_requests_finished_total/error"] == 1
    assert samples["braid_time_to_first_token_seconds_count"] == 1
