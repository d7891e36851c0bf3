from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
import time
from typing import Any, ClassVar

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from braid.core.hashing import Hasher
from braid.core.program import ProgramRef
from braid.core.request import PhaseTimes
from braid.server.lifecycle import RequestRecord, Usage
from braid.server.observe.report import CallReport
from braid.server.observe.spans import Spans, open_spans

CHAT = "/v1/chat/completions"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


class Told:
    """Spans with everything they sent kept in memory."""

    def __init__(self, *, legacy_names: bool = False) -> None:
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        processor = SimpleSpanProcessor(self.exporter)
        self.spans = Spans(processor, self.reader, Hasher(), legacy_names=legacy_names)

    def metrics(self) -> dict[str, Any]:
        data = json.loads(self.reader.get_metrics_data().to_json())
        found = data["resource_metrics"][0]["scope_metrics"][0]["metrics"]
        return {metric["name"]: metric["data"]["data_points"][0] for metric in found}


def scope(**headers: str) -> dict[str, Any]:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "method": "POST", "path": CHAT, "headers": pairs, "server": ("127.0.0.1", 8000)}


def record(status: int = 200) -> RequestRecord:
    start = time.perf_counter() - 2.0
    program = ProgramRef(owner="", program="my-secret-thread")
    call = CallReport("chatcmpl-1", "tiny", ((1, 2, 3),), 1, "", start, program)
    call.first_token, call.last_token = start + 0.5, start + 1.5
    call.finish_reasons[0], call.num_tokens[0] = "tool_calls", 5
    call.times = PhaseTimes(queued=0.1, prefill=0.3, decode=1.0)
    made = RequestRecord(request_id="req-1", start=start, status=status, call=call, program=program)
    made.usage = lambda: Usage(3, 5, 2)
    return made


def test_a_generation() -> None:
    told = Told()
    told.spans.ended(record(), scope(), CHAT)
    (span,) = told.exporter.get_finished_spans()
    assert span.name == "chat tiny"
    assert span.kind is SpanKind.SERVER
    assert span.parent is None
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "braid",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ("tool_calls",),
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 2,
        "server.address": "127.0.0.1",
        "server.port": 8000,
        "http.response.status_code": 200,
    }
    assert expected.items() <= dict(span.attributes).items()
    assert "gen_ai.usage.prompt_tokens" not in span.attributes
    assert "secret" not in span.to_json()
    assert (span.end_time - span.start_time) / 1e9 == pytest.approx(2.0, abs=0.5)


def test_events_at_the_ends_of_phases() -> None:
    told = Told()
    told.spans.ended(record(), scope(), CHAT)
    (span,) = told.exporter.get_finished_spans()
    at = {event.name: (event.timestamp - span.start_time) / 1e9 for event in span.events}
    assert at == {
        "braid.queued": pytest.approx(0.1, abs=1e-3),
        "braid.prefill": pytest.approx(0.2, abs=1e-3),
        "braid.first_token": pytest.approx(0.5, abs=1e-3),
    }


def test_the_client_s_trace_goes_on() -> None:
    told = Told()
    told.spans.ended(record(), scope(traceparent=f"00-{TRACE}-{PARENT}-01"), CHAT)
    told.spans.ended(record(), scope(traceparent="nonsense"), CHAT)
    one, two = told.exporter.get_finished_spans()
    assert f"{one.context.trace_id:032x}" == TRACE
    assert f"{one.parent.span_id:016x}" == PARENT
    assert two.parent is None


def test_the_three_metrics() -> None:
    told = Told()
    told.spans.ended(record(), scope(), CHAT)
    metrics = told.metrics()
    assert metrics["gen_ai.server.request.duration"]["sum"] == pytest.approx(2.0, abs=0.5)
    assert metrics["gen_ai.server.time_to_first_token"]["sum"] == pytest.approx(0.5)
    assert metrics["gen_ai.server.time_per_output_token"]["sum"] == pytest.approx(0.25)
    assert metrics["gen_ai.server.time_per_output_token"]["explicit_bounds"][0] == 0.01
    assert metrics["gen_ai.server.request.duration"]["attributes"]["gen_ai.request.model"] == "tiny"


def test_older_names_where_asked_for() -> None:
    told = Told(legacy_names=True)
    told.spans.ended(record(), scope(), CHAT)
    (span,) = told.exporter.get_finished_spans()
    assert span.attributes["gen_ai.usage.prompt_tokens"] == 3
    assert span.attributes["gen_ai.usage.completion_tokens"] == 5


def test_failures() -> None:
    told = Told()
    told.spans.ended(record(503), scope(), CHAT)
    told.spans.ended(RequestRecord(request_id="req", status=404), scope(), "other")
    one, two = told.exporter.get_finished_spans()
    assert one.status.status_code is StatusCode.ERROR
    assert one.attributes["error.type"] == "503"
    assert two.name == "POST other"
    assert two.status.status_code is StatusCode.UNSET
    assert told.metrics()["gen_ai.server.request.duration"]["count"] == 1


class Collector(http.server.BaseHTTPRequestHandler):
    seen: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.seen.append(self.path)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


def test_a_collector_hears_of_both() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        spans = open_spans(f"http://127.0.0.1:{server.server_port}/", Hasher(), legacy_names=False)
        spans.ended(record(), scope(), CHAT)
        spans.close()
        server.shutdown()
        thread.join()
    assert {"/v1/traces", "/v1/metrics"} <= set(Collector.seen)


def test_off_is_not_imported() -> None:
    code = (
        "import sys, braid.server.app\n"
        "from braid.server.observe.config import ObserveConfig\n"
        "from braid.server.observe.metrics import ServerMetrics\n"
        "from braid.server.observe.observer import Observer\n"
        "Observer(ServerMetrics('m'), ObserveConfig(), []).close()\n"
        "print(sorted(name for name in sys.modules if name.startswith('opentelemetry.sdk')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
