from __future__ import annotations

import http.client
import json
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from braid.core.errors import CapacityError
from braid.lab.replay.asking.bodies import Bodies, write_bodies
from braid.lab.replay.asking.headers import header_lines
from braid.lab.replay.asking.target import ServerFacts, Target, TargetError, Vocabulary, probe
from braid.lab.replay.asking.words import WORDS
from braid.lab.replay.files import REQUEST, Form, History
from braid.lab.replay.planning.content import prompt_words
from braid.lab.replay.planning.plan import PLAN_SCHEMA, PlanOptions, ReplayPlan
from braid.lab.replay.stub.server import running
from braid.lab.replay.stub.state import StubOptions
from braid.lab.table import TraceError

TARGET = Target(url="http://localhost:8000/v1")
VOCABULARY = Vocabulary(WORDS[:70], tuple(range(95, 165)))
FORMS: tuple[Form, ...] = ("ids", "text", "chat")


def plan_of(rows: list[dict[str, Any]], **options: Any) -> ReplayPlan:
    usual = {
        "turn": 0, "parent": None, "start_s": 0.0, "after": [], "delay_s": 0.0, "out_tok": 4, "cancel_after_tok": None,
        "shared_tok": 0,
    }  # fmt: skip
    full = [
        {**usual, "request": at, "group": at, "program": f"row {at}", "source_row": at}
        | {"segment_keys": [at], "segment_toks": [row["in_tok"]]}
        | row
        for at, row in enumerate(rows)
    ]
    frame = pl.DataFrame(full, schema=dict(PLAN_SCHEMA))
    return ReplayPlan(
        frame=frame,
        options=PlanOptions(**options),
        source="made for tests",
        data_sha256="",
        unsendable={},
        notes=(),
        sha256="",
    )


def facts_of(form: Form = "ids", **fields: Any) -> ServerFacts:
    known = {"model": 'm"1', "max_tokens": None, "server": "", "vocabulary": VOCABULARY}
    return ServerFacts(**{**known, "form": form, **fields})


class Written:
    """The folder, read back."""

    def __init__(self, bodies: Bodies, folder: Path) -> None:
        self.bodies = bodies
        self.requests = np.load(folder / "requests.npy")
        self.after = np.load(folder / "after.npy")
        self.data = (folder / "bytes.bin").read_bytes()

    def pieces(self, number: int) -> tuple[bytes, bytes, bytes, bytes]:
        row = self.requests[number]
        at = [row[name] for name in ("headers_at", "head_at", "new_at", "tail_at", "end_at")]
        first, second, third, fourth = (self.data[one:two] for one, two in pairwise(at))
        return first, second, third, fourth

    def headers(self, number: int) -> bytes:
        return self.pieces(number)[0]

    def body(self, number: int, history: bytes = b"") -> dict[str, Any]:
        _, head, new, tail = self.pieces(number)
        value: dict[str, Any] = json.loads(head + history + new + tail)
        return value

    def waits(self, number: int) -> list[int]:
        row = self.requests[number]
        return self.after[row["after_from"] : row["after_to"]].tolist()


def write(
    folder: Path, plan: ReplayPlan, facts: ServerFacts, history: History = "recorded", target: Target = TARGET
) -> Written:
    return Written(write_bodies(plan, facts, target, folder, history=history), folder)


MIXED = [
    {"in_tok": 3, "segment_keys": [5], "segment_toks": [3], "out_tok": 1},
    {
        "in_tok": 700,
        "segment_keys": [5, -9],
        "segment_toks": [512, 188],
        "start_s": 2.5,
        "cancel_after_tok": 0,
    },
    {
        "in_tok": 600,
        "segment_keys": [5, 6],
        "segment_toks": [512, 88],
        "after": [0, 1],
        "delay_s": 0.25,
        "group": 1,
    },
]


def test_prompts_are_the_words_of_their_segments(tmp_path: Path) -> None:
    plan = plan_of(MIXED, seed=11)
    written = write(tmp_path, plan, facts_of())
    for number, row in enumerate(MIXED):
        words = prompt_words(row["segment_keys"], row["segment_toks"], 11, 70)
        assert written.body(number)["prompt"] == [VOCABULARY.ids[word] for word in words]
    one, two = (written.body(number)["prompt"] for number in (1, 2))
    assert one[:512] == two[:512]
    assert one[512:600] != two[512:]


