"""Prompts alone tell programs apart in real coding sessions: their block hashes stand for tokens."""

from __future__ import annotations

import gzip
import json
from array import array
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from braid.server.config import ServerConfig
from braid.server.lifecycle import Usage
from braid.server.programs.identity import Identity
from braid.server.programs.intent import Wishes
from braid.server.programs.registry import Programs, Result, Told

FOLDER = Path(__file__).parents[4] / "shared" / "data" / "agents" / "weka_raw"
UNKNOWN = 2**31
"""Stands for an answer, whose tokens are not in the traces."""


class Turn(NamedTuple):
    time: float
    agent: str
    prompt: tuple[int, ...]


def turns(requests: list[dict[str, Any]], agent: str, began: float) -> Iterator[Turn]:
    """Of a session's agent and its sub-agents."""
    for request in requests:
        if request.get("requests") is not None:
            inner = f"{agent}.{request.get('agent_id')}"
            yield from turns(request["requests"], inner, began + request["t"])
        elif request.get("hash_ids"):
            yield Turn(began + request["t"], agent, tuple(request["hash_ids"]))


def regrouped(session: Path) -> Counter[str]:
    """What lineage makes of each turn after an agent's first."""
    programs = Programs(ServerConfig())
    latest: dict[str, tuple[str, tuple[int, ...]]] = {}
    found: Counter[str] = Counter()
    requests = json.loads(gzip.decompress(session.read_bytes()))["requests"]
    for turn in sorted(turns(requests, "main", 0.0), key=lambda turn: turn.time):
        plan = programs.plan(programs.look(Told(Identity(""), Wishes()), turn.prompt, 0))
        result = Result([array("I", [UNKNOWN])], True, Usage(0, 0, 0))
        with programs.running(plan, lambda result=result: result, 1):
            pass
        known = latest.get(turn.agent)
        latest[turn.agent] = plan.program.program, turn.prompt
        if known is None:
            continue
        program, prompt = known
        is_same, is_child = plan.program.program == program, plan.program.parent == program
        found["same" if is_same else "child" if is_child else "other"] += 1
        if turn.prompt[: len(prompt)] == prompt and len(turn.prompt) > len(prompt):
            found["extends"] += 1
            found["extends, same"] += is_same
    return found


@pytest.mark.slow
def test_nearly_all_turns_are_regrouped() -> None:
    """92 % are turns of the same program, 4 % its children: a changed or rewound history cannot be told from a fork.
    The rest shares little with the turn before, or forks twice."""
    sessions = sorted(FOLDER.glob("trace_*.json.gz"))
    if not sessions:
        pytest.skip("the real traces are not here: ../shared/data beside the repository")
    found: Counter[str] = Counter()
    for session in sessions:
        found += regrouped(session)
    total = found["same"] + found["child"] + found["other"]
    assert total > 1400
    assert (found["same"] + found["child"]) / total >= 0.95
    assert found["extends"] > 1300
    assert found["extends, same"] == found["extends"]
