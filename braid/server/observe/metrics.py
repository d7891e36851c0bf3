"""Prometheus metrics: our names, and vLLM's for the same data, so that existing dashboards work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf
from typing import NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from braid.core.experts import ExpertStats, LayerUse
from braid.core.metrics import Histogram
from braid.core.program import Applied, Outcome
from braid.core.request import NO_SLO, PhaseTimes, Slo
from braid.engine.protocol import EngineInfo, EngineStats, LaneStats
from braid.policy.phases.policy import Division
from braid.server.observe.expert_metrics import expert_families
from braid.server.observe.instruments import (
    LABELS,
    OTHER,
    Instruments,
    Labels,
    bounded,
    gauge,
    gauges,
    histogram,
    info,
    total,
    totals,
)
from braid.server.observe.report import CallReport

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FINISHED_REASONS = ("stop", "length", "abort", "error")
OUTCOME_REASONS = frozenset(("quota", "pressure", "unsupported", "unknown_program", "superseded"))

# fmt: off
_FIRST_TOKEN = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0
)
_PER_TOKEN = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0
)
_WHOLE = (
    0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0,
)
# fmt: on
_TOKENS = tuple(float(base * 10**power) for power in range(6) for base in (1, 2, 5))

ALIASES = {
    "num_requests_running": "braid_requests_running",
    "num_requests_waiting": "braid_requests_waiting",
    "num_requests_waiting_by_reason": "braid_requests_waiting_by_reason",
    "kv_cache_usage_perc": "braid_kv_cache_usage_ratio",
    "prefix_cache_queries": "braid_prefix_cache_queries",
    "prefix_cache_hits": "braid_prefix_cache_hits",
    "num_preemptions": "braid_preemptions",
    "prompt_tokens": "braid_prompt_tokens",
    "prompt_tokens_cached": "braid_prompt_tokens_cached",
    "generation_tokens": "braid_generation_tokens",
    "request_success": "braid_requests_finished",
    "admission_rejections": "braid_admission_rejections",
    "time_to_first_token_seconds": "braid_time_to_first_token_seconds",
    "inter_token_latency_seconds": "braid_inter_token_latency_seconds",
    "request_time_per_output_token_seconds": "braid_time_per_output_token_seconds",
    "e2e_request_latency_seconds": "braid_request_seconds",
    "request_queue_time_seconds": "braid_queue_seconds",
    "request_prefill_time_seconds": "braid_prefill_seconds",
    "request_decode_time_seconds": "braid_decode_seconds",
    "request_inference_time_seconds": "braid_inference_seconds",
    "request_prompt_tokens": "braid_request_prompt_tokens",
    "request_generation_tokens": "braid_request_generation_tokens",
    "kv_block_lifetime_seconds": "braid_kv_block_lifetime_seconds",
    "kv_block_idle_before_evict_seconds": "braid_kv_block_idle_before_evict_seconds",
    "kv_block_reuse_gap_seconds": "braid_kv_block_reuse_gap_seconds",
    "cache_config": "braid_cache_config",
}
"""vLLM's name (after ``vllm:``) to ours. Exposition adds ``_total`` to counters and ``_info`` to the last."""
_OURS = {ours: f"vllm:{theirs}" for theirs, ours in ALIASES.items()}


class Gauges(NamedTuple):
    """What the engine says at the moment of a scrape; ``stats`` is None while it is down."""

    ready: bool
    restarts: int
    info: EngineInfo | None
    stats: EngineStats | None


class MetricRow(NamedTuple):
    """One line of the table of metrics. ``name`` and ``alias`` are as they are exposed."""

    name: str
    kind: str
    labels: Labels
    help: str
    alias: str | None


