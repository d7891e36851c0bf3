"""Whoever asks why the machine is shared as it is finds it in the log."""

from __future__ import annotations

import json
import logging
from math import inf
from pathlib import Path

import pytest

from braid import SamplingParams
from braid.engine.agent_log import AgentLog
from braid.engine.division_log import DivisionLog, in_words
from braid.policy.phases.policy import Decided, Demand, Division

from .conftest import small_llm

DEMAND = Demand(2.5, 4, 3, 700, 900, 500, 0, 0.25, inf, inf)


def test_what_was_decided_and_for_what_is_a_line_of_both_logs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "turns.jsonl"
    turns = AgentLog(path, num_blocks=8, block_size=4, policy="lru")
    with caplog.at_level(logging.INFO, logger="braid.engine.division_log"):
        DivisionLog(turns)(Decided(DEMAND, Division(False, 1, 3, 256, why="lanes, since so much waits")))
        DivisionLog(None)(Decided(DEMAND, Division(True, 4, 4, 64)))
    turns.close()
    assert [record.getMessage() for record in caplog.records] == [
        "division: lanes, since so much waits",
        "division: one step for both; 3 decodes over 700 tokens, 900 prompt tokens, waited 0.25 s",
    ]
    _, line = (json.loads(line) for line in path.read_text().splitlines())
    assert line == {
        "event": "division",
        "t": 2.5,
        "mixed": False,
        "prefill_units": 1,
        "decode_units": 3,
        "chunk": 256,
        "why": "lanes, since so much waits",
        "decodes": 3,
        "context": 700,
        "prompt_tokens": 900,
        "waited_s": 0.25,
    }


@pytest.mark.parametrize(
    ("division", "words"),
    [
        (Division(False, 1, 3, 64), "lanes of 1 and 3 units;"),
        (Division(True, 4, 4, 64, num_layers=2), "one step for both, chunks by 2 layers;"),
        (Division(True, 4, 4, 64, is_prefill_first=True), "prompts first;"),
    ],
)
def test_policies_without_reasons_are_put_into_words(division: Division, words: str) -> None:
    assert in_words(DEMAND, division).startswith(words)


def test_an_engine_tells_of_its_divisions(tiny_llama: Path, tmp_path: Path) -> None:
    path = tmp_path / "turns.jsonl"
    with small_llm(tiny_llama, phases="auto", threads=2, agent_log=str(path)) as llm:
        params = [SamplingParams(temperature=0, max_tokens=count, ignore_eos=True) for count in (60, 2)]
        llm.generate([[1, 2, 3], list(range(200))], params)
    told = [line for line in map(json.loads, path.read_text().splitlines()) if line["event"] == "division"]
    assert told
    assert all(line["decodes"] and line["prompt_tokens"] and line["why"] for line in told)
