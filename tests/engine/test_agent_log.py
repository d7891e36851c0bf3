from __future__ import annotations

import json
import logging
import stat
from pathlib import Path
from typing import Any

import pytest

import braid.engine.agent_log as agent_log
from braid import SamplingParams
from braid.core.errors import BraidError
from braid.engine.agent_log import AgentLog
from braid.policy.agents.program import Finish, ProgramId
from braid.sched.observer import Origins, TurnStart, TurnStop
from braid.sim.belady import logged, lru, read_logs
from tests.engine.conftest import small_llm

SECRET = "the-client's-own-id"
PROGRAM = ProgramId("owner-name", SECRET)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "turns.jsonl"


def open_log(path: Path) -> AgentLog:
    return AgentLog(path, num_blocks=8, block_size=4, policy="lru")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def start(number: int) -> TurnStart:
    keys = [b"secret-a", b"secret-b"]
    return TurnStart(1.5, number, PROGRAM, PROGRAM, 9, keys, 1, Origins(4, 0, 0, 4, 1), 0.25, False, 3)


def stop(number: int) -> TurnStop:
    return TurnStop(2.5, number, PROGRAM, 10, [b"secret-a", b"secret-b"], "stop")


def test_lines(path: Path) -> None:
    log = open_log(path)
    log.started(start(0))
    log.stopped(stop(0))
    log.told(PROGRAM, Finish.TOOL, 3.0)
    log.close()
    begin, first, second, third = read(path)
    assert begin == {"event": "log", "v": 1, "block_size": 4, "num_blocks": 8, "policy": "lru"}
    name = first.pop("program")
    assert first.pop("parent") == name
    assert first == {
        "event": "start",
        "t": 1.5,
        "turn": 0,
        "tokens": 9,
        "blocks": 2,
        "like": None,
        "found": 1,
        "origins": {"device_hit": 4, "host_reload": 0, "disk_reload": 0, "recompute": 4, "compulsory": 1},
        "waited_s": 0.25,
        "again": False,
        "evicted": 3,
    }
    assert second["like"] == [0, 2]
    assert third == {"event": "told", "t": 3.0, "program": name, "finish": "tool"}


def test_nothing_private(path: Path) -> None:
    log = open_log(path)
    log.started(start(0))
    log.close()
    text = path.read_text()
    for private in (SECRET, "owner-name", "secret-a", b"secret-a".hex()):
        assert private not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_logs_name_a_program_differently(path: Path) -> None:
    for _ in range(2):
        log = open_log(path)
        log.started(start(0))
        log.close()
    lines = read(path)
    assert [line["event"] for line in lines] == ["log", "start"] * 2
    assert lines[1]["program"] != lines[3]["program"]


def test_too_many_lines_are_dropped_and_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = open_log(path)
    monkeypatch.setattr(agent_log, "MOST_PER_SECOND", 2)
    for number in range(5):
        log.started(start(number))
    assert log.num_dropped == 3
    log.stopped(stop(0))
    log.close()
    lines = read(path)
    assert {"event": "dropped", "lines": 3} in lines
    assert lines[-1]["event"] == "stop"


def test_a_full_queue_blocks_nobody(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_log, "_QUEUED", 1)
    monkeypatch.setattr(AgentLog, "_run", lambda self: None)
    log = open_log(path)
    for number in range(4):
        log.started(start(number))
    assert log.num_dropped == 3
    log._file.close()


def test_a_failing_disk_ends_the_log_only(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = open_log(path)
    log._file.close()
    with caplog.at_level(logging.WARNING):
        log.started(start(0))
        log.started(start(1))
        log.close()
    assert caplog.text.count("the agent log is off from here on") == 1
    log.started(start(2))
    assert log.num_dropped == 1


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(BraidError, match=r"cannot write the agent log .*: No such file"):
        open_log(tmp_path / "missing" / "turns.jsonl")


def test_an_engine_writes_what_a_replay_finds(tiny_llama: Path, path: Path) -> None:
    """Prompts in a row, so that nothing depends on how they overlap."""
    params = SamplingParams(temperature=0, max_tokens=4)
    with small_llm(tiny_llama, agent_log=str(path)) as llm:
        for prompt in ([5] * 9, [*[5] * 9, 6, 7], [8] * 6, [*[5] * 9, 6, 7, 9, 9]):
            llm.generate([prompt], params)
        stats = llm.stats()
    (log,) = read_logs(read(path))
    assert (log.num_blocks, log.block_size) == (400, 4)
    assert len(log.events) == 8
    assert logged(log) == lru(log, 400)
    assert logged(log).found == stats.tokens_by_origin["device_hit"] == stats.prefix_hits > 0
    assert stats.agent_log_dropped == 0