def test_long_prompts_and_many_at_once_are_cut_at_the_right_places(tmp_path: Path) -> None:
    sizes = [[3000], [5000, 200], [512] * 60, [20_000], [1], [4000, 4000], [100, 9000, 7]]
    rows = [
        {
            "in_tok": sum(toks),
            "segment_keys": [10 * at + one for one in range(len(toks))],
            "segment_toks": toks,
        }
        for at, toks in enumerate(sizes)
    ]
    written = write(tmp_path, plan_of(rows, seed=3), facts_of())
    for number, row in enumerate(rows):
        words = prompt_words(row["segment_keys"], row["segment_toks"], 3, 70)
        assert written.body(number)["prompt"] == (95 + words).tolist()


@pytest.mark.parametrize("form", FORMS)
def test_every_body_asks_for_what_was_planned(tmp_path: Path, form: Form) -> None:
    written = write(tmp_path, plan_of(MIXED), facts_of(form))
    for number in range(3):
        body = written.body(number)
        wanted = 1 if number == 0 else 4
        assert (body["model"], body["max_tokens"], body["min_tokens"]) == ('m"1', wanted, wanted)
        assert body["stream"] is True
        assert body["ignore_eos"] is True
        assert body["temperature"] == 0
    path = "/v1/chat/completions" if form == "chat" else "/v1/completions"
    assert written.bodies.request_line == f"POST {path} HTTP/1.1"
    assert written.bodies.form == form
    assert written.bodies.num_bytes == len(written.data)


@pytest.mark.parametrize(("form", "overhead"), [("ids", 0), ("text", 2), ("chat", 31)])
def test_what_the_server_adds_is_left_out(tmp_path: Path, form: Form, overhead: int) -> None:
    written = write(tmp_path, plan_of(MIXED[1:2] + MIXED[2:]), facts_of(form, overhead_tokens=overhead))
    body = written.body(0)
    text = body["messages"][0]["content"] if form == "chat" else body["prompt"]
    num = len(text) if form == "ids" else len(text.split()) - 1
    assert num == 700 - overhead
    assert written.bodies.notes == ()


@pytest.mark.parametrize(("form", "least"), [("ids", 1), ("text", 0), ("chat", 0)])
def test_a_prompt_shorter_than_what_the_server_adds(tmp_path: Path, form: Form, least: int) -> None:
    written = write(tmp_path, plan_of(MIXED), facts_of(form, overhead_tokens=5))
    body = written.body(0)
    text = body["messages"][0]["content"] if form == "chat" else body["prompt"]
    assert (len(text) if form == "ids" else len(text.split()) - 1) == least
    assert written.bodies.num_longer == 1
    assert "longer than planned: 1" in written.bodies.notes[0]


def test_records_say_when_and_after_what(tmp_path: Path) -> None:
    rows = [*MIXED, {"in_tok": 5, "start_s": None}]
    written = write(tmp_path, plan_of(rows), facts_of())
    requests = written.requests
    assert requests.dtype == REQUEST
    assert requests["group"].tolist() == [0, 1, 1, 3]
    assert requests["start_s"][:3].tolist() == [0.0, 2.5, 0.0]
    assert np.isnan(requests["start_s"][3])
    assert requests["delay_s"].tolist() == [0, 0, 0.25, 0]
    assert requests["cancel_after_tok"].tolist() == [-1, 0, -1, -1]
    assert requests["history_of"].tolist() == [-1] * 4
    assert [written.waits(number) for number in range(4)] == [[], [], [0, 1], []]
    assert written.after.dtype == np.uint32


def test_common_headers(tmp_path: Path) -> None:
    written = write(
        tmp_path, plan_of(MIXED), facts_of(), target=Target(url="http://[::1]:8000/api/v1", api_key="k")
    )
    lines = written.bodies.headers.split("\r\n")
    assert lines[0] == "Host: [::1]:8000"
    assert lines[-1] == ""
    assert "Accept: text/event-stream, application/json" in lines
    assert not any("uthorization" in line for line in lines)
    assert written.bodies.request_line == "POST /api/v1/completions HTTP/1.1"


