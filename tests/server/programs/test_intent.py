from __future__ import annotations

from typing import Any

import pytest

from braid.core.errors import InvalidParameterError
from braid.core.program import Applied, Outcome, RetainIntent
from braid.server.programs.intent import IN_MEMORY_SECONDS, read_wishes

HOUR = 3600.0
EVERYTHING = frozenset(("min_s", "max_s", "priority", "lease_s", "verbs"))
LATER, NEVER = (Applied.DEFERRED, None), (Applied.IGNORED, "unsupported")


def intent_of(body: dict[str, Any], **settings: Any) -> RetainIntent:
    intent = read_wishes(body, max_ttl=HOUR, **settings).intent
    assert intent is not None
    return intent


def block(**control: Any) -> dict[str, Any]:
    return {"type": "text", "text": "x", "cache_control": {"type": "ephemeral", **control}}


ROWS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("openai ttl", {"prompt_cache_options": {"ttl": "30m"}}, {"min_s": 1800.0}),
    ("openai mode", {"prompt_cache_options": {"mode": "implicit", "ttl": "30m"}}, {"min_s": 1800.0}),
    ("openai in memory", {"prompt_cache_retention": "in_memory"}, {"max_s": IN_MEMORY_SECONDS}),
    ("openai 24h", {"prompt_cache_retention": "24h"}, {"max_s": 86400.0}),
    (
        "openai breakpoint",
        {
            "messages": [
                {"content": [{"text": "x", "prompt_cache_breakpoint": {"mode": "explicit", "ttl": "30m"}}]}
            ]
        },
        {"min_s": 1800.0},
    ),
    (
        "openai breakpoint of responses",
        {"input": [{"content": [{"prompt_cache_breakpoint": {"mode": "explicit", "ttl": "10m"}}]}]},
        {"min_s": 600.0},
    ),
    ("anthropic top level", {"cache_control": {"type": "ephemeral"}}, {"min_s": 300.0}),
    ("anthropic system", {"system": [block(ttl="1h")]}, {"min_s": HOUR}),
    ("anthropic tools", {"tools": [{"name": "f", **block()}]}, {"min_s": 300.0}),
    ("anthropic message", {"messages": [{"content": "x", "cache_control": {"ttl": "5m"}}]}, {"min_s": 300.0}),
    ("anthropic block", {"messages": [{"content": [block(ttl="1h"), block()]}]}, {"min_s": HOUR}),
    ("vllm hint", {"agent_hint": {"cache_control": {"type": "ephemeral", "ttl": 120}}}, {"min_s": 120.0}),
    ("vllm hint without a ttl", {"agent_hint": {"cache_control": {}}}, {"min_s": 300.0}),
    (
        "vllm verbs",
        {
            "agent_hint": {
                "context_management": {
                    "edits": [{"type": "offload"}, {"type": "prefetch"}, {"type": "evict"}]
                }
            }
        },
        {"verbs": ("demote", "prefetch", "evict")},
    ),
    (
        "dynamo",
        {"nvext": {"agent_hints": {"priority": 5, "osl": 1024, "iat": 250, "strict_priority": 1}}},
        {"priority": -5, "expected_out": 1024, "return_s": 0.25},
    ),
    (
        "dynamo cache control",
        {"nvext": {"cache_control": {"type": "ephemeral", "ttl": "5m"}}},
        {"min_s": 300.0},
    ),
    (
        "sglang",
        {"agent_hints": {"workflow_id": "w", "cache_ttl_ms": 1500, "expected_tool_duration_ms": 500}},
        {"min_s": 1.5, "return_s": 0.5},
    ),
    ("continuum", {"this_func_call": "pytest"}, {"tool": "pytest"}),
    ("continuum, the other name", {"last_func_call": "grep"}, {"tool": "grep"}),
    ("continuum by vllm_xargs", {"vllm_xargs": {"this_func_call": "pytest"}}, {"tool": "pytest"}),
    (
        "braid",
        {
            "agent_hints": {
                "priority": 3,
                "osl": 10,
                "deadline_s": 2.5,
                "lease_s": 60,
                "tool": {"name": "f", "expected_s": 4, "p90_s": 9},
            }
        },
        {
            "priority": 3,
            "expected_out": 10,
            "deadline_s": 2.5,
            "lease_s": 60.0,
            "tool": "f",
            "return_s": 4.0,
            "return_p90_s": 9.0,
        },
    ),
]