class ServerMetrics:
    """Everything observed in this process. Instruments are held by name: the token path does no look-ups."""

    def __init__(self, model_name: str) -> None:
        self._labels = (model_name, "0")
        self._began = time.time()
        self.num_decoding = 0
        """Sequences between their first token and their end."""
        self.instruments = made = Instruments()
        self.first_token = made.histogram(
            "time_to_first_token_seconds", "From arrival to the first token", _FIRST_TOKEN
        )
        self.inter_token = made.histogram(
            "inter_token_latency_seconds", "Between tokens of one sequence", _PER_TOKEN
        )
        self.per_token = made.histogram(
            "time_per_output_token_seconds", "Mean time per token after the first", _PER_TOKEN
        )
        self.whole = made.histogram("request_seconds", "From arrival to the last token", _WHOLE)
        self.queue = made.histogram("queue_seconds", "In the engine's queue, until the first step", _WHOLE)
        self.prefill = made.histogram("prefill_seconds", "From the first step to the first token", _WHOLE)
        self.decode = made.histogram("decode_seconds", "From the first token to the last", _WHOLE)
        self.inference = made.histogram("inference_seconds", "From the first step to the end", _WHOLE)
        self.prompt_tokens = made.histogram("request_prompt_tokens", "Prompt tokens per sequence", _TOKENS)
        self.output_tokens = made.histogram(
            "request_generation_tokens", "Output tokens per sequence", _TOKENS
        )
        self.cached_tokens = made.counter(
            "prompt_tokens_cached", "Prompt tokens found in the prefix cache, of finished sequences"
        )
        self.ignored_fields = made.counter("ignored_request_fields", "Unknown top-level request fields")
        self.volatile_lines = made.counter(
            "volatile_lines_stripped", "Billing lines left out of system texts, so that prefixes match"
        )
        self.tool_calls = made.counter("tool_calls", "Tool calls read from replies")
        self.log_dropped = made.counter(
            "request_log_dropped", "Generations that the request log could not take"
        )
        self._finished = made.counters(
            "requests_finished", "Sequences that ended, by reason", "finished_reason"
        )
        self.finished = {reason: self._finished.of(reason) for reason in FINISHED_REASONS}
        self._rejections = made.counters(
            "admission_rejections", "Requests turned away with 429 or 503, by reason", "reason"
        )
        self._answers = made.counters("http_requests", "Answers, by path and status", "path", "status")
        self._constrained = made.counters("constrained_requests", "Calls held to a grammar, by kind", "kind")
        self._turns = made.counters(
            "program_turns", "Calls that named their program, by where they named it", "source"
        )
        self._slo = made.counters(
            "slo_tokens", "Tokens of requests that wish a limit, by whether they kept it", "slo", "outcome"
        )
        self.slo_tokens = {
            (slo, is_kept): self._slo.of(slo, "kept" if is_kept else "missed")
            for slo in ("ttft", "tbt")
            for is_kept in (True, False)
        }
        self._outcomes = made.counters(
            "retention_outcomes", "What became of retention wishes", "outcome", "reason"
        )

    def rejected(self, reason: str) -> None:
        """A request was answered with 429 or 503."""
        self._rejections.of(reason).inc()

    def answered(self, path: str, status: int) -> None:
        """``path`` is one of the server's own, or ``other``."""
        self._answers.of(path, str(status)).inc()

    def constrained(self, kind: str) -> None:
        self._constrained.of(kind).inc()

    def turn_of(self, source: str) -> None:
        """A call of a program came; ``source`` is a row of the table of identities."""
        self._turns.of(source).inc()

    def outcome(self, outcome: Outcome) -> None:
        reason = outcome.reason
        if reason is not None and reason not in OUTCOME_REASONS:
            reason = OTHER
        self._outcomes.of(outcome.applied.value, reason or "").inc()

    def render(self, gauges: Gauges) -> bytes:
        """The exposition text."""
        output = CollectorRegistry(auto_describe=False)
        output.register(_Families(with_aliases(self.families(gauges))))
        return generate_latest(output)

    def families(self, gauges: Gauges) -> Iterator[Metric]:
        yield from self.instruments.families(self._labels)
        yield gauge("start_time_seconds", "When this server started, in Unix time", self._began, self._labels)
        yield from _engine_families(gauges, self.num_decoding, self._labels)


