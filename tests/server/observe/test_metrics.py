from __future__ import annotations

from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from braid.core.experts import ExpertStats, LayerUse
from braid.core.metrics import Histogram
from braid.core.program import Applied, Outcome
from braid.core.request import Delta, FinishReason, PhaseTimes
from braid.engine.protocol import EngineStats
from braid.server.observe.metrics import ALIASES, Gauges, SequenceTimer, ServerMetrics, metric_rows
from braid.server.observe.report import CallReport

COMPLETIONS = "/v1/completions"


def read(metrics: ServerMetrics, stats: EngineStats | None = None) -> dict[str, float]:
    text = metrics.render(Gauges(True, 0, None, stats)).decode()
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            extra = [
                value for key, value in sorted(sample.labels.items()) if key not in ("engine", "model_name")
            ]
            found[" ".join([sample.name, *extra])] = sample.value
    return found


def report() -> CallReport:
    return CallReport("id", "tiny", ((1, 2, 3),), 1, "", 0.0)


def test_times_of_a_sequence() -> None:
    metrics, told = ServerMetrics("tiny"), report()
    timer = SequenceTimer(metrics, told, 0)
    for count in (1, 0, 2):
        timer.tokens(count)
    times = PhaseTimes(queued=0.2, prefill=0.3, decode=0.4)
    timer.finish("stop", num_prompt_tokens=3, num_tokens=3, num_cached_tokens=2, times=times)
    values = read(metrics)
    assert values["braid_time_to_first_token_seconds_count"] == 1
    assert values["braid_inter_token_latency_seconds_count"] == 1
    assert values["vllm:request_queue_time_seconds_sum"] == pytest.approx(0.2)
    assert values["vllm:request_prefill_time_seconds_sum"] == pytest.approx(0.3)
    assert values["vllm:request_inference_time_seconds_sum"] == pytest.approx(0.7)
    assert values["vllm:request_success_total stop"] == 1
    assert values["braid_prompt_tokens_cached_total"] == 2
    assert told.finish_reasons == {0: "stop"}
    assert told.num_tokens == {0: 3}
    assert told.ttft is not None


def test_what_did_not_finish_enters_no_histogram() -> None:
    metrics, told = ServerMetrics("tiny"), report()
    timer = SequenceTimer(metrics, told, 0)
    timer.finish("abort", num_prompt_tokens=3, num_tokens=0, num_cached_tokens=0)
    values = read(metrics)
    assert values["braid_request_seconds_count"] == 0
    assert values["braid_requests_finished_total abort"] == 1
    assert told.finish_reason == "abort"
    assert told.ttft is None


def test_the_reason_that_a_client_saw_stays() -> None:
    told = report()
    told.finish_reasons[0] = "tool_calls"
    SequenceTimer(ServerMetrics("tiny"), told, 0).finish(
        "stop", num_prompt_tokens=3, num_tokens=1, num_cached_tokens=0
    )
    assert told.finish_reason == "tool_calls"
    told.finish_reasons[1] = "stop"
    assert told.finish_reason == "mixed"


def test_the_engine_s_numbers() -> None:
    stats = EngineStats(
        num_blocks=10,
        num_free_blocks=4,
        num_waiting=3,
        num_leases=2,
        num_leased_blocks=5,
        leases_revoked=1,
        num_programs=7,
        block_lifetime=Histogram((1.0, 2.0), (1, 0, 2), 9.0),
    )
    values = read(ServerMetrics("tiny"), stats)
    assert values["vllm:kv_cache_usage_perc"] == pytest.approx(0.6)
    assert values["vllm:num_requests_waiting_by_reason capacity"] == 3
    assert values["braid_leases"] == 2
    assert values["braid_kv_blocks_leased"] == 5
    assert values["braid_leases_revoked_total"] == 1
    assert values["braid_programs"] == 7
    assert values["vllm:kv_block_lifetime_seconds_bucket 2.0"] == 1
    assert values["vllm:kv_block_lifetime_seconds_count"] == 3


def test_what_becomes_of_programs() -> None:
    stats = EngineStats(
        tokens_by_origin={"device_hit": 80, "recompute": 5},
        programs_kept={"handed over": 3, "pressure": 1},
        keep_sources={"tool": 2, "invented": 1},
        policy_state={"eta": -0.01} | {f"more_{number}": 1.0 for number in range(100)},
        oldest_newcomer_wait=4.5,
        ttft_first=Histogram((1.0, 2.0), (1, 0, 2), 9.0),
        turn_preemptions=Histogram((0.0, 1.0), (3, 1, 0), 1.0),
        agent_log_dropped=6,
        tiers={"disk": {"slots": 50, "used": 20, "stored": 30, "loaded": 4, "failed": 1, "evicted": 10}},
    )
    values = read(ServerMetrics("tiny"), stats)
    assert values["braid_prompt_tokens_by_origin_total device_hit"] == 80
    assert values["braid_prompt_tokens_by_origin_total recompute"] == 5
    assert values["braid_prompt_tokens_by_origin_total disk_reload"] == 0
    assert values["braid_programs_kept_total handed over"] == 3
    assert values["braid_programs_kept_total expired"] == 0
    assert values["braid_retention_estimates_total tool"] == 2
    assert values["braid_policy_state eta"] == -0.01
    assert values["braid_oldest_newcomer_wait_seconds"] == 4.5
    assert values["braid_first_turn_ttft_seconds_bucket 2.0"] == 1
    assert values["braid_later_turn_ttft_seconds_count"] == 0
    assert values["braid_turn_preemptions_sum"] == 1
    assert values["braid_agent_log_dropped_total"] == 6
    assert (values["braid_kv_tier_slots disk"], values["braid_kv_tier_used disk"]) == (50, 20)
    assert values["braid_kv_tier_blocks_total stored disk"] == 30
    assert values["braid_kv_tier_blocks_total failed disk"] == 1
    assert len([name for name in values if name.startswith("braid_policy_state")]) == 64