@pytest.mark.parametrize(("body", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_every_spelling(body: dict[str, Any], expected: dict[str, Any]) -> None:
    intent = intent_of(body)
    defaults = RetainIntent()
    for name in (
        "min_s",
        "max_s",
        "lease_s",
        "priority",
        "expected_out",
        "tool",
        "return_s",
        "return_p90_s",
        "deadline_s",
        "verbs",
    ):
        assert getattr(intent, name) == expected.get(name, getattr(defaults, name)), name
    assert len(read_wishes(body, max_ttl=HOUR).outcomes) >= 1


EVERY_ROW: list[tuple[str, dict[str, Any], dict[str, tuple[Applied, str | None]]]] = [
    ("openai ttl", {"prompt_cache_options": {"ttl": "30m"}}, {"prompt_cache_options.ttl": LATER}),
    ("openai retention", {"prompt_cache_retention": "24h"}, {"prompt_cache_retention": LATER}),
    (
        "a breakpoint",
        {"messages": [{"prompt_cache_breakpoint": {}}]},
        {"blocks.prompt_cache_breakpoint": LATER},
    ),
    ("anthropic block", {"system": [block(ttl="1h")]}, {"blocks.cache_control": LATER}),
    ("anthropic top level", {"cache_control": {"type": "ephemeral"}}, {"cache_control": LATER}),
    ("vllm ttl", {"agent_hint": {"cache_control": {"ttl": 9}}}, {"agent_hint.cache_control": LATER}),
    (
        "vllm verbs",
        {"agent_hint": {"context_management": {"edits": ["offload", "prefetch"]}}},
        {"verbs.demote": LATER, "verbs.prefetch": (Applied.APPLIED, None)},
    ),
    (
        "vllm verbs in conflict",
        {"agent_hint": {"context_management": {"edits": ["offload", "evict"]}}},
        {"verbs.demote": (Applied.IGNORED, "superseded"), "verbs.evict": LATER},
    ),
    (
        "dynamo",
        {
            "nvext": {
                "agent_hints": {"iat": 250, "priority": 1, "osl": 5, "prefix_id": "p", "total_requests": 2}
            }
        },
        {
            "nvext.agent_hints.iat": LATER,
            "nvext.agent_hints.priority": NEVER,
            "nvext.agent_hints.osl": NEVER,
            "nvext.agent_hints.prefix_id": NEVER,
            "nvext.agent_hints.total_requests": NEVER,
        },
    ),
    ("dynamo ttl", {"nvext": {"cache_control": {}}}, {"nvext.cache_control": LATER}),
    (
        "sglang",
        {"agent_hints": {"cache_ttl_ms": 5, "expected_tool_duration_ms": 5, "reuse_hint": "high"}},
        {
            "agent_hints.cache_ttl_ms": LATER,
            "agent_hints.expected_tool_duration_ms": LATER,
            "agent_hints.reuse_hint": NEVER,
        },
    ),
    (
        "continuum",
        {"this_func_call": "f", "last_func_call": "g"},
        {"this_func_call": LATER, "last_func_call": (Applied.IGNORED, "superseded")},
    ),
    (
        "braid",
        {
            "agent_hints": {
                "priority": 3,
                "osl": 10,
                "deadline_s": 2.5,
                "lease_s": 60,
                "tool": {"name": "f", "expected_s": 4, "p90_s": 9},
            }
        },
        {
            "agent_hints.priority": NEVER,
            "agent_hints.osl": NEVER,
            "agent_hints.deadline_s": NEVER,
            "agent_hints.lease_s": LATER,
            "agent_hints.tool.name": LATER,
            "agent_hints.tool.expected_s": LATER,
            "agent_hints.tool.p90_s": LATER,
        },
    ),
]


@pytest.mark.parametrize(
    ("body", "expected"), [row[1:] for row in EVERY_ROW], ids=[row[0] for row in EVERY_ROW]
)
def test_what_becomes_of_every_spelling(
    body: dict[str, Any], expected: dict[str, tuple[Applied, str | None]]
) -> None:
    told = {outcome.wish: outcome[1:] for outcome in read_wishes(body, max_ttl=HOUR).outcomes}
    assert told == expected


def test_no_wish() -> None:
    for body in (
        {},
        {"messages": [{"role": "user", "content": "x"}], "prompt_cache_key": "k"},
        {"cache_control": None},
    ):
        assert read_wishes(body, max_ttl=HOUR) == (None, (), False)


@pytest.mark.parametrize(
    ("ttl", "seconds"),
    [
        ("5m", 300),
        ("1h", 3600),
        ("90", 90),
        (90, 90),
        (0.5, 0.5),
        ("1.5m", 90),
        ("250ms", 0.25),
        (" 30M ", 1800),
        (0, 0),
    ],
)
def test_times(ttl: object, seconds: float) -> None:
    assert intent_of({"prompt_cache_options": {"ttl": ttl}}).min_s == seconds


@pytest.mark.parametrize(
    "ttl", ["soon", "", "-5m", -1, True, [5], {"s": 5}, "5 minutes", "1e3", 10**400, "9" * 400]
)
@pytest.mark.parametrize("where", ["prompt_cache_options", "cache_control", "block", "agent_hint"])
def test_times_that_are_none(ttl: object, where: str) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "prompt_cache_options": {"prompt_cache_options": {"ttl": ttl}},
        "cache_control": {"cache_control": {"ttl": ttl}},
        "block": {"messages": [{"content": [{"cache_control": {"ttl": ttl}}]}]},
        "agent_hint": {"agent_hint": {"cache_control": {"ttl": ttl}}},
    }
    with pytest.raises(InvalidParameterError, match="ttl must be"):
        read_wishes(bodies[where], max_ttl=HOUR)


@pytest.mark.parametrize(
    "body",
    [
        {"cache_control": "ephemeral"},
        {"cache_control": {"type": 5}},
        {"system": [{"cache_control": [1]}]},
        {"agent_hints": "fast"},
        {"agent_hints": {"tool": "pytest"}},
        {"agent_hints": {"priority": "high"}},
        {"agent_hints": {"osl": -1}},
        {"agent_hints": {"osl": 1.5}},
        {"agent_hints": {"osl": True}},
        {"nvext": {"agent_hints": {"iat": "LOW"}}},
        {"nvext": []},
        {"this_func_call": 5},
        {"prompt_cache_options": {"mode": "sometimes"}},
        {"prompt_cache_options": "30m"},
        {"prompt_cache_retention": "for ever"},
        {"agent_hint": {"context_management": {"edits": "evict"}}},
        {"agent_hint": {"context_management": {"edits": [5]}}},
        {"agent_hint": {"context_management": {"edits": ["evict"] * 100}}},
    ],
)
def test_wrong_types(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameterError) as caught:
        read_wishes(body, max_ttl=HOUR)
    assert caught.value.param in (next(iter(body)), "cache_control")


@pytest.mark.parametrize(
    ("body", "wish"),
    [
        ({"agent_hints": {"colour": "red"}}, "agent_hints.*"),
        ({"agent_hint": {"mood": 1}}, "agent_hint.*"),
        ({"nvext": {"agent_hints": {"mood": 1}}}, "nvext.agent_hints.*"),
        ({"prompt_cache_options": {"shape": 1}}, "prompt_cache_options.*"),
        (
            {"agent_hint": {"context_management": {"edits": [{"type": "fold"}]}}},
            "agent_hint.context_management.edits.*",
        ),
        ({"nvext": {"agent_hints": {"speculative_prefill": True}}}, "nvext.agent_hints.speculative_prefill"),
    ],
)
def test_unknown_keys_are_reported_and_not_repeated(body: dict[str, Any], wish: str) -> None:
    intent, outcomes, _ = read_wishes(body, max_ttl=HOUR)
    assert intent is None
    assert outcomes == (Outcome(wish, Applied.IGNORED, "unsupported"),)


class TestMerging:
    def test_an_explicit_field_beats_a_dialect(self) -> None:
        body = {
            "nvext": {"agent_hints": {"priority": 9, "osl": 1}},
            "agent_hints": {"priority": 2, "expected_tool_duration_s": 8, "tool": {"expected_s": 3}},
            "this_func_call": "f",
        }
        wishes = read_wishes(body, max_ttl=HOUR)
        assert wishes.intent is not None
        assert (wishes.intent.priority, wishes.intent.expected_out) == (2, 1)
        assert (wishes.intent.return_s, wishes.intent.tool) == (3.0, "f")
        reasons = {outcome.wish: outcome.reason for outcome in wishes.outcomes}
        assert reasons["nvext.agent_hints.priority"] == "superseded"
        assert reasons["agent_hints.expected_tool_duration_s"] == "superseded"
        assert reasons["agent_hints.priority"] == "unsupported"

    def test_of_two_tools_one_is_told_that_it_does_not_count(self) -> None:
        body = {"this_func_call": "ls", "last_func_call": "cat", "vllm_xargs": {"this_func_call": "ls"}}
        wishes = read_wishes(body, max_ttl=HOUR)
        assert wishes.intent is not None
        assert wishes.intent.tool == "ls"
        assert {outcome.wish: (outcome.applied, outcome.reason) for outcome in wishes.outcomes} == {
            "this_func_call": LATER,
            "last_func_call": (Applied.IGNORED, "superseded"),
            "vllm_xargs.this_func_call": LATER,
        }

    def test_the_longest_least_and_the_shortest_most(self) -> None:
        body = {
            "prompt_cache_options": {"ttl": "10m"},
            "cache_control": {"ttl": "1h"},
            "agent_hint": {"cache_control": {"ttl": 5}},
            "prompt_cache_retention": "24h",
        }
        intent = intent_of(body)
        assert (intent.min_s, intent.max_s) == (HOUR, 86400.0)
        assert set(intent.sources) == {
            "prompt_cache_options.ttl",
            "prompt_cache_retention",
            "agent_hint.cache_control",
            "cache_control",
        }

    def test_the_most_wins_a_conflict(self) -> None:
        body = {"cache_control": {"ttl": "1h"}, "prompt_cache_retention": "10m"}
        wishes = read_wishes(body, max_ttl=HOUR, acted_on=EVERYTHING)
        assert wishes.intent is not None
        assert (wishes.intent.min_s, wishes.intent.max_s) == (600.0, 600.0)
        assert Outcome("cache_control", Applied.CLIPPED, "superseded") in wishes.outcomes

    def test_caps(self) -> None:
        body = {"prompt_cache_options": {"ttl": "12h"}, "agent_hints": {"lease_s": 99_999}}
        wishes = read_wishes(body, max_ttl=HOUR, acted_on=EVERYTHING)
        assert wishes.intent is not None
        assert (wishes.intent.min_s, wishes.intent.lease_s) == (HOUR, HOUR)
        assert {outcome[1:] for outcome in wishes.outcomes} == {(Applied.CLIPPED, "quota")}
        assert intent_of(body | {"agent_hints": {}}).min_s == HOUR
        more = read_wishes(body, max_ttl=86400.0, acted_on=EVERYTHING)
        assert more.intent is not None
        assert more.intent.min_s == 43200.0

    def test_only_what_the_engine_acts_on_is_promised(self) -> None:
        body = {"agent_hints": {"lease_s": 5, "osl": 7}, "cache_control": {}}
        told = {outcome.wish: outcome[1:] for outcome in read_wishes(body, max_ttl=HOUR).outcomes}
        assert told == {
            "agent_hints.lease_s": (Applied.DEFERRED, None),
            "agent_hints.osl": (Applied.IGNORED, "unsupported"),
            "cache_control": (Applied.DEFERRED, None),
        }
        few = read_wishes(body, max_ttl=HOUR, acted_on=frozenset(("verbs",)))
        assert {outcome[1:] for outcome in few.outcomes} == {(Applied.IGNORED, "unsupported")}

    def test_the_explicit_mode_needs_marks(self) -> None:
        options = {"prompt_cache_options": {"mode": "explicit", "ttl": "30m"}}
        intent, outcomes, marked_only = read_wishes(options, max_ttl=HOUR)
        assert marked_only
        assert intent is None
        assert outcomes == (Outcome("prompt_cache_options.ttl", Applied.IGNORED, "superseded"),)
        marked = {"messages": [{"content": [{"prompt_cache_breakpoint": {"mode": "explicit"}}]}]}
        assert intent_of(options | marked).min_s == 1800.0