class SequenceTimer:
    """Times of one sequence, into the metrics and into its call's report."""

    __slots__ = ("_first", "_last", "_metrics", "_number", "_report", "_slo")

    def __init__(self, metrics: ServerMetrics, report: CallReport, number: int, slo: Slo = NO_SLO) -> None:
        self._slo = slo
        self._metrics = metrics
        self._report = report
        self._number = number
        self._first = 0.0
        self._last = 0.0

    def tokens(self, count: int) -> None:
        """``count`` tokens came just now."""
        if count == 0:
            return
        now = time.perf_counter()
        if self._first == 0.0:
            self._first = now
            self._metrics.num_decoding += 1
            if self._report.first_token is None:
                self._report.first_token = now
            took = now - self._report.start
            self._metrics.first_token.observe(took)
            if self._slo.ttft_s != inf:
                self._metrics.slo_tokens["ttft", took <= self._slo.ttft_s].inc()
        else:
            took = (now - self._last) / count
            self._metrics.inter_token.observe(took)
            if self._slo.tbt_s != inf:
                self._metrics.slo_tokens["tbt", took <= self._slo.tbt_s].inc()
        self._last = now

    def finish(
        self,
        reason: str,
        *,
        num_prompt_tokens: int,
        num_tokens: int,
        num_cached_tokens: int,
        times: PhaseTimes | None = None,
    ) -> None:
        """The sequence ended; only finished ones enter the histograms."""
        metrics, report = self._metrics, self._report
        report.finish_reasons.setdefault(self._number, reason)
        report.num_tokens[self._number] = num_tokens
        report.num_cached_tokens[self._number] = num_cached_tokens
        report.times = times or report.times
        if self._first:
            report.last_token = self._last
        metrics.finished[reason].inc()
        metrics.num_decoding -= self._first > 0
        if reason not in ("stop", "length"):
            return
        metrics.whole.observe(time.perf_counter() - report.start)
        metrics.prompt_tokens.observe(num_prompt_tokens)
        metrics.output_tokens.observe(num_tokens)
        metrics.cached_tokens.inc(num_cached_tokens)
        if num_tokens > 1:
            metrics.decode.observe(self._last - self._first)
            metrics.per_token.observe((self._last - self._first) / (num_tokens - 1))
        if times is not None:
            self._observe_engine(times)

    def _observe_engine(self, times: PhaseTimes) -> None:
        if times.queued is not None:
            self._metrics.queue.observe(times.queued)
        if times.prefill is not None:
            self._metrics.prefill.observe(times.prefill)
            self._metrics.inference.observe(times.prefill + (times.decode or 0.0))


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = tuple(families)

    def collect(self) -> Iterable[Metric]:
        return self._families


def with_aliases(families: Iterable[Metric]) -> Iterator[Metric]:
    """Each family, followed by its copy under vLLM's name where there is one."""
    for family in families:
        yield family
        alias = _OURS.get(family.name)
        if alias is not None:
            copy = Metric(alias, family.documentation, family.type)
            prefix = len(family.name)
            copy.samples = [sample._replace(name=alias + sample.name[prefix:]) for sample in family.samples]
            yield copy


def metric_rows() -> list[MetricRow]:
    """All metrics of a server whose engine is up, sorted by name: what the documentation's table is checked against."""
    metrics = ServerMetrics("model")
    metrics.rejected("overloaded")
    metrics.answered("/health", 200)
    metrics.constrained("regex")
    metrics.turn_of("body")
    metrics.outcome(Outcome("min_s", Applied.APPLIED))
    stats = EngineStats(
        policy_state={"eta": 0.0},
        tiers={"disk": {}},
        lanes={"mixed": LaneStats()},
        experts=ExpertStats(layers=(LayerUse(0, 0, 0, 0),)),
    )
    families = list(metrics.families(Gauges(True, 0, _NO_INFO, stats)))
    return sorted(_row(family) for family in families)


_NO_INFO = EngineInfo(
    model="",
    architecture="",
    dtype="",
    device="",
    max_model_len=0,
    max_num_seqs=0,
    max_num_batched_tokens=0,
    vocab_size=0,
    num_blocks=0,
    block_size=0,
    kernels="",
    torch_version="",
    experts={"policy": "", "scope": "", "format": "", "prefetch": ""},
)


def _row(family: Metric) -> MetricRow:
    suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
    names = {name for sample in family.samples for name in sample.labels} - {*LABELS, "le"}
    if family.type == "info":
        names = set()
    alias = _OURS.get(family.name)
    shown = None if alias is None else alias + suffix
    return MetricRow(family.name + suffix, family.type, tuple(sorted(names)), family.documentation, shown)


def _used_share(stats: EngineStats) -> float:
    return 1 - stats.num_free_blocks / stats.num_blocks if stats.num_blocks else 0.0


