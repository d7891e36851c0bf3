from __future__ import annotations

from typing import Any

import pytest

from braid.core.errors import InvalidParameterError
from braid.core.program import Applied
from braid.server.programs.identity import MAX_ID_BYTES, ROWS, Identity, Row, resolve


def headers(**named: str) -> list[tuple[bytes, bytes]]:
    return [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]


def nested(path: str, value: object) -> dict[str, Any]:
    for name in reversed(path.split(".")):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def said(row: Row, value: object) -> Identity:
    if row.header is not None:
        return resolve([(row.header.encode(), str(value).encode())], {}, "key")
    return resolve([], nested(row.label, value), "key")


def label(row: Row) -> str:
    return f"{row.client}:{row.label}"


@pytest.mark.parametrize("row", [row for row in ROWS if row.role in ("program", "session")], ids=label)
def test_every_spelling_of_a_program(row: Row) -> None:
    identity = said(row, "id-1")
    assert identity.program is not None
    assert identity.program.program == "id-1"
    assert identity.program.source == row.label
    assert identity.program.owner == "key"
    assert identity.program.parent is None
    assert not identity.program.final


@pytest.mark.parametrize("row", [row for row in ROWS if row.role not in ("program", "session")], ids=label)
def test_no_other_spelling_names_a_program(row: Row) -> None:
    identity = said(row, True if row.role == "final" else "id-1")
    assert identity.program is None
    assert identity.final == (row.role == "final")
    assert identity.cache_key == ("id-1" if row.role == "cache_key" else None)
    assert identity.group == ("id-1" if row.role == "group" else None)


CLIENTS: list[tuple[str, list[tuple[bytes, bytes]], dict[str, Any], tuple[str, str | None, str | None]]] = [
    ("claude code", headers(X_Claude_Code_Session_Id="s"), {}, ("s", None, None)),
    (
        "a subagent of claude code",
        headers(x_claude_code_session_id="s", x_claude_code_agent_id="a", x_claude_code_parent_agent_id="p"),
        {},
        ("a", "p", "s"),
    ),
    (
        "codex",
        headers(session_id="s", thread_id="t", x_client_request_id="r", x_openai_subagent="review"),
        {"prompt_cache_key": "t"},
        ("t", None, "s"),
    ),
    ("codex, an older release", [(b"session_id", b"s")], {}, ("s", None, None)),
    (
        "a subagent of codex",
        headers(session_id="s", thread_id="t2", x_codex_parent_thread_id="t"),
        {},
        ("t2", "t", "s"),
    ),
    (
        "opencode",
        headers(X_Session_Id="s", x_session_affinity="s", x_parent_session_id="p"),
        {},
        ("s", "p", None),
    ),
    ("opencode, affinity only", headers(x_session_affinity="s"), {}, ("s", None, None)),
    ("openhands", headers(x_litellm_session_id="s"), {}, ("s", None, None)),
    ("mini-swe-agent under harbor", headers(X_Session_ID="s"), {}, ("s", None, None)),
    ("aiperf", headers(X_Correlation_ID="c", X_Session_Affinity="c"), {}, ("c", None, None)),
    (
        "dynamo",
        headers(X_Dynamo_Session_ID="s", X_Dynamo_Parent_Session_ID="p"),
        {},
        ("s", "p", None),
    ),
    ("continuum", [], {"job_id": 17}, ("17", None, None)),
    ("continuum by vllm_xargs", [], {"vllm_xargs": {"job_id": "17"}}, ("17", None, None)),
    (
        "the proposal of vllm",
        [],
        {"agent_hint": {"session_id": "s", "parent_session_id": "p"}},
        ("s", "p", None),
    ),
    (
        "the proposal of sglang",
        headers(x_session_id="s"),
        {"agent_hints": {"workflow_id": "w", "agent_id": "a"}},
        ("s", None, "w"),
    ),
    ("a parent in the body", headers(thread_id="t"), {"parent_session_id": "p"}, ("t", "p", None)),
    (
        "a parent of another client",
        headers(thread_id="t", x_claude_code_parent_agent_id="p"),
        {},
        ("t", None, None),
    ),
    ("its own parent", headers(X_Session_ID="s", X_Parent_Session_ID="s"), {}, ("s", None, None)),
]


