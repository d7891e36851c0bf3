"""Prometheus metrics: our names, and vLLM's for the same data, so that existing dashboards work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from braid.engine.protocol import EngineInfo, EngineStats

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FINISHED_REASONS = ("stop", "length", "abort", "error")

_LABELS = ("model_name", "engine")
_FIRST_TOKEN = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
)
_PER_TOKEN = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1,
    2.5,
    5,
    10,
)
_WHOLE = (
    0.01,
    0.05,
    0.1,
    0.3,
    0.5,
    0.8,
    1,
    1.5,
    2,
    2.5,
    5,
    10,
    15,
    20,
    30,
    40,
    50,
    60,
    120,
    240,
    480,
    960,
    1920,
)
_TOKENS = tuple(base * 10**power for power in range(6) for base in (1, 2, 5))

ALIASES = {
    "num_requests_running": "braid_requests_running",
    "num_requests_waiting": "braid_requests_waiting",
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
    "request_decode_time_seconds": "braid_decode_seconds",
    "request_prompt_tokens": "braid_request_prompt_tokens",
    "request_generation_tokens": "braid_request_generation_tokens",
    "cache_config": "braid_cache_config",
}
"""vLLM's name (after ``vllm:``) to ours."""
_OURS = {ours: f"vllm:{theirs}" for theirs, ours in ALIASES.items()}


class Gauges(NamedTuple):
    """What the engine says at the moment of a scrape; ``stats`` is None while it is down."""

    ready: bool
    restarts: int
    info: EngineInfo | None
    stats: EngineStats | None


class ServerMetrics:
    """Everything observed in this process. Label sets are bound once: the token path does no look-ups."""

    def __init__(self, model_name: str) -> None:
        self.registry = CollectorRegistry(auto_describe=False)
        self._values = (model_name, "0")
        histogram = self._histogram
        self.first_token = histogram(
            "time_to_first_token_seconds", "From arrival to the first token", _FIRST_TOKEN
        )
        self.inter_token = histogram(
            "inter_token_latency_seconds", "Between tokens of one request", _PER_TOKEN
        )
        self.per_token = histogram(
            "time_per_output_token_seconds", "Mean time per token after the first", _PER_TOKEN
        )
        self.whole = histogram("request_seconds", "From arrival to the last token", _WHOLE)
        self.decode = histogram("decode_seconds", "From the first token to the last", _WHOLE)
        self.prompt_tokens = histogram("request_prompt_tokens", "Prompt tokens per request", _TOKENS)
        self.output_tokens = histogram("request_generation_tokens", "Output tokens per request", _TOKENS)
        self.cached_tokens = self._counter("prompt_tokens_cached", "Prompt tokens found in the prefix cache")
        self.ignored_fields = self._counter("ignored_request_fields", "Unknown top-level request fields")
        finished = self._family("requests_finished", "Sequences that ended, by reason", "finished_reason")
        self.finished = {reason: finished.labels(*self._values, reason) for reason in FINISHED_REASONS}
        self._rejections = self._family(
            "admission_rejections", "Requests answered with 503, by reason", "reason"
        )

    def rejected(self, reason: str) -> None:
        self._rejections.labels(*self._values, reason).inc()

    def render(self, gauges: Gauges) -> bytes:
        """The exposition text."""
        families = [*self.registry.collect(), *_engine_families(gauges, self._values)]
        output = CollectorRegistry(auto_describe=False)
        output.register(_Families(with_aliases(families)))
        return generate_latest(output)

    def _histogram(self, name: str, help: str, buckets: Iterable[float]) -> Histogram:
        metric = Histogram(f"braid_{name}", help, _LABELS, registry=self.registry, buckets=tuple(buckets))
        return metric.labels(*self._values)

    def _family(self, name: str, help: str, label: str) -> Counter:
        return Counter(f"braid_{name}", help, (*_LABELS, label), registry=self.registry)

    def _counter(self, name: str, help: str) -> Counter:
        return Counter(f"braid_{name}", help, _LABELS, registry=self.registry).labels(*self._values)


class SequenceTimer:
    """Times of one sequence. ``start`` is the arrival on the ``perf_counter`` clock."""

    __slots__ = ("_first", "_last", "_metrics", "_start")

    def __init__(self, metrics: ServerMetrics, start: float) -> None:
        self._metrics = metrics
        self._start = start
        self._first = 0.0
        self._last = 0.0

    def tokens(self, count: int) -> None:
        """``count`` tokens came just now."""
        if count == 0:
            return
        now = time.perf_counter()
        if self._first == 0.0:
            self._first = now
            self._metrics.first_token.observe(now - self._start)
        else:
            self._metrics.inter_token.observe((now - self._last) / count)
        self._last = now

    def finish(self, reason: str, *, num_prompt_tokens: int, num_tokens: int, num_cached_tokens: int) -> None:
        """The sequence ended; only finished ones enter the histograms."""
        metrics = self._metrics
        metrics.finished[reason].inc()
        if reason not in ("stop", "length"):
            return
        metrics.whole.observe(time.perf_counter() - self._start)
        metrics.prompt_tokens.observe(num_prompt_tokens)
        metrics.output_tokens.observe(num_tokens)
        metrics.cached_tokens.inc(num_cached_tokens)
        if num_tokens > 1:
            metrics.decode.observe(self._last - self._first)
            metrics.per_token.observe((self._last - self._first) / (num_tokens - 1))


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


def _used_share(stats: EngineStats) -> float:
    return 1 - stats.num_free_blocks / stats.num_blocks if stats.num_blocks else 0.0


_GAUGES: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("requests_running", "Requests being computed", lambda stats: stats.num_running),
    ("requests_waiting", "Requests in the queue", lambda stats: stats.num_waiting),
    ("kv_cache_usage_ratio", "Share of KV blocks in use (0-1)", _used_share),
    ("kv_blocks_cached", "KV blocks kept for reuse", lambda stats: stats.num_cached_blocks),
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
)


def _engine_families(gauges: Gauges, labels: tuple[str, str]) -> Iterator[Metric]:
    yield _gauge("engine_up", "1 while the engine accepts requests", float(gauges.ready), labels)
    yield _total("engine_restarts", "Restarts of the engine process", gauges.restarts, labels)
    if gauges.info is not None:
        sizes = {"block_size": str(gauges.info.block_size), "num_gpu_blocks": str(gauges.info.num_blocks)}
        config = InfoMetricFamily("braid_cache_config", "Sizes of the KV cache", labels=_LABELS)
        config.add_metric(labels, sizes)
        yield config
    if gauges.stats is not None:
        for name, help, value in _GAUGES:
            yield _gauge(name, help, value(gauges.stats), labels)
        for name, help, value in _COUNTERS:
            yield _total(name, help, value(gauges.stats), labels)


def _gauge(name: str, help: str, value: float, labels: tuple[str, str]) -> Metric:
    family = GaugeMetricFamily(f"braid_{name}", help, labels=_LABELS)
    family.add_metric(labels, value)
    return family


def _total(name: str, help: str, value: float, labels: tuple[str, str]) -> Metric:
    family = CounterMetricFamily(f"braid_{name}", help, labels=_LABELS)
    family.add_metric(labels, value)
    return family
