from __future__ import annotations

import json
import logging
from typing import Any

import httpx
import pytest

from braid.core.hashing import Hasher
from braid.core.program import ProgramRef
from braid.server.guard.keys import Principal
from braid.server.lifecycle import RequestRecord
from braid.server.observe.access import AccessLine, JsonFormatter, log_request, logfmt

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi, this is private"}]}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    caplog.set_level(logging.DEBUG, "braid.access")
    return lambda: [record for record in caplog.records if record.name == "braid.access"]


@pytest.mark.parametrize("stream", [False, True])
async def test_what_a_generation_tells(client: httpx.AsyncClient, lines: Any, stream: bool) -> None:
    await client.post(CHAT, json={**BODY, "stream": stream})
    (record,) = lines()
    fields = record.msg.fields
    assert fields["path"] == CHAT
    assert fields["status"] == 200
    assert fields["finish"] == "stop"
    assert fields["cached_tokens"] == 3
    assert fields["output_tokens"] > 0
    assert 0 <= fields["ttft_ms"] <= fields["ms"]
    assert "private" not in record.getMessage()


async def test_polls_are_for_debugging(client: httpx.AsyncClient, lines: Any) -> None:
    await client.get("/health")
    await client.get("/v1/models")
    assert [record.levelno for record in lines()] == [logging.DEBUG, logging.INFO]


def test_keys_by_name_and_programs_by_hash(lines: Any) -> None:
    record = RequestRecord(request_id="req-1", principal=Principal(name="team a"))
    record.program = ProgramRef(owner="team a", program="my-secret-thread")
    log_request(record, "POST", CHAT, Hasher())
    (line,) = lines()
    assert 'key="team a"' in line.getMessage()
    assert len(line.msg.fields["program"]) == 16
    assert "secret" not in line.getMessage()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain/path.x-1:2", "plain/path.x-1:2"),
        ("two words", '"two words"'),
        ('a"b', '"a\\"b"'),
        ("a\nstatus=200", '"a\\nstatus=200"'),
        ("\x1b[31m", '"\\u001b[31m"'),
        ("ä\u202e", '"\\u00e4\\u202e"'),
        ("", '""'),
        (7, "7"),
        (1.5, "1.5"),
    ],
)
def test_logfmt_escapes(value: str | float, text: str) -> None:
    assert logfmt({"path": value}) == f"path={text}"


def _log_record(message: object, **extra: Any) -> logging.LogRecord:
    return logging.LogRecord("braid.x", logging.INFO, "f", 1, message, None, None, **extra)


def test_json_lines() -> None:
    line = json.loads(JsonFormatter().format(_log_record(AccessLine({"path": 'a"\n', "status": 200}))))
    assert line["path"] == 'a"\n'
    assert line["status"] == 200
    assert line["level"] == "info"
    assert line["ts"] > 1e9
    assert json.loads(JsonFormatter().format(_log_record("plain")))["message"] == "plain"


def test_json_lines_keep_tracebacks() -> None:
    try:
        raise ValueError("boom")
    except ValueError as error:
        record = _log_record("failed")
        record.exc_info = (type(error), error, error.__traceback__)
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert "boom" in json.loads(text)["exception"]