def test_programs_are_named_and_end(tmp_path: Path) -> None:
    rows = [
        {"in_tok": 5, "program": "a"},
        {"in_tok": 5},
        {"in_tok": 5, "program": "a", "after": [0], "turn": 1},
        {"in_tok": 5, "program": "b"},
        {"in_tok": 5, "program": "row 3"},
    ]
    written = write(tmp_path, plan_of(rows), facts_of())
    final = b"X-Dynamo-Session-Final: true\r\n"
    assert [written.headers(number) for number in range(5)] == [
        b"X-Session-ID: a\r\n",
        b"",
        b"X-Session-ID: a\r\n" + final,
        b"X-Session-ID: b\r\n" + final,
        header_lines("row 3", True),
    ]
    assert written.headers(4).startswith(b"X-Session-ID: row_3.")


def test_sub_agents_name_the_program_that_started_them(tmp_path: Path) -> None:
    rows = [{"in_tok": 5, "program": "a/röot"}, {"in_tok": 5, "program": "a/sub", "parent": "a/röot"}]
    written = write(tmp_path, plan_of(rows), facts_of())
    name = written.headers(0).split(b"\r\n")[0].removeprefix(b"X-Session-ID: ")
    assert b"X-Parent-Session-ID: " + name + b"\r\n" in written.headers(1)
    assert b"Parent" not in written.headers(0)


@given(st.text(), st.text(), st.booleans())
def test_ids_of_a_trace_cannot_break_a_header(one: str, two: str, final: bool) -> None:
    line = header_lines(one, final)
    assert line.isascii()
    assert line.count(b"\r\n") == line.count(b"\n") == 1 + final
    assert line.endswith(b"\r\n")
    assert 0 < len(line.split(b"\r\n")[0]) < 200
    assert one == two or header_lines(two, final) != line


def conversation(shared: int = 24, after: tuple[int, ...] = (0,)) -> list[dict[str, Any]]:
    """A turn of 20 tokens and a reply of 4, a sub-agent, and a turn that adds 6."""
    return [
        {"in_tok": 20, "program": "a", "segment_keys": [1], "segment_toks": [20], "group": 0},
        {"in_tok": 9, "program": "b", "after": [0], "group": 0},
        {
            "in_tok": 30,
            "program": "a",
            "turn": 1,
            "after": list(after),
            "segment_keys": [1, 2, 3],
            "segment_toks": [20, 4, 6],
            "shared_tok": shared,
            "group": 0,
        },
    ]


LIVE = {"ids": b"7,8,9,10", "text": rb" one\n two\"", "chat": b" one two"}


@pytest.mark.parametrize("form", FORMS)
def test_live_history_leaves_room_for_the_reply(tmp_path: Path, form: Form) -> None:
    added = {"ids": (0, 0), "text": (2, 0), "chat": (5, 3)}[form]
    facts = facts_of(form, overhead_tokens=added[0], turn_overhead_tokens=added[1], tells_ids=True)
    written = write(tmp_path, plan_of(conversation()), facts, "live")
    assert written.requests["history_of"].tolist() == [-1, -1, 0]
    first, reply = written.pieces(0)[2], LIVE[form]
    around = written.bodies.before_reply.encode(), written.bodies.after_reply.encode()
    body = written.body(2, first + around[0] + reply + around[1])
    before = written.body(0)
    fresh = prompt_words([3], [6 - added[1]], 0, 70)
    if form == "ids":
        assert body["prompt"] == [*before["prompt"], 7, 8, 9, 10, *(VOCABULARY.ids[word] for word in fresh)]
        assert body["return_token_ids"] is True
        return
    words = "".join(VOCABULARY.texts[word] for word in fresh)
    if form == "text":
        assert body["prompt"] == before["prompt"] + ' one\n two"' + words
    else:
        assert body["messages"] == [
            before["messages"][0],
            {"role": "assistant", "content": " one two"},
            {"role": "user", "content": "The" + words},
        ]
    assert "return_token_ids" not in body


