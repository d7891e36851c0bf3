"""Requests nobody foresaw: a seeded grammar of bodies for every dialect, mutated, and what counts as a fault.

A case depends on the seed and its number alone, so a fault can be sent again. As a script it fuzzes a checkpoint:
``python -m tests.checks.fuzz CHECKPOINT COUNT SEED``.
"""

from __future__ import annotations

import asyncio
import copy
import json
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from braid.server.config import ServerConfig

from .bodies import ANSWERS_WITHOUT_BODY, LIMITS, PIN, VALID, concrete, know_session
from .served import Served, at_baseline, real

CONFIG = ServerConfig(max_ttl=1.0, max_programs=256)
"""Leases end soon, so that blocks come back."""
WORKERS = 6
STATUSES = frozenset((200, 400, 404, 413, 415, 429, 503))
_PATHS = (*VALID, *ANSWERS_WITHOUT_BODY)
_WEIGHTS = (10, 6, 8, 8, 2, 2, 2, 1, 1, *[0.25] * len(ANSWERS_WITHOUT_BODY))


class Case(NamedTuple):
    """One request."""

    path: str
    headers: dict[str, str]
    body: bytes


class Outcome(NamedTuple):
    status: int
    fault: str | None


# -- good bodies -------------------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 5}, "days": {"type": "integer"}},
    "required": ["city"],
    "additionalProperties": False,
}
FUNCTION = {"name": "get_weather", "description": "Weather.", "parameters": SCHEMA}
SHELL = {"name": "bash", "parameters": {"type": "object", "properties": {"command": {"type": "string"}}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "bash", "arguments": '{"command": "ls"}'}}
HOUR = {"type": "ephemeral", "ttl": "1h"}
IMAGE = {"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}

Maker = Callable[[random.Random], Any]


def _of(*values: Any) -> Maker:
    return lambda rng: copy.deepcopy(rng.choice(values))


def _messages(rng: random.Random) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = [
        {"role": rng.choice(["system", "developer"]), "content": "You are terse."},
        {"role": "user", "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a\nb"},
        {"role": "assistant", "content": "ok", "reasoning_content": "hm"},
        {"role": "user", "content": "and now? 😀"},
    ]
    return copy.deepcopy(turns[rng.choice([0, 1, 1, 5, 5]) :])


def _blocks(rng: random.Random) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = [
        {
            "role": "user",
            "content": [{"type": "text", "text": "hi", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        },
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {"command": "ls"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": "a"}]},
    ]
    return copy.deepcopy(turns[: rng.choice([1, 1, 3])])


def _items(rng: random.Random) -> Any:
    items: list[dict[str, Any]] = [
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "call_1", "name": "bash", "arguments": '{"command": "ls"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "a"},
        {"role": "user", "content": "again"},
    ]
    return copy.deepcopy(rng.choice(["hello", items, items[:1]]))


FORMATS = _of(
    {"type": "text"},
    {"type": "json_object"},
    {"type": "json_schema", "json_schema": {"name": "w", "schema": SCHEMA, "strict": True}},
)
SAMPLING: dict[str, Maker] = {
    "temperature": _of(0, 0.7, 2),
    "top_p": _of(0.1, 1),
    "top_k": _of(-1, 1, 40),
    "min_p": _of(0.0, 0.5),
    "presence_penalty": _of(-2, 0.5),
    "frequency_penalty": _of(0, 2),
    "repetition_penalty": _of(1.0, 1.2),
    "seed": _of(0, 2**31),
    "min_tokens": _of(0, 1),
    "ignore_eos": _of(True, False),
    "stop_token_ids": _of([], [258], [1, 2]),
    "stream": _of(True, True, False),
    "priority": _of(0, 5),
    "cache_salt": _of("a", ""),
    "chat_template_kwargs": _of({"enable_thinking": False}, {"x": [1]}),
    "metadata": _of({"k": "v"}),
    "session_id": _of("s1", "s2", 7),
    "parent_session_id": _of("s1"),
    "session_final": _of(True, "false"),
    "prompt_cache_key": _of("key"),
    "prompt_cache_options": _of({"mode": "implicit", "ttl": "30m"}, {"mode": "explicit"}),
    "prompt_cache_retention": _of("in_memory", "24h"),
    "agent_hint": _of({"session_id": "s3", "cache_control": {"ttl": 60}}),
    "agent_hints": _of({"lease_s": 0.5, "osl": 9, "tool": {"name": "bash", "expected_s": 1}}, {"priority": 1}),
    "nvext": _of({"agent_hints": {"priority": 3, "iat": 5}, "cache_control": {"ttl": "5m"}}),
    "vllm_xargs": _of({"job_id": "j", "is_last_step": "true"}),
    "structured_outputs": _of({"regex": "[a-c]{2}"}, {"choice": ["yes", "no"]}, {"json": SCHEMA}),
    "guided_regex": _of("(a|b)+"),
    "grammar": _of('root ::= "a" | "b"', "start: /[0-9]+/"),
    "braid": _of({"outcomes": True}),
}  # fmt: skip
OPENAI: dict[str, Maker] = {
    "model": _of("tiny", None),
    "n": _of(1, 2),
    "stop": _of("x", ["a", "b"]),
    "logit_bias": _of({"5": 100, "6": -100}),
    "stream_options": _of({"include_usage": True}),
    "response_format": FORMATS,
    "return_token_ids": _of(True),
    "prompt_logprobs": _of(1),
    "user": _of("u"),
}
TOOLS: dict[str, Maker] = {
    "tools": _of(
        [{"type": "function", "function": FUNCTION}],
        [{"type": "function", "function": SHELL}, {"type": "custom", "custom": {"name": "note"}}, {"type": "search"}],
    ),
    "tool_choice": _of("auto", "none", "required", {"type": "function", "function": {"name": "bash"}}),
    "parallel_tool_calls": _of(True, False),
    "reasoning_effort": _of("none", "low", "high"),
}  # fmt: skip
FIELDS: dict[str, dict[str, Maker]] = {
    "/v1/chat/completions": {
        **SAMPLING, **OPENAI, **TOOLS,
        "messages": _messages,
        "logprobs": _of(True),
        "top_logprobs": _of(0, 2),
        "continue_final_message": _of(False),
        "functions": _of([FUNCTION]),
        "function_call": _of("auto", {"name": "get_weather"}),
    },
    "/v1/completions": {
        **SAMPLING, **OPENAI,
        "prompt": _of("hi", ["a", "bc"], [1, 2, 3], [[1], [2, 3]], "é😀"),
        "echo": _of(True),
        "logprobs": _of(0, 2),
        "add_special_tokens": _of(True, False),
        "max_tokens": _of(0, 2),
    },
    "/v1/responses": {
        **SAMPLING, **TOOLS,
        "input": _items,
        "instructions": _of("Be terse."),
        "tools": _of([{"type": "function", **FUNCTION}, {"type": "local_shell"}], [{"type": "custom", "name": "note"}]),
        "tool_choice": _of("auto", "required", {"type": "function", "name": "get_weather"}),
        "text": _of({"format": {"type": "json_schema", "name": "w", "schema": SCHEMA}}, {"verbosity": "low"}),
        "reasoning": _of({"effort": "low", "summary": "auto"}),
        "top_logprobs": _of(0, 2),
        "include": _of(["reasoning.encrypted_content"], ["message.output_text.logprobs"]),
        "truncation": _of("auto", "disabled"),
        "store": _of(True, False),
        "max_tool_calls": _of(1),
    },
    "/v1/messages": {
        **SAMPLING,
        "messages": _blocks,
        "system": _of("Be terse.", [{"type": "text", "text": "Be terse.", "cache_control": {"type": "ephemeral"}}]),
        "tools": _of([{"name": "bash", "input_schema": SHELL["parameters"]}, {"type": "web_search", "name": "w"}]),
        "tool_choice": _of({"type": "auto"}, {"type": "any"}, {"type": "tool", "name": "bash"}, {"type": "none"}),
        "thinking": _of({"type": "enabled", "budget_tokens": 1024}, {"type": "disabled"}),
        "output_config": _of({"effort": "low"}, {"format": {"type": "json_schema", "schema": SCHEMA}}),
        "stop_sequences": _of(["x"], []),
        "cache_control": _of({"type": "ephemeral", "ttl": "5m"}),
    },
    "/v1/embeddings": {
        "input": _of("hi", ["a", "b"], [1, 2], [[1], [2, 3]]),
        "encoding_format": _of("float", "base64"),
        "dimensions": _of(1, 128),
        "cache_salt": _of("a"),
        "priority": _of(1),
    },
    "/tokenize": {
        "prompt": _of("hi", "é😀"),
        "messages": _messages,
        "add_special_tokens": _of(True, False),
        "return_token_strs": _of(True),
        **TOOLS,
    },
    "/detokenize": {"tokens": _of([1, 2, 3], [258], [])},
    PIN: {"seconds": _of(0.1, 5, 3600)},
}  # fmt: skip
FIELDS["/v1/messages/count_tokens"] = FIELDS["/v1/messages"]

# -- mutations ---------------------------------------------------------------------------------------------

TEXTS = (
    "", " ", "\x00", "\ud800", "a\udc00b", "\u202e\x1b[31m", "😀" * 50, "a" * 20_000, "<|im_end|>", "</tool_call>",
    "<tool_call>", "{{ 7*7 }}", "null", "NaN", "-1", "../../etc/passwd", "(a+)+b", "(?=x)", "[", "日本", "\n" * 600,
    "tiny", "user", "assistant", "function", "json_schema", "text", "auto", "1h", "9999999999d",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 17, 258, 259, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400,
    0.5, -0.0, 1e-320, 1e308, -1e308, float("nan"), float("inf"), 1.5e9,
)  # fmt: skip
HOSTILE_SCHEMAS: tuple[Any, ...] = (
    {"$ref": "#"},
    {"type": "array", "minItems": 10**9},
    {"type": "string", "maxLength": 10**9},
    {"enum": []},
    {"not": {}},
    {"type": "nothing"},
    {"properties": 3},
    {"allOf": [{"type": "string"}, {"type": "integer"}]},
    {"pattern": "(?<=a)b"},
    {"enum": [str(number) for number in range(3000)]},
)


def _nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def weird(rng: random.Random) -> Any:
    """A value of any type, most of them where nobody expects them."""
    kind = rng.randrange(12)
    if kind < 4:
        return rng.choice(NUMBERS)
    if kind < 8:
        return rng.choice(TEXTS)
    if kind == 8:
        return rng.choice((None, True, False))
    if kind == 9:
        return copy.deepcopy(
            rng.choice(([], {}, [[]], [None], {"": ""}, [{}], ["a"] * 300, [0] * 3000, IMAGE))
        )
    if kind == 10:
        return copy.deepcopy(rng.choice(HOSTILE_SCHEMAS))
    return _nested(rng.choice((3, 30, 59, 63, 70, 500)))


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all nodes below the root."""
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inner in entries:
        yield (*path, key)
        yield from _places(inner, (*path, key))


def _factor(rng: random.Random, body: dict[str, Any]) -> int:
    """How often to repeat a part of the body: the whole may grow to a little more than a server takes."""
    size = len(json.dumps(body))
    return max(factor for factor in (1, rng.choice((2, 20, 300))) if factor * size < 36 << 20 or factor == 1)


def mutate(rng: random.Random, body: dict[str, Any], names: Sequence[str]) -> None:
    """One edit somewhere in the body."""
    places = list(_places(body))
    if not places or rng.random() < 0.15:
        body[rng.choice((*names, "unknown", "options", ""))] = weird(rng)
        return
    *path, key = rng.choice(places)
    holder: Any = body
    for part in path:
        holder = holder[part]
    edits: tuple[Callable[[Any], Any], ...] = (
        lambda value: weird(rng),
        lambda value: weird(rng),
        lambda value: [value],
        lambda value: {"type": value},
        lambda value: str(value)[:5000],
        lambda value: value * _factor(rng, body) if isinstance(value, (str, list)) else weird(rng),
    )
    choice = rng.randrange(9)
    if choice < len(edits):
        holder[key] = edits[choice](holder[key])
    elif choice == 6 or not isinstance(holder, dict):
        del holder[key]
    elif choice == 7:
        holder[rng.choice(TEXTS)[:50]] = holder.pop(key)
    else:
        holder[rng.choice((*names, "content", "type", "role"))] = weird(rng)


def encode(rng: random.Random, body: Any) -> bytes:
    """JSON in one of its spellings; what UTF-8 cannot say becomes bytes that are none."""
    try:
        text = json.dumps(body, ensure_ascii=rng.random() < 0.6)
    except RecursionError:
        text = '{"a":' * 3000
    return text.encode("utf-8", "surrogatepass")


def spoil(rng: random.Random, data: bytes) -> bytes:
    """Damage below the level of JSON."""
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(7)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
    if kind == 2:
        return data[:at] + rng.choice((b"{", b"[", b'"', b"\\", b",", b"\x00", b"NaN", b"1e999")) + data[at:]
    if kind == 3:
        return b'{"model": 3, "messages": [], "stream": "x", ' + data[1:]
    if kind == 4:
        return b"[" * rng.choice((10, 65, 100_000)) + data
    if kind == 5:
        return b"\xef\xbb\xbf" + data
    return data + data


class Fuzzer:
    """Makes cases."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def case(self, number: int) -> Case:
        rng = random.Random(f"{self._seed}:{number}")
        path = rng.choices(_PATHS, _WEIGHTS)[0]
        fields = FIELDS.get(path, {})
        body = copy.deepcopy(VALID.get(path, {}))
        limit = LIMITS.get(path)
        if limit is not None:
            body[limit] = rng.randint(1, 4)
        for name in rng.sample(sorted(fields), min(len(fields), rng.choice((0, 1, 2, 3, 5)))):
            body[name] = fields[name](rng)
        for _ in range(rng.choice((0, 0, 1, 1, 1, 2, 4))):
            mutate(rng, body, sorted(fields))
        if limit is not None and rng.random() < 0.95:
            body.setdefault(limit, 2)
        data = encode(rng, body)
        if rng.random() < 0.07:
            data = spoil(rng, data)
        return Case(path, self._headers(rng), data)

    def _headers(self, rng: random.Random) -> dict[str, str]:
        headers = {"content-type": "application/json"}
        if rng.random() < 0.02:
            headers["content-type"] = rng.choice(("text/plain", "", "application/json; charset=utf-16"))
        for name in rng.sample(IDENTITY, rng.choice((0, 0, 0, 1, 3))):
            headers[name] = rng.choice(("s1", "s2", "a" * 300, "%00", "x\ty", "true", ""))
        return headers


IDENTITY = (
    "x-session-id", "x-parent-session-id", "x-dynamo-session-id", "x-dynamo-session-final", "session-id", "thread-id",
    "x-claude-code-session-id", "x-claude-code-agent-id", "x-codex-parent-thread-id", "x-session-affinity",
)  # fmt: skip

# -- what is a fault ---------------------------------------------------------------------------------------


def judge(case: Case, answer: httpx.Response) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    status = answer.status_code
    if status not in STATUSES:
        return f"status {status}: {answer.text[:300]}"
    if status in (429, 503):
        if not 1 <= int(answer.headers.get("retry-after", "0")) <= 120:
            return f"{status} without Retry-After"
        return None if answer.headers["content-type"] == "application/json" else "no JSON"
    if status != 200:
        return None if "error" in answer.json() else f"no error object: {answer.text[:200]}"
    if answer.headers["content-type"].startswith("text/event-stream"):
        return _judge_stream(case.path, answer.text)
    answer.json()
    return None


_ENDS = {
    "/v1/responses": ("response.completed", "response.incomplete", "response.failed"),
    "/v1/messages": ("message_stop", "error"),
}


def _judge_stream(path: str, text: str) -> str | None:
    """A stream that does not end as it must, or that ends with a fault of the server's."""
    data = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    if not data:
        return "an empty stream"
    last = {} if data[-1] == "[DONE]" else json.loads(data[-1])
    if path in _ENDS:
        if last.get("type") not in _ENDS[path]:
            return f"a stream that just stops: {data[-1][:200]}"
        error = (last.get("response") or {}).get("error") or last.get("error")
    else:
        if last and "error" not in last:
            return f"a stream that just stops: {data[-1][:200]}"
        error = last.get("error")
    return f"an error within a stream: {error}" if error else None


class Report:
    """Counts by status, and the faults."""

    def __init__(self) -> None:
        self.statuses: Counter[int] = Counter()
        self.accepted: Counter[str] = Counter()
        self.faults: list[tuple[int, Case, str]] = []

    def note(self, number: int, case: Case, outcome: Outcome) -> None:
        self.statuses[outcome.status] += 1
        self.accepted[case.path] += outcome.status == 200
        if outcome.fault is not None:
            self.faults.append((number, case, outcome.fault))

    def __str__(self) -> str:
        statuses = ", ".join(f"{count} x {status}" for status, count in sorted(self.statuses.items()))
        return f"{self.statuses.total()} requests: {statuses}; {len(self.faults)} faults"


async def send(client: httpx.AsyncClient, case: Case) -> Outcome:
    """Send one case; whatever escapes from the application is a fault."""
    try:
        answer = await client.post(concrete(case.path), content=case.body, headers=case.headers)
        return Outcome(answer.status_code, judge(case, answer))
    except Exception as error:
        return Outcome(0, f"{type(error).__name__}: {str(error)[:300]}")


async def fuzz(
    served: Served, seed: int, numbers: range, progress: Callable[[Report], None] = lambda report: None
) -> Report:
    """Send the cases of these numbers, a few at a time, and check the engine afterwards."""
    report, fuzzer, left = Report(), Fuzzer(seed), iter(numbers)
    await know_session(served.client)
    pid = served.engine.engine_pid

    async def work() -> None:
        for number in left:
            case = fuzzer.case(number)
            if "{id" in case.path:  # another case may have closed it
                await know_session(served.client)
            report.note(number, case, await send(served.client, case))
            progress(report)

    await asyncio.gather(*(work() for _ in range(WORKERS)))
    assert served.engine.engine_pid == pid, "the engine died"
    assert served.engine.restarts == 0
    await at_baseline(served.engine)
    return report


def as_json(case: Case) -> Mapping[str, Any]:
    """A case as a regression file holds it."""
    return {"path": case.path, "headers": case.headers, "body": case.body.decode("latin-1")}


def from_json(entry: Mapping[str, Any]) -> Case:
    return Case(entry["path"], dict(entry["headers"]), entry["body"].encode("latin-1"))


async def _main(checkpoint: str, count: int, seed: int) -> int:
    def show(report: Report) -> None:
        if report.statuses.total() % 500 == 0:
            print(report, flush=True)

    async with real(Path(checkpoint), CONFIG) as served:
        report = await fuzz(served, seed, range(count), show)
    print(report, dict(report.accepted))
    for number, case, fault in report.faults:
        print(json.dumps({"number": number, "why": fault, **as_json(case)})[:4000])
    return bool(report.faults)


if __name__ == "__main__":
    sys.exit(asyncio.run(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
