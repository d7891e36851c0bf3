"""Check 8: constraints made to be expensive are refused or bounded, and streams beside them say what they always say.

What they cost the others in time is measured by ``benchmarks/constraints.py``; compiling alone is tested in
``tests/engine/test_grammar.py``.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from ..engine.test_grammar import HOSTILE, KILLERS
from .served import Served, at_baseline, real

TEXT = "/v1/completions"
FIELDS = {"regex": "guided_regex", "json_schema": "guided_json", "lark": "guided_grammar"}
MORE: tuple[tuple[str, Any], ...] = (
    ("json_schema", {"$ref": "#"}),
    ("json_schema", {"enum": [f"value-{number}" for number in range(100_000)]}),
    ("json_schema", {"type": "array", "minItems": 10**9, "maxItems": 10**9}),
    ("json_schema", {"$ref": "http://127.0.0.1:9/schema.json"}),
    ("json_schema", {"$ref": "file:///etc/passwd"}),
    ("json_schema", {"type": "string", "pattern": "(?=a)b"}),
    ("regex", r"(\w{1,500}){1,500}"),
    ("regex", "[" * 10_000),
    ("regex", "(" * 10_000 + "a" + ")" * 10_000),
    ("lark", "start: start start"),
    ("lark", "start: " + "(" * 5_000 + '"a"' + ")" * 5_000),
    ("lark", 'start: %json {"$ref": "#"}'),
    ("lark", "%import common.WORD\nstart: WORD"),
    ("lark", "".join(f"r{number}: r{number + 1} r{number + 1}\n" for number in range(60)) + 'r60: "a"\nstart: r0'),
)  # fmt: skip
CASES = [*HOSTILE, *MORE]
PROMPTS = ("once", "twice", "three times")


async def stream(served: Served, prompt: str) -> str:
    body = {"prompt": prompt, "max_tokens": 150, "temperature": 0, "ignore_eos": True, "stream": True}
    answer = await served.client.post(TEXT, json=body)
    assert answer.status_code == 200
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return "".join(choice["text"] for event in events[:-1] for choice in json.loads(event)["choices"])


async def ask(served: Served, kind: str, source: Any) -> httpx.Response:
    body = {"prompt": "x", "max_tokens": 8, FIELDS[kind]: source}
    return await served.client.post(TEXT, json=body)


def check_answer(kind: str, source: Any, answer: httpx.Response) -> None:
    """A refusal, an output of the asked length at most, or an end of this request alone that names its constraint."""
    shown = (kind, str(source)[:80], answer.status_code, answer.text[:300])
    if answer.status_code == 200:
        assert answer.json()["usage"]["completion_tokens"] <= 8, shown
        return
    error = answer.json()["error"]
    assert FIELDS[kind] in error["message"], shown
    assert len(error["message"]) < 400, shown
    if answer.status_code == 500:
        assert "too complex" in error["message"], shown
        assert answer.headers["x-should-retry"] == "false"
    else:
        assert answer.status_code == 400, shown


async def check(model: Path, cases: list[tuple[str, Any]]) -> None:
    async with real(model) as served:
        alone = [await stream(served, prompt) for prompt in PROMPTS]
        pid = served.engine.engine_pid
        beside = asyncio.gather(*(stream(served, prompt) for prompt in PROMPTS))
        for at in range(0, len(cases), 4):
            asked = cases[at : at + 4]
            answers = await asyncio.gather(*(ask(served, kind, source) for kind, source in asked))
            for (kind, source), answer in zip(asked, answers, strict=True):
                check_answer(kind, source, answer)
        assert await beside == alone
        assert [await stream(served, prompt) for prompt in PROMPTS] == alone
        assert served.engine.engine_pid == pid
        await at_baseline(served.engine)


async def test_hostile_constraints_are_refused_or_bounded(tiny_llama: Path) -> None:
    await check(tiny_llama, CASES)


@pytest.mark.slow
async def test_constraints_that_kill_a_compiler_kill_nobody_else(tiny_llama: Path) -> None:
    await check(tiny_llama, [*(("lark", source) for source in KILLERS.values()), *CASES] * 3)