def test_live_history_of_what_ended_before_what_is_waited_for(tmp_path: Path) -> None:
    facts = facts_of(tells_ids=True)
    written = write(tmp_path, plan_of(conversation(after=(1,))), facts, "live")
    assert written.requests["history_of"].tolist() == [-1, -1, 0]
    assert written.waits(2) == [0, 1]
    assert "replies that came" in written.bodies.notes[0]


@pytest.mark.parametrize("rows", [conversation(shared=0), conversation(shared=23), conversation(after=())])
def test_no_live_history_of_what_is_not_continued_or_not_awaited(
    tmp_path: Path, rows: list[dict[str, Any]]
) -> None:
    written = write(tmp_path, plan_of(rows), facts_of(tells_ids=True), "live")
    assert written.requests["history_of"].tolist() == [-1, -1, -1]
    assert len(written.body(2)["prompt"]) == 30


def test_a_live_turn_has_a_token_even_if_nothing_is_new(tmp_path: Path) -> None:
    rows = conversation()
    rows[2] |= {"in_tok": 24, "segment_keys": [1, 2], "segment_toks": [20, 4]}
    written = write(tmp_path, plan_of(rows), facts_of(tells_ids=True), "live")
    assert len(written.body(2)["prompt"]) == 1
    assert written.bodies.num_longer == 1


def test_a_live_turn_that_was_too_long_is_made_good_by_the_next(tmp_path: Path) -> None:
    rows = conversation()
    last = {"in_tok": 64, "turn": 2, "after": [2], "shared_tok": 34, "segment_keys": [1, 2, 3, 4], "group": 0}
    rows.append({**last, "program": "a", "segment_toks": [20, 4, 6, 34]})
    facts = facts_of("chat", overhead_tokens=5, turn_overhead_tokens=12)
    written = write(tmp_path, plan_of(rows), facts, "live")
    assert written.requests["history_of"].tolist() == [-1, -1, 0, 2]
    words = [len(written.pieces(number)[2].split()) for number in (0, 2, 3)]
    # Two pairs of messages, two replies of four, and the template, make up the rest.
    assert words == [15, 0, 64 - (5 + 15) - (4 + 12) - (4 + 12)]
    assert written.bodies.num_longer == 1


def test_live_history_of_ids_needs_ids(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="return_token_ids"):
        write(tmp_path, plan_of(conversation()), facts_of(), "live")
    assert write(tmp_path, plan_of(conversation()), facts_of("text"), "live").data


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**26))
    with pytest.raises(CapacityError, match=r"0\.07 GB free"):
        write(tmp_path, plan_of(MIXED), facts_of())
    assert not (tmp_path / "bytes.bin").exists()


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TraceError, match="cannot write"):
        write(tmp_path / "file" / "x", plan_of(MIXED), facts_of())


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    told: list[tuple[float, float | None]] = []
    progress = SimpleNamespace(update=lambda what, done, total: told.append((done, total)))
    written = write_bodies(plan_of(MIXED), facts_of(), TARGET, tmp_path, progress=progress)
    assert told[-1] == (written.num_bytes, written.num_bytes)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("history", ["recorded", "live"])
def test_a_server_counts_what_was_planned(tmp_path: Path, form: Form, history: History) -> None:
    plan = plan_of([{"in_tok": num} for num in (6, 7, 64, 1000)] + [{"in_tok": 300, "out_tok": 9}])
    with running(StubOptions(bos=True)) as stub:
        target = Target(url=stub.url)
        written = write(tmp_path, plan, probe(target, form), history, target)
        begun = len(stub.log)
        for number in range(plan.num_requests):
            _, head, new, tail = written.pieces(number)
            send(stub.url, written.bodies, head + new + tail)
        seen = stub.log[begun:]
    assert [(one.prompt_tokens, one.max_tokens) for one in seen] == list(
        zip(plan.frame["in_tok"], plan.frame["out_tok"], strict=True)
    )
    assert all(one.stream and one.ended == "done" for one in seen)


def send(url: str, bodies: Bodies, body: bytes) -> None:
    connection = http.client.HTTPConnection(url.removeprefix("http://"))
    method, path, _ = bodies.request_line.split()
    headers = dict(line.split(": ", 1) for line in bodies.headers.split("\r\n") if line)
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    assert response.status == 200, response.read()
    response.read()
    connection.close()
