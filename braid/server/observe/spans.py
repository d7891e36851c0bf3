"""OpenTelemetry: one server span per request, and the three server metrics of the gen_ai conventions.

Only imported where an endpoint is given. Names are those of open-telemetry/semantic-conventions-genai. Nothing here has
text from a prompt; a program is a salted hash.
"""

from __future__ import annotations

import time

from opentelemetry.metrics import Histogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import AttributeValue
from starlette.types import Scope

from braid import __version__
from braid.core.errors import BraidError
from braid.core.hashing import Hasher
from braid.server.lifecycle import RequestRecord
from braid.server.observe.report import CallReport

PROVIDER = "braid"
_OPERATIONS = {"/v1/completions": "text_completion", "/v1/embeddings": "embeddings"}
_NS = 1_000_000_000
_DURATION = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_FIRST_TOKEN = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
)
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)

Attributes = dict[str, AttributeValue]


class Spans:
    """Tells of requests that have ended.

    Args:
        processor, reader: where spans and metrics go.
        legacy_names: token counts under their older names as well.
    """

    def __init__(
        self, processor: SpanProcessor, reader: MetricReader, hasher: Hasher, *, legacy_names: bool
    ) -> None:
        resource = Resource.create({"service.name": "braid", "service.version": __version__})
        self._traces = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._traces.add_span_processor(processor)
        self._tracer = self._traces.get_tracer("braid", __version__)
        self._metrics = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
        self._duration = self._histogram("request.duration", "Duration of a request", _DURATION)
        self._first = self._histogram("time_to_first_token", "Time to the first token", _FIRST_TOKEN)
        self._per_token = self._histogram(
            "time_per_output_token", "Time per token after the first", _PER_TOKEN
        )
        self._propagator = TraceContextTextMapPropagator()
        self._hasher = hasher
        self._legacy_names = legacy_names

    def ended(self, record: RequestRecord, scope: Scope, path: str) -> None:
        """``path`` is one of the server's own, or ``other``."""
        now, clock = time.time_ns(), time.perf_counter()
        common = self._common(record, scope, path)
        name = f"{scope['method']} {path}"
        if record.call is not None:
            name = f"{_operation(path)} {record.call.model}"
        span = self._tracer.start_span(
            name,
            context=self._propagator.extract(_headers(scope)),
            kind=SpanKind.SERVER,
            start_time=now - int((clock - record.start) * _NS),
            attributes=common,
        )
        span.set_attribute("http.request.method", scope["method"])
        span.set_attribute("http.response.status_code", record.status)
        if record.status >= 500:
            span.set_status(StatusCode.ERROR)
        if record.call is not None:
            self._describe(span, record, record.call)
            _mark_times(span, record.call, now - int(clock * _NS))
            self._measure(record.call, clock, common)
        span.end(now)

    def close(self) -> None:
        """Send what has not been sent."""
        self._traces.shutdown()
        self._metrics.shutdown()

    def _common(self, record: RequestRecord, scope: Scope, path: str) -> Attributes:
        """What spans and metrics say alike: few values each."""
        attributes: Attributes = {}
        if record.call is not None:
            attributes["gen_ai.operation.name"] = _operation(path)
            attributes["gen_ai.provider.name"] = PROVIDER
            attributes["gen_ai.request.model"] = record.call.model
            attributes["gen_ai.response.model"] = record.call.model
        server = scope.get("server")
        if server is not None:
            attributes["server.address"] = server[0]
            if server[1] is not None:
                attributes["server.port"] = server[1]
        if record.status >= 400:
            attributes["error.type"] = str(record.status)
        return attributes

    def _describe(self, span: Span, record: RequestRecord, call: CallReport) -> None:
        span.set_attribute("gen_ai.response.id", call.id)
        reasons = [reason for _, reason in sorted(call.finish_reasons.items())]
        span.set_attribute("gen_ai.response.finish_reasons", reasons)
        if record.program is not None:
            name = self._hasher.name(record.program.owner, record.program.program)
            span.set_attribute("gen_ai.conversation.id", name)
        if record.usage is not None:
            usage = record.usage()
            span.set_attribute("gen_ai.usage.input_tokens", usage.num_prompt_tokens)
            span.set_attribute("gen_ai.usage.output_tokens", usage.num_output_tokens)
            span.set_attribute("gen_ai.usage.cache_read.input_tokens", usage.num_cached_tokens)
            if self._legacy_names:
                span.set_attribute("gen_ai.usage.prompt_tokens", usage.num_prompt_tokens)
                span.set_attribute("gen_ai.usage.completion_tokens", usage.num_output_tokens)

    def _measure(self, call: CallReport, clock: float, common: Attributes) -> None:
        self._duration.record(clock - call.start, common)
        if call.ttft is not None:
            self._first.record(call.ttft, common)
        if call.per_token is not None:
            self._per_token.record(call.per_token, common)

    def _histogram(self, name: str, description: str, bounds: tuple[float, ...]) -> Histogram:
        return self._metrics.get_meter("braid", __version__).create_histogram(
            f"gen_ai.server.{name}", "s", description, explicit_bucket_boundaries_advisory=bounds
        )


def open_spans(endpoint: str, hasher: Hasher, *, legacy_names: bool) -> Spans:
    """Spans and metrics to an OTLP collector over HTTP, sent by threads of their own.

    Raises:
        BraidError: the exporter is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError as error:
        raise BraidError(f"otlp_endpoint needs {error.name}: pip install 'braid[otel]'") from None
    base = endpoint.rstrip("/")
    processor = BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{base}/v1/traces"))
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=f"{base}/v1/metrics"))
    return Spans(processor, reader, hasher, legacy_names=legacy_names)


def _operation(path: str) -> str:
    return _OPERATIONS.get(path, "chat")


def _headers(scope: Scope) -> dict[str, str]:
    """Those of W3C trace context; a client's own trace goes on here."""
    wanted = (b"traceparent", b"tracestate")
    return {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in wanted}


def _mark_times(span: Span, call: CallReport, offset: int) -> None:
    """Events at the ends of phases. ``offset`` brings the ``perf_counter`` clock to Unix time, in nanoseconds."""
    if call.first_token is None:
        return
    if call.times is not None and call.times.prefill is not None:
        first_step = call.first_token - call.times.prefill
        span.add_event("braid.queued", timestamp=_at(first_step - (call.times.queued or 0.0), offset))
        span.add_event("braid.prefill", timestamp=_at(first_step, offset))
    span.add_event("braid.first_token", timestamp=_at(call.first_token, offset))


def _at(clock: float, offset: int) -> int:
    return int(clock * _NS) + offset