@pytest.mark.parametrize(
    ("sent", "body", "expected"), [row[1:] for row in CLIENTS], ids=[row[0] for row in CLIENTS]
)
def test_clients(
    sent: list[tuple[bytes, bytes]], body: dict[str, Any], expected: tuple[str, str | None, str | None]
) -> None:
    program = resolve(sent, body, "key").program
    assert program is not None
    assert (program.program, program.parent, program.group) == expected


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        ([], {"user": "u", "safety_identifier": "u", "metadata": {"session_id": "s"}}),
        (headers(x_client_request_id="r", x_request_id="r", x_openai_subagent="review"), {}),
        ([], {"previous_response_id": "resp_1"}),
    ],
)
def test_what_names_no_program(sent: list[tuple[bytes, bytes]], body: dict[str, Any]) -> None:
    assert resolve(sent, body, "key").program is None


ORDER = [
    ("body", {"session_id": "a", "program_id": "b", "job_id": "c"}, "a"),
    ("program_id", {"program_id": "b", "job_id": "c", "agent_hint": {"session_id": "d"}}, "b"),
    ("job_id", {"job_id": "c", "agent_hint": {"session_id": "d"}}, "c"),
    (
        "agent_hint",
        {"agent_hint": {"session_id": "d"}, "vllm_xargs": {"session_id": "e", "job_id": "f"}},
        "d",
    ),
    ("vllm_xargs", {"vllm_xargs": {"session_id": "e", "job_id": "f"}}, "e"),
]


@pytest.mark.parametrize(("body", "program"), [row[1:] for row in ORDER], ids=[row[0] for row in ORDER])
def test_the_body_beats_headers(body: dict[str, Any], program: str) -> None:
    identity = resolve(headers(X_Session_ID="h", thread_id="t"), body, "key")
    assert identity.program is not None
    assert identity.program.program == program


def test_generic_headers_beat_those_of_clients() -> None:
    everything = headers(thread_id="t", x_litellm_session_id="l", X_Dynamo_Session_ID="d", X_Session_ID="x")
    for expected in ("x", "d", "t", "l"):
        identity = resolve(everything, {}, "key")
        assert identity.program is not None
        assert identity.program.program == expected
        everything = [pair for pair in everything if pair[1] != expected.encode()]


def test_a_header_that_comes_twice_counts_once() -> None:
    identity = resolve([(b"x-session-id", b"first"), (b"x-session-id", b"second")], {}, "key")
    assert identity.program is not None
    assert identity.program.program == "first"


@pytest.mark.parametrize("value", [True, 1, "true", "1"])
@pytest.mark.parametrize("path", ["session_final", "is_last_step", "vllm_xargs.is_last_step"])
def test_final(path: str, value: object) -> None:
    identity = resolve(headers(x_session_id="s"), nested(path, value), "key")
    assert identity.program is not None
    assert identity.program.final


@pytest.mark.parametrize("value", ["false", "0", "", "no", "yes please"])
def test_a_header_is_final_only_if_it_says_so(value: str) -> None:
    assert not resolve([(b"x-dynamo-session-final", value.encode())], {}, "key").final


BAD_IDS = ["x" * (MAX_ID_BYTES + 1), "ü" * 129, "a\nb", "a\x00b", "\x1b[31m", "\u202eevil", "a\tb"]


@pytest.mark.parametrize("bad", BAD_IDS)
def test_bad_ids_are_passed_over(bad: str) -> None:
    identity = resolve(headers(thread_id="t"), {"session_id": bad}, "key")
    assert identity.program is not None
    assert identity.program.program == "t"
    (outcome,) = identity.outcomes
    assert outcome == ("session_id", Applied.IGNORED, "invalid")


def test_bytes_that_are_no_text_are_passed_over() -> None:
    assert resolve([(b"x-session-id", b"\xff\xfe")], {}, "key").program is None


@pytest.mark.parametrize("good", ["x" * MAX_ID_BYTES, "ü" * 128, "a b/c?d=e", "会話-1"])
def test_ids_are_opaque(good: str) -> None:
    identity = resolve([], {"session_id": good}, "key")
    assert identity.program is not None
    assert identity.program.program == good


def test_empty_ids_say_nothing() -> None:
    identity = resolve(headers(x_session_id="  "), {"session_id": "", "job_id": None}, "key")
    assert identity == Identity("key")


@pytest.mark.parametrize("row", [row for row in ROWS if row.body is not None], ids=label)
@pytest.mark.parametrize("value", [["x"], {"x": 1}, 1.5])
def test_wrong_types_in_the_body(row: Row, value: object) -> None:
    with pytest.raises(InvalidParameterError, match=row.label.rpartition(".")[2]) as caught:
        said(row, value)
    assert caught.value.param == row.label.partition(".")[0]


@pytest.mark.parametrize("path", ["agent_hint", "agent_hints", "vllm_xargs"])
def test_an_object_that_is_none(path: str) -> None:
    with pytest.raises(InvalidParameterError, match=f"{path} must be an object"):
        resolve([], {path: "text"}, "key")