_GAUGES: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("requests_running", "Requests being computed", lambda stats: stats.num_running),
    ("requests_waiting", "Requests in the engine's queue", lambda stats: stats.num_waiting),
    ("kv_cache_usage_ratio", "Share of KV blocks in use (0-1)", _used_share),
    ("kv_blocks", "KV blocks", lambda stats: stats.num_blocks),
    (
        "kv_blocks_free",
        "KV blocks that can be granted now, cached and leased ones included",
        lambda s: s.num_free_blocks,
    ),
    (
        "kv_blocks_cached",
        "KV blocks that can be found again, in use or not",
        lambda stats: stats.num_cached_blocks,
    ),
    ("kv_blocks_leased", "KV blocks held by leases", lambda stats: stats.num_leased_blocks),
    ("leases", "Leases held", lambda stats: stats.num_leases),
    ("programs", "Programs whose latest turn is remembered", lambda stats: stats.num_programs),
    (
        "oldest_newcomer_wait_seconds",
        "How long the first turn of a program has been in the queue, the longest of all",
        lambda stats: stats.oldest_newcomer_wait,
    ),
)
_COUNTERS: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    (
        "prefix_cache_queries",
        "Prompt tokens looked up in the prefix cache",
        lambda stats: stats.prefix_queries,
    ),
    ("prefix_cache_hits", "Prompt tokens found in the prefix cache", lambda stats: stats.prefix_hits),
    ("preemptions", "Requests pushed back to the queue", lambda stats: stats.num_preemptions),
    ("steps", "Steps of the engine", lambda stats: stats.num_steps),
    ("prompt_tokens", "Prompt tokens computed or found", lambda stats: stats.prompt_tokens),
    ("generation_tokens", "Tokens generated", lambda stats: stats.generation_tokens),
    ("leases_granted", "Leases given", lambda stats: stats.leases_granted),
    ("leases_clipped", "Leases cut in seconds or blocks", lambda stats: stats.leases_clipped),
    ("leases_revoked", "Leases ended early for lack of blocks", lambda stats: stats.leases_revoked),
    (
        "agent_log_dropped",
        "Turns' starts and ends that the agent log could not take",
        lambda stats: stats.agent_log_dropped,
    ),
)
_BY_LABEL: tuple[tuple[str, str, str, tuple[str, ...], Callable[[EngineStats], Mapping[str, float]]], ...] = (
    (
        "prompt_tokens_by_origin",
        "Tokens of turns that started, by where their KV came from; compulsory was never computed before",
        "source",
        ("device_hit", "host_reload", "disk_reload", "recompute", "compulsory"),
        lambda stats: stats.tokens_by_origin,
    ),
    (
        "programs_kept",
        "What became of what programs had left between turns",
        "outcome",
        ("handed over", "lost", "expired", "pressure", "superseded", "final"),
        lambda stats: stats.programs_kept,
    ),
    (
        "retention_estimates",
        "Decisions what to keep of a program, by what they rested on",
        "source",
        ("cold", "global", "kind", "tool", "program", "hint", "none"),
        lambda stats: stats.keep_sources,
    ),
)
"""Counters by one label: its usual values, which are there from the start, and where the numbers are."""
_HISTOGRAMS: tuple[tuple[str, str, Callable[[EngineStats], Histogram]], ...] = (
    (
        "kv_block_lifetime_seconds",
        "From a cached block's granting to its eviction",
        lambda stats: stats.block_lifetime,
    ),
    (
        "kv_block_idle_before_evict_seconds",
        "From a cached block's last use to its eviction",
        lambda stats: stats.block_idle_before_evict,
    ),
    (
        "kv_block_reuse_gap_seconds",
        "From a cached block's use to its next by another request",
        lambda stats: stats.block_reuse_gap,
    ),
    (
        "first_turn_ttft_seconds",
        "From arrival to first token in the engine, of programs' first turns",
        lambda stats: stats.ttft_first,
    ),
    (
        "later_turn_ttft_seconds",
        "The same of their later turns",
        lambda stats: stats.ttft_later,
    ),
    (
        "turn_preemptions",
        "How often a turn had been preempted when it ended",
        lambda stats: stats.turn_preemptions,
    ),
)


def _engine_families(read: Gauges, num_decoding: int, labels: Labels) -> Iterator[Metric]:
    yield gauge("engine_up", "1 while the engine accepts requests", float(read.ready), labels)
    yield total("engine_restarts", "Restarts of the engine process", read.restarts, labels)
    if read.info is not None:
        sizes = {"block_size": str(read.info.block_size), "num_gpu_blocks": str(read.info.num_blocks)}
        yield info("cache_config", "Sizes of the KV cache", sizes, labels)
        policy = {"policy": read.info.agent_policy}
        yield info("agent_policy", "How programs are ordered, admitted and kept", policy, labels)
        phases = {"phases": read.info.phases, "partition": read.info.partition}
        if read.info.experts:
            help = "Which experts stay in memory, who decides that, and how they are stored"
            yield info("expert_policy", help, dict(read.info.experts), labels)
        yield info("phases", "How prefill and decode share the machine, and what divides it", phases, labels)
    if read.stats is not None:
        yield from _stats_families(read.stats, num_decoding, labels)


