from __future__ import annotations

from braid.core.program import Applied, Outcome, ProgramRef
from braid.server.lifecycle import RequestRecord
from braid.server.observe.config import ObserveConfig
from braid.server.observe.metrics import Gauges, ServerMetrics
from braid.server.observe.observer import Observer
from braid.server.observe.report import CallReport

PATH = "/v1/completions"


def test_what_is_counted_when_a_request_ends() -> None:
    metrics = ServerMetrics("tiny")
    observer = Observer(metrics, ObserveConfig(), [PATH])
    program = ProgramRef(owner="", program="p", source="session_id")
    call = CallReport("id", "tiny", ((1,),), 1, "", 0.0, program, constraint="regex")
    call.call_names = ["one", "two"]
    record = RequestRecord(request_id="req", status=200, call=call)
    record.outcomes.append(Outcome("lease_s", Applied.CLIPPED, "quota"))
    observer.ended(record, {"type": "http", "method": "POST", "path": PATH})
    lines = metrics.render(Gauges(True, 0, None, None)).decode().splitlines()
    for start, end in (
        ("braid_tool_calls_total", "2.0"),
        ('braid_constrained_requests_total{engine="0",kind="regex"', "1.0"),
        ('braid_program_turns_total{engine="0",model_name="tiny",source="session_id"', "1.0"),
        (
            'braid_retention_outcomes_total{engine="0",model_name="tiny",outcome="clipped",reason="quota"',
            "1.0",
        ),
        ('braid_http_requests_total{engine="0",model_name="tiny",path="/v1/completions",status="200"', "1.0"),
    ):
        assert [line for line in lines if line.startswith(start) and line.endswith(end)], start
