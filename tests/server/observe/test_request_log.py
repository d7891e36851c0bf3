from __future__ import annotations

import errno
import json
import logging
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from braid.core.errors import BraidError, InvalidParameterError
from braid.core.hashing import Hasher
from braid.core.program import ProgramRef
from braid.server.app import create_app
from braid.server.config import ServerContext
from braid.server.lifecycle import RequestRecord
from braid.server.observe.config import ObserveConfig
from braid.server.observe.instruments import Counter
from braid.server.observe.report import CallReport
from braid.server.observe.request_log import RequestLog

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MIB = 1 << 20


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "requests.jsonl"


class TestServer:
    @pytest.fixture
    def app(self, context: ServerContext, path: Path) -> Starlette:
        observe = ObserveConfig(request_log=path)
        return create_app(
            ServerContext(
                engine=context.engine,
                tokenizer=context.tokenizer,
                chat_template=context.chat_template,
                served_model_names=context.served_model_names,
                observe=observe,
            )
        )

    @pytest.mark.parametrize("stream", [False, True])
    async def test_a_turn(
        self, client: httpx.AsyncClient, app: Starlette, path: Path, engine: Any, stream: bool
    ) -> None:
        before = time.time()
        body = {"messages": [{"role": "user", "content": "private " * 9}], "stream": stream}
        await client.post(CHAT, json=body)
        app.state.observer.close()
        (line,) = read(path)
        tokens = len(engine.seen[0].prompt_token_ids)
        assert before - 1 <= line["arrival"] <= time.time()
        assert line["endpoint"] == CHAT
        assert line["stream"] is stream
        assert line["status"] == 200
        assert line["finish_reason"] == "stop"
        assert line["prompt_tokens"] == tokens
        assert line["cached_tokens"] == 3
        assert line["output_tokens"] == len(engine.reply.encode())
        assert 0 <= line["ttft_s"] <= line["elapsed_s"]
        assert len(line["hash_ids"]) == -(-tokens // line["block_size"])
        assert "private" not in path.read_text()

    async def test_one_line_per_prompt(self, client: httpx.AsyncClient, app: Starlette, path: Path) -> None:
        await client.post(COMPLETIONS, json={"prompt": ["abc", "abcdef"], "n": 2, "max_tokens": 4})
        app.state.observer.close()
        one, two = read(path)
        assert (one["prompt_tokens"], two["prompt_tokens"]) == (3, 6)
        assert one["n"] == 2
        assert one["output_tokens"] == 8
        assert one["finish_reason"] == "length"

    async def test_what_generates_nothing_is_left_out(
        self, client: httpx.AsyncClient, app: Starlette, path: Path
    ) -> None:
        await client.get("/v1/models")
        await client.post(COMPLETIONS, json={"prompt": ""})
        app.state.observer.close()
        assert read(path) == []

    async def test_failures_are_lines_too(
        self, client: httpx.AsyncClient, app: Starlette, path: Path, engine: Any
    ) -> None:
        engine.delta_error = "boom"
        await client.post(COMPLETIONS, json={"prompt": "x"})
        app.state.observer.close()
        (line,) = read(path)
        assert line["status"] == 500
        assert line["finish_reason"] == "error"


def record(program: ProgramRef | None = None, num_tokens: int = 40) -> RequestRecord:
    call = CallReport("id", "tiny", (tuple(range(num_tokens)),), 1, "", 0.0, program)
    call.finish_reasons[0] = "tool_calls"
    call.call_names = ["search", "x" * 1000]
    return RequestRecord(request_id="req", status=200, call=call)


def test_programs_have_turns_and_parents(path: Path) -> None:
    log = RequestLog(path, MIB, Hasher(), Counter())
    child = ProgramRef(owner="a", program="child", parent="main", final=True)
    for program in (
        ProgramRef(owner="a", program="main"),
        ProgramRef(owner="b", program="main"),
        ProgramRef(owner="a", program="main"),
        child,
        None,
    ):
        log.note(record(program), CHAT)
    log.close()
    lines = read(path)
    assert [line["turn"] for line in lines] == [1, 1, 2, 1, None]
    assert lines[0]["program"] == lines[2]["program"] == lines[3]["parent"] != lines[1]["program"]
    assert lines[3]["final"] is True
    assert lines[0]["tools"] == ["search", "x" * 64]
    assert len({line["scope"] for line in lines}) == 1


def test_the_file_is_bounded(path: Path) -> None:
    log = RequestLog(path, 20_000, Hasher(), Counter())
    for _ in range(60):
        log.note(record(num_tokens=640), CHAT)
    log.close()
    old = path.with_name("requests.jsonl.1")
    assert old.stat().st_size <= 20_000
    assert path.stat().st_size <= 20_000
    assert read(old)
    assert read(path)


def test_a_second_start_appends(path: Path) -> None:
    for _ in range(2):
        log = RequestLog(path, MIB, Hasher(), Counter())
        log.note(record(), CHAT)
        log.close()
    assert len(read(path)) == 2


class FullDisk:
    """A file on a disk that is full; ``takes`` bytes still fit."""

    def __init__(self, takes: int | None = None) -> None:
        self._takes = takes

    def tell(self) -> int:
        return 0

    def write(self, data: bytes) -> int:
        if self._takes is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._takes

    def truncate(self, size: int) -> None:
        assert size == 0

    def close(self) -> None:
        pass


@pytest.mark.parametrize("takes", [None, 5])
def test_a_full_disk_turns_the_log_off_once(
    path: Path, caplog: pytest.LogCaptureFixture, takes: int | None
) -> None:
    dropped = Counter()
    log = RequestLog(path, MIB, Hasher(), dropped)
    log._file.close()
    log._file = FullDisk(takes)  # type: ignore[assignment]
    for _ in range(5):
        log.note(record(), CHAT)
    log.close()
    assert [entry.levelno for entry in caplog.records] == [logging.WARNING]
    assert "request log is off" in caplog.text
    log.note(record(), CHAT)
    assert dropped.value >= 1


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(BraidError, match="cannot write the request log"):
        RequestLog(tmp_path / "missing" / "log", MIB, Hasher(), Counter())


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"request_log_bytes": 5}, "got 5"), ({"otlp_endpoint": "localhost:4318"}, "localhost:4318")],
)
def test_wrong_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameterError, match=message):
        ObserveConfig(**fields)