_TIER_EVENTS = ("stored", "loaded", "failed", "evicted")


def _tier_families(tiers: Mapping[str, Mapping[str, int]], labels: Labels) -> Iterator[Metric]:
    """Of the tiers below the device, if there are any."""
    for what, help in (("slots", "Blocks that a lower tier can hold"), ("used", "Blocks that it holds")):
        values = {tier: float(counts.get(what, 0)) for tier, counts in tiers.items()}
        yield gauges(f"kv_tier_{what}", help, "tier", values, labels)
    events: dict[Labels, float] = {
        (event, tier): float(counts.get(event, 0)) for tier, counts in tiers.items() for event in _TIER_EVENTS
    }
    help = "Blocks of lower tiers by what became of them; failed ones are computed again"
    yield totals("kv_tier_blocks", help, ("event", "tier"), events, labels)


def _lane_families(stats: EngineStats, labels: Labels) -> Iterator[Metric]:
    """Of the lanes that compute, and of how the phases share the machine."""
    lanes = stats.lanes
    yield gauges(
        "lane_units",
        "Cores, or groups of SMs, of a lane's step under way",
        "lane",
        {lane: float(state.units) for lane, state in lanes.items()},
        labels,
    )
    for name, help, value in _LANE_COUNTERS:
        counts: dict[Labels, float] = {(lane,): value(state) for lane, state in lanes.items()}
        yield totals(name, help, ("lane",), counts, labels)
    yield gauges(
        "division_units",
        "Cores, or groups of SMs, by lane, as the phases share the machine now",
        "lane",
        _division_units(stats.division),
        labels,
    )


def _division_units(division: Division | None) -> dict[str, float]:
    if division is None:
        return {"mixed": 0.0, "prefill": 0.0, "decode": 0.0}
    mixed = division.is_mixed
    return {
        "mixed": float(division.decode_units if mixed else 0),
        "prefill": float(0 if mixed else division.prefill_units),
        "decode": float(0 if mixed else division.decode_units),
    }


_LANE_COUNTERS: tuple[tuple[str, str, Callable[[LaneStats], float]], ...] = (
    ("lane_steps", "Steps of a lane", lambda lane: lane.steps),
    ("lane_busy_seconds", "Time in which a lane computed", lambda lane: lane.busy_s),
    (
        "lane_restarts",
        "Threads that followed a dead one; its step's requests failed",
        lambda lane: lane.restarts,
    ),
)


def _stats_families(stats: EngineStats, num_decoding: int, labels: Labels) -> Iterator[Metric]:
    for name, help, value in _GAUGES:
        yield gauge(name, help, value(stats), labels)
    waiting: dict[str, float] = {"capacity": stats.num_waiting}
    yield gauges(
        "requests_waiting_by_reason",
        "Requests in the queue, by what they wait for",
        "reason",
        waiting,
        labels,
    )
    decoding = min(num_decoding, stats.num_running)
    phases: dict[str, float] = {
        "waiting": stats.num_waiting,
        "prefill": stats.num_running - decoding,
        "decode": decoding,
    }
    yield gauges("requests_by_phase", "Requests in the engine, by phase", "phase", phases, labels)
    for name, help, value in _COUNTERS:
        yield total(name, help, value(stats), labels)
    for name, help, label, usual, counts in _BY_LABEL:
        by_value = bounded({**dict.fromkeys(usual, 0.0), **counts(stats)})
        yield totals(name, help, (label,), {(value,): count for value, count in by_value.items()}, labels)
    yield from _tier_families(stats.tiers, labels)
    yield from _lane_families(stats, labels)
    if stats.experts is not None:
        yield from expert_families(stats.experts, labels)
    state = bounded(stats.policy_state)
    yield gauges(
        "policy_state", "What the agent policy has learnt, by its own names", "quantity", state, labels
    )
    for name, help, distribution in _HISTOGRAMS:
        yield histogram(name, help, distribution(stats), labels)