def test_experts() -> None:
    assert not [name for name in read(ServerMetrics("tiny"), EngineStats()) if "expert" in name]
    experts = ExpertStats(
        total=64,
        slots=16,
        slot_bytes=4096,
        cycle=8,
        layers=(LayerUse(3, 20, 4, 1), LayerUse(13, 0, 0, 0)),
        bytes_by_cause={"demand": 20480, "prefetch": 4096},
        prefetched={"useful": 1},
        stall_s=0.5,
        link_busy_s=2.5,
        failed_reads=3,
        computed={"device": 21, "host": 4},
    )
    assert experts.resident == 16
    values = read(ServerMetrics("tiny"), EngineStats(experts=experts))
    assert (values["braid_experts"], values["braid_expert_slots"]) == (64, 16)
    assert (values["braid_expert_slot_bytes"], values["braid_expert_cycle"]) == (4096, 8)
    assert (values["braid_experts_resident 0"], values["braid_experts_resident 1"]) == (3, 13)
    assert values["braid_expert_uses_total 0 hit"] == 20
    assert values["braid_expert_uses_total 0 bypass"] == 1
    assert values["braid_expert_read_bytes_total demand"] == 20480
    assert values["braid_expert_read_bytes_total prefill"] == 0
    assert values["braid_expert_prefetches_total useful"] == 1
    assert values["braid_expert_stall_seconds_total"] == 0.5
    assert values["braid_expert_link_busy_seconds_total"] == 2.5
    assert values["braid_expert_failed_reads_total"] == 3
    assert (values["braid_expert_computed_total device"], values["braid_expert_computed_total host"]) == (
        21,
        4,
    )


def test_without_an_engine() -> None:
    values = read(ServerMetrics("tiny"))
    assert values["braid_engine_up"] == 1
    assert "braid_requests_running" not in values


def test_outcomes_have_known_reasons_only() -> None:
    metrics = ServerMetrics("tiny")
    metrics.outcome(Outcome("min_s", Applied.CLIPPED, "quota"))
    metrics.outcome(Outcome("min_s", Applied.IGNORED, "whatever a client wrote"))
    metrics.outcome(Outcome("min_s", Applied.APPLIED))
    values = read(metrics)
    assert values["braid_retention_outcomes_total clipped quota"] == 1
    assert values["braid_retention_outcomes_total ignored other"] == 1
    assert values["braid_retention_outcomes_total applied "] == 1


def test_the_table_has_every_metric_and_every_alias() -> None:
    rows = metric_rows()
    names = [row.name for row in rows]
    assert len(set(names)) == len(names) >= 40
    assert len([row for row in rows if row.alias is not None]) == len(ALIASES) >= 20
    assert all(row.help for row in rows)
    by_name = {row.name: row for row in rows}
    assert by_name["braid_requests_finished_total"].labels == ("finished_reason",)
    assert by_name["braid_requests_finished_total"].alias == "vllm:request_success_total"
    assert by_name["braid_cache_config_info"].alias == "vllm:cache_config_info"
    assert by_name["braid_inter_token_latency_seconds"].kind == "histogram"


async def test_everything_exposed_is_in_the_table(client: httpx.AsyncClient) -> None:
    await client.post(COMPLETIONS, json={"prompt": "x"})
    text = (await client.get("/metrics")).text
    known = {name for row in metric_rows() for name in (row.name, row.alias) if name}
    exposed = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert exposed - known == set()


async def test_the_engine_s_times_arrive(client: httpx.AsyncClient, engine: Any) -> None:
    async def deltas(request: Any) -> Any:
        yield Delta(request.request_id, (65,), None, 0)
        times = PhaseTimes(queued=0.25, prefill=0.5, decode=0.75)
        yield Delta(request.request_id, (66,), None, 0, FinishReason.STOP, times=times)

    engine.generate = deltas
    await client.post(COMPLETIONS, json={"prompt": "x"})
    lines = (await client.get("/metrics")).text.splitlines()
    sums = {line.split("{")[0]: float(line.split()[-1]) for line in lines if "_sum{" in line}
    assert sums["braid_queue_seconds_sum"] == 0.25
    assert sums["braid_inference_seconds_sum"] == 1.25


async def test_answers_by_path(client: httpx.AsyncClient) -> None:
    for number in range(300):
        await client.get(f"/made-up-{number}")
    await client.get("/v1/models")
    text = (await client.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("braid_http_requests_total")]
    assert any('path="/v1/models",status="200"' in line for line in lines)
    assert any('path="other",status="404"' in line and line.endswith(" 300.0") for line in lines)
    assert "made-up" not in text
