"""Senders against a small server whose every step the tests say. Nothing here depends on how fast anything is."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import math
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from braid.lab.replay.files import COUNTERS, RECENT, REQUEST, RunSpec
from braid.lab.replay.outcome import Outcome
from braid.lab.replay.sending.connection import MAX_HEAD
from braid.lab.replay.sending.folder import Bodies, Folder, FolderError
from braid.lab.replay.sending.ledger import Ledger
from braid.lab.replay.sending.player import STOPPED, Player
from braid.lab.replay.sending.pool import ConnectionLimitError, connection_limit

LONG_S = 60.0
"""Nobody waits so long but in a test that has failed."""
REQUEST_LINE = "POST /v1/completions HTTP/1.1"
EVENT_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(value: Any) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def piece(text: str, finish: str | None = None, **more: Any) -> bytes:
    return event({"choices": [{"text": text, "finish_reason": finish, **more}]})


def whole(status: str, body: bytes = b"", *lines: str) -> bytes:
    head = "".join(f"{line}\r\n" for line in (f"HTTP/1.1 {status}", *lines, f"Content-Length: {len(body)}"))
    return head.encode() + b"\r\n" + body


def stream(*texts: str) -> bytes:
    events = [piece(text) for text in texts] + [piece("", "length"), b"data: [DONE]\n\n"]
    return EVENT_HEAD + b"".join(map(framed, events)) + b"0\r\n\r\n"


@dataclass
class Seen:
    """A request as the server saw it."""

    head: bytes
    body: bytes
    connection: int


Answering = Callable[["Peer", Seen], Awaitable[None]]


@dataclass
class Peer:
    """The server's end of a connection."""

    number: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def say(self, data: bytes) -> None:
        self.writer.write(data)

    def hang_up(self) -> None:
        self.writer.transport.abort()

    def close(self) -> None:
        self.writer.close()


@dataclass
class Server:
    """Answers each request as ``answering`` says; by default with a stream of two pieces."""

    answering: Answering | None = None
    seen: list[Seen] = field(default_factory=list)
    num_connections: int = 0
    tls: ssl.SSLContext | None = None
    port: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        peer = Peer(self.num_connections, reader, writer)
        self.num_connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                seen = Seen(head, await reader.readexactly(length), peer.number)
                self.seen.append(seen)
                await (self.answering or answer_two)(peer, seen)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()


async def answer_two(peer: Peer, seen: Seen) -> None:
    peer.say(stream("a", "b"))


def always(data: bytes) -> Answering:
    async def answer(peer: Peer, seen: Seen) -> None:
        peer.say(data)

    return answer


def then_close(data: bytes) -> Answering:
    async def answer(peer: Peer, seen: Seen) -> None:
        peer.say(data)
        peer.close()

    return answer


async def never(peer: Peer, seen: Seen) -> None:
    await peer.reader.read()
    raise ConnectionResetError


@dataclass(kw_only=True)
class Row:
    start_s: float = 0.0
    after: Sequence[int] = ()
    delay_s: float = 0.0
    group: int = 0
    out_tok: int = 2
    cancel: int = -1
    history_of: int = -1
    headers: bytes = b""
    head: bytes = b"["
    new: bytes = b"new"
    tail: bytes = b"]"


def write_folder(path: Path, rows: Sequence[Row], **options: Any) -> Path:
    table = np.zeros(len(rows), REQUEST)
    after: list[int] = []
    data = b""
    for number, row in enumerate(rows):
        places = [len(data)]
        for part in (row.headers, row.head, row.new, row.tail):
            data += part
            places.append(len(data))
        first = len(after)
        after += row.after
        table[number] = (
            row.group, row.start_s, row.delay_s, row.out_tok, row.cancel, row.history_of, first, len(after), *places
        )  # fmt: skip
    spec = {
        "host": "127.0.0.1", "port": 1, "address": "127.0.0.1", "request_line": REQUEST_LINE, "form": "text",
        "headers": "Host: here\r\nContent-Type: application/json\r\n",
    }  # fmt: skip
    np.save(path / "requests.npy", table)
    np.save(path / "after.npy", np.array(after, np.uint32))
    (path / "bytes.bin").write_bytes(data)
    (path / "run.json").write_bytes(msgspec.json.encode(RunSpec(**{**spec, **options})))
    return path


def read_outcomes(path: Path, sender: int = 0) -> dict[int, Outcome]:
    data = (path / f"outcomes-{sender}.mp").read_bytes()
    found: dict[int, Outcome] = {}
    while data:
        size = int.from_bytes(data[:4], "little")
        outcome = msgspec.msgpack.decode(data[4 : 4 + size], type=Outcome)
        assert outcome.request not in found
        found[outcome.request] = outcome
        data = data[4 + size :]
    return found


def counters(path: Path) -> dict[str, int]:
    status = np.load(path / "status-0.npy")
    assert status.shape == (len(COUNTERS) + RECENT,)
    return dict(zip(COUNTERS, status.tolist(), strict=False))


class Play:
    """One run of a sender in this process, on this loop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.over = asyncio.Event()
        self.ledger = Ledger(path, 0)
        self.player = Player(Folder(path), 0, self.ledger, asyncio.get_running_loop(), self.over.set)

    async def __call__(self, api_key: str | None = None) -> dict[int, Outcome]:
        """To its end: outcomes by request."""
        self.player.begin(time.monotonic(), api_key)
        return await self.end()

    async def end(self) -> dict[int, Outcome]:
        with self.ledger:
            await asyncio.wait_for(self.over.wait(), LONG_S)
        await asyncio.sleep(0)
        return read_outcomes(self.path)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server()
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
def play(tmp_path: Path, server: Server) -> Callable[..., Awaitable[dict[int, Outcome]]]:
    async def run(*rows: Row, api_key: str | None = None, **options: Any) -> dict[int, Outcome]:
        path = write_folder(tmp_path, rows, **{"port": server.port, **options})
        return await Play(path)(api_key)

    return run


PlayIt = Callable[..., Awaitable[dict[int, Outcome]]]


async def test_a_stream_is_sent_and_read(server: Server, play: PlayIt, tmp_path: Path) -> None:
    own = b"X-Session-ID: one\r\n"
    found = await play(Row(headers=own, head=b"head ", new=b"new ", tail=b"tail"), api_key="secret")
    outcome = found[0]
    assert (outcome.status, outcome.reason, outcome.http_status) == ("ok", "", 200)
    assert (outcome.chunk_tokens, outcome.finish_reason, outcome.attempts) == ((1, 1), "length", 1)
    times = (outcome.scheduled_s, outcome.sent_s, outcome.first_byte_s, *outcome.chunk_times_s, outcome.end_s)
    assert all(time is not None for time in times)
    assert list(times) == sorted(times)  # type: ignore[type-var]
    assert outcome.scheduled_s == 0.0
    seen = server.seen[0]
    assert seen.body == b"head new tail"
    assert seen.head.decode() == (
        f"{REQUEST_LINE}\r\nHost: here\r\nContent-Type: application/json\r\nAuthorization: Bearer secret\r\n"
        "X-Session-ID: one\r\nContent-Length: 13\r\n\r\n"
    )
    shown = counters(tmp_path)
    assert (shown["scheduled"], shown["sent"], shown["ok"], shown["output_tokens"]) == (1, 1, 1, 2)
    assert (shown["open"], shown["waiting"]) == (0, 0)
    assert np.load(tmp_path / "status-0.npy")[len(COUNTERS)] > 0
    assert all(b"secret" not in file.read_bytes() for file in tmp_path.iterdir())


@pytest.mark.parametrize(
    ("answering", "status", "reason"),
    [
        (always(whole("429 Slow", b'{"error":{"message":"slow down"}}')), "refused", "HTTP 429: slow down"),
        (always(whole("503 Busy", b"busy")), "refused", "HTTP 503: busy"),
        (always(whole("500 Oops", b"oops")), "error", "HTTP 500: oops"),
        (always(whole("404 No", b"{}")), "error", "HTTP 404: {}"),
        (always(EVENT_HEAD + framed(event({"error": {"message": "no memory"}}))), "error", "no memory"),
        (then_close(EVENT_HEAD + framed(piece("a"))), "cut", "inside the answer"),
        (then_close(EVENT_HEAD + framed(piece("a")) + b"0\r\n\r\n"), "cut", "without a finish reason"),
        (then_close(b""), "cut", "without an answer"),
        (then_close(b"HTTP/1.1 200 OK\r\nContent-Le"), "cut", "inside the answer"),
        (always(whole("200 OK", b"<p>hi", "Content-Type: text/html")), "rubbish", "text/html"),
        (always(whole("200 OK", b'{"choices":', "Content-Type: application/json")), "rubbish", "not a chunk"),
        (always(whole("200 OK")), "rubbish", "empty"),
        (always(b"SSH-2.0-OpenSSH_9.6\r\n" + b"x" * 99), "rubbish", "not HTTP"),
        (
            always(b"HTTP/1.1 101 Go\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"),
            "rubbish",
            "another protocol",
        ),
        (always(EVENT_HEAD + framed(b"data: " + b"x" * (2 << 20))), "rubbish", "line of more"),
        (always(EVENT_HEAD + framed(piece("a")) + b"zz\r\n"), "rubbish", "not HTTP"),
    ],
)
async def test_bad_answers(
    server: Server, play: PlayIt, answering: Answering, status: str, reason: str
) -> None:
    server.answering = answering
    outcome = (await play(Row()))[0]
    assert (outcome.status, outcome.attempts) == (status, 1)
    assert reason in outcome.reason


@pytest.mark.parametrize("end", [b"X-More: ", b"HTTP/1.1 100 Go on\r\n\r\n"])
async def test_an_endless_head_is_rubbish(server: Server, play: PlayIt, end: bytes) -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        peer.say(b"HTTP/1.1 200 OK\r\n" if end.startswith(b"X") else b"")
        while not peer.writer.is_closing():
            peer.say(end + (b"y" * 5000 + b"\r\n" if end.startswith(b"X") else end * 500))
            await peer.writer.drain()

    server.answering = answer
    outcome = (await play(Row()))[0]
    assert (outcome.status, outcome.reason) == ("rubbish", f"more than {MAX_HEAD} bytes of header lines")


async def test_an_endless_body_is_rubbish(server: Server, play: PlayIt) -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        peer.say(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not peer.writer.is_closing():
            peer.say(framed(b" " * 65536))
            await peer.writer.drain()

    server.answering = answer
    outcome = (await play(Row()))[0]
    assert outcome.status == "rubbish"
    assert "more than" in outcome.reason


async def test_nobody_there_is_unreachable(server: Server, play: PlayIt) -> None:
    await server.stop()
    outcome = (await play(Row()))[0]
    assert (outcome.status, outcome.http_status, outcome.attempts) == ("unreachable", 0, 1)
    assert "no connection" in outcome.reason


@pytest.mark.parametrize(
    "data",
    [
        whole("200 OK", b'{"choices":[{"text":"ab"}],"usage":{"completion_tokens":2}}'),
        b'HTTP/1.1 200 OK\r\n\r\n{"choices":[{"text":"ab"}],"usage":{"completion_tokens":2}}',
        b"HTTP/1.1 100 Continue\r\n\r\n" + stream("a", "b"),
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + piece("a") + piece("b", "stop"),
        EVENT_HEAD + framed(piece("a") + piece("b") + b"data: [DONE]\n\n"),
        EVENT_HEAD + framed(piece("a") + piece("b", "stop")),
        stream("a", "b") + b"and more that nobody asked for",
        stream("a", "b") + stream("c", "d"),
    ],
)
async def test_all_framings_of_a_good_answer_are_read(server: Server, play: PlayIt, data: bytes) -> None:
    server.answering = then_close(data)
    found = await play(Row(), Row(after=[0]))
    assert [(found[n].status, sum(found[n].chunk_tokens)) for n in (0, 1)] == [("ok", 2), ("ok", 2)]


async def test_answers_in_single_bytes_are_read(server: Server, play: PlayIt) -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        for byte in stream("a", "b"):
            peer.say(bytes([byte]))
            await asyncio.sleep(0)

    server.answering = answer
    assert (await play(Row()))[0].chunk_tokens == (1, 1)


async def test_an_answer_that_never_ends_its_message_does_not_hold_the_next_turn(
    server: Server, play: PlayIt
) -> None:
    server.answering = always(EVENT_HEAD + framed(piece("a") + b"data: [DONE]\n\n"))
    found = await play(Row(), Row(after=[0]))
    assert [outcome.status for outcome in found.values()] == ["ok", "ok"]
    assert server.seen[0].connection != server.seen[1].connection


async def test_connections_are_used_again(server: Server, play: PlayIt) -> None:
    found = await play(*[Row(after=[n - 1] if n else []) for n in range(5)])
    assert [outcome.status for outcome in found.values()] == ["ok"] * 5
    assert len({seen.connection for seen in server.seen}) == 1


async def test_a_refused_request_is_tried_again(server: Server, play: PlayIt) -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        hurry = ("Retry-After: 0", "Retry-After: Wed, 02 Jan 2002 03:04:05 GMT", "X-Nothing: 1")
        left = len(server.seen) - 1
        peer.say(whole("503 Busy", b"busy", hurry[left]) if left < 3 else stream("a"))

    server.answering = answer
    outcome = (await play(Row(start_s=0.01), max_retries=3, retry_wait_s=0.0))[0]
    assert (outcome.status, outcome.attempts, outcome.http_status) == ("ok", 4, 200)
    assert (outcome.scheduled_s, outcome.retry_after_s) == (0.01, None)
    assert len(server.seen) == 4


async def test_refused_too_often(server: Server, play: PlayIt) -> None:
    server.answering = always(whole("429 Slow", b"slow", "Retry-After: 0"))
    outcome = (await play(Row(), max_retries=1))[0]
    assert (outcome.status, outcome.attempts, outcome.retry_after_s) == ("refused", 2, 0.0)
    assert len(server.seen) == 2


async def test_a_server_that_asks_for_more_time_than_there_is_is_not_asked_again(
    server: Server, play: PlayIt
) -> None:
    server.answering = always(whole("503 Busy", b"busy", "Retry-After: 100000"))
    outcome = (await play(Row(), max_retries=5))[0]
    assert (outcome.status, outcome.attempts, outcome.retry_after_s) == ("refused", 1, 100000.0)


async def test_only_refusals_are_tried_again(server: Server, play: PlayIt) -> None:
    server.answering = always(whole("500 Oops", b"oops"))
    assert (await play(Row(), max_retries=5))[0].attempts == 1


async def test_a_stale_connection_is_no_attempt(server: Server, play: PlayIt) -> None:
    """The second request meets a connection that the server gives up at that moment."""

    async def answer(peer: Peer, seen: Seen) -> None:
        if len(server.seen) == 2:
            peer.hang_up()
        else:
            peer.say(stream("a"))

    server.answering = answer
    found = await play(Row(), Row(after=[0]))
    assert [(outcome.status, outcome.attempts) for outcome in found.values()] == [("ok", 1), ("ok", 1)]
    assert len(server.seen) == 3
    assert server.seen[2].connection != server.seen[1].connection


async def test_a_server_that_always_hangs_up_is_asked_once_more_only(server: Server, play: PlayIt) -> None:
    async def answer(peer: Peer, seen: Seen) -> None:
        if len(server.seen) == 1:
            peer.say(stream("a"))
        else:
            peer.hang_up()

    server.answering = answer
    found = await play(Row(), Row(after=[0]))
    assert (found[1].status, found[1].attempts) == ("cut", 1)
    assert len(server.seen) == 3


@pytest.mark.parametrize(("after_tok", "num"), [(0, 0), (1, 1), (3, 3)])
async def test_the_client_hangs_up_as_planned(server: Server, play: PlayIt, after_tok: int, num: int) -> None:
    hung_up = asyncio.Event()

    async def answer(peer: Peer, seen: Seen) -> None:
        peer.say(EVENT_HEAD + b"".join(framed(piece("a")) for _ in range(num)))
        await peer.reader.read()
        hung_up.set()

    server.answering = answer
    outcome = (await play(Row(cancel=after_tok)))[0]
    assert (outcome.status, outcome.reason, len(outcome.chunk_tokens)) == ("cancelled", "", num)
    await asyncio.wait_for(hung_up.wait(), LONG_S)


async def test_a_request_has_so_much_time(server: Server, play: PlayIt) -> None:
    server.answering = never
    outcome = (await play(Row(), timeout_s=0.01))[0]
    assert (outcome.status, outcome.reason) == ("timed_out", "no end within 0.01 s")
    assert outcome.end_s is not None
    assert outcome.end_s >= 0.01


async def test_a_run_has_so_much_time_after_its_last_start(server: Server, play: PlayIt) -> None:
    server.answering = never
    found = await play(Row(), Row(after=[0]), Row(group=1, start_s=0.02), drain_s=0.01)
    assert [found[n].status for n in range(3)] == ["timed_out", "unsent", "timed_out"]
    assert found[1].scheduled_s is None
    assert "last planned start" in found[1].reason


async def test_turns_wait_for_the_real_ends_before_them(server: Server, play: PlayIt) -> None:
    found = await play(
        Row(new=b"0"),
        Row(new=b"1", start_s=0.01),
        Row(new=b"2", after=[0, 1], delay_s=0.02),
        Row(new=b"3", after=[2]),
    )
    ends = [found[n].end_s or math.nan for n in range(4)]
    assert found[2].scheduled_s == max(ends[0], ends[1]) + 0.02
    assert found[3].scheduled_s == ends[2]
    assert [seen.body for seen in server.seen] == [b"[0]", b"[1]", b"[2]", b"[3]"]
    assert all(
        o.sent_s is not None and o.scheduled_s is not None and o.sent_s >= o.scheduled_s
        for o in found.values()
    )


async def test_a_late_start_is_reported_as_it_is(server: Server, tmp_path: Path) -> None:
    path = write_folder(tmp_path, [Row(start_s=0.5)], port=server.port)
    play = Play(path)
    play.player.begin(time.monotonic() - 100.5, None)
    outcome = (await play.end())[0]
    assert outcome.scheduled_s == 0.5
    assert outcome.sent_s is not None
    assert outcome.sent_s - 0.5 >= 100.0
    assert counters(path)["lag_max_us"] >= 100e6
    assert outcome.status == "ok"


@pytest.mark.parametrize("stop", [True, False])
async def test_later_turns_of_a_failed_one(server: Server, play: PlayIt, stop: bool) -> None:
    server.answering = always(whole("500 Oops", b"oops"))
    found = await play(Row(), Row(after=[0]), Row(after=[1]), Row(group=1), stop_on_failure=stop)
    assert [found[n].status for n in range(4)] == [
        "error",
        *(["unsent"] * 2 if stop else ["error"] * 2),
        "error",
    ]
    if stop:
        assert found[1].reason == "request 0, which it follows, was error"
        assert (found[1].scheduled_s, found[1].attempts) == (None, 0)


async def test_a_planned_hang_up_is_no_failure(server: Server, play: PlayIt) -> None:
    found = await play(Row(cancel=1), Row(after=[0]), stop_on_failure=True)
    assert [found[n].status for n in range(2)] == ["cancelled", "ok"]


async def test_slots(server: Server, play: PlayIt) -> None:
    """Two programs of two turns at a time, of five, in order."""
    inside: set[bytes] = set()
    most = 0

    async def answer(peer: Peer, seen: Seen) -> None:
        nonlocal most
        inside.add(seen.body[:2])
        most = max(most, len(inside))
        if seen.body.endswith(b"last]"):
            inside.discard(seen.body[:2])
        peer.say(stream("a"))

    server.answering = answer
    rows = []
    for group in range(5):
        rows.append(Row(group=group, start_s=math.nan, new=b"%d first" % group))
        rows.append(Row(group=group, start_s=math.nan, after=[2 * group], new=b"%d last" % group))
    found = await play(*rows, slots=(2,), drain_s=LONG_S)
    assert [outcome.status for outcome in found.values()] == ["ok"] * 10
    assert most == 2
    firsts = [seen.body[1:2] for seen in server.seen if b"first" in seen.body]
    assert sorted(firsts[:2]) == [b"0", b"1"]
    starts = [found[2 * group].scheduled_s or 0.0 for group in range(5)]
    assert starts == sorted(starts)
    ends = sorted(found[2 * group + 1].end_s or 0.0 for group in range(5))
    assert starts == [0.0, 0.0, *ends[:3]]


async def test_no_request_waits_for_another(server: Server, play: PlayIt) -> None:
    """The server answers nobody before all have asked."""
    all_there = asyncio.Event()

    async def answer(peer: Peer, seen: Seen) -> None:
        if len(server.seen) == 50:
            all_there.set()
        await all_there.wait()
        peer.say(stream("a"))

    server.answering = answer
    found = await play(*[Row(group=n) for n in range(50)])
    assert [outcome.status for outcome in found.values()] == ["ok"] * 50
    assert server.num_connections == 50


async def test_too_many_connections_are_said(server: Server, play: PlayIt) -> None:
    server.answering = never
    found = await play(*[Row(group=n) for n in range(3)], max_connections=2, timeout_s=0.05)
    assert [found[n].status for n in range(3)] == ["timed_out", "timed_out", "unreachable"]
    assert found[2].reason == "2 connections are open already, which is the client's limit"
    assert (found[2].attempts, found[2].sent_s) == (0, None)


def test_a_limit_that_the_system_does_not_allow_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (100, 200))
    spec = Folder(write_folder(tmp_path, [Row()], max_connections=500)).spec
    with pytest.raises(ConnectionLimitError, match="500 connections at a time need 564 open files"):
        connection_limit(spec, 1000)
    raised: list[Any] = []
    monkeypatch.setattr("resource.setrlimit", lambda which, limits: raised.append(limits))
    assert connection_limit(spec, 90) == 136
    assert raised == [(200, 200)]


async def test_turns_hold_the_real_replies(server: Server, play: PlayIt) -> None:
    replies = iter(['one"', "", "three"])

    async def answer(peer: Peer, seen: Seen) -> None:
        peer.say(stream(*next(replies, "four")))

    server.answering = answer
    rows = [
        Row(new=b"A"),
        *(Row(new=new, after=[n], history_of=n) for n, new in enumerate((b"B", b"C", b"D"))),
    ]
    await play(*rows, history="live", before_reply="<", after_reply=">")
    assert [seen.body for seen in server.seen] == [
        b"[A]", b'[A<one\\">B]', b'[A<one\\">B<>C]', b'[A<one\\">B<>C<three>D]'
    ]  # fmt: skip
    assert all(b"Content-Length: %d\r\n" % len(seen.body) in seen.head for seen in server.seen)


async def test_turns_hold_the_real_token_ids(server: Server, play: PlayIt) -> None:
    answers = iter(
        [[piece("x", token_ids=[5, 6]), piece("y", token_ids=[7])], [], [piece("x", token_ids=[8])]]
    )

    async def answer(peer: Peer, seen: Seen) -> None:
        events = [*next(answers), piece("", "length"), b"data: [DONE]\n\n"]
        peer.say(EVENT_HEAD + b"".join(map(framed, events)) + b"0\r\n\r\n")

    server.answering = answer
    rows = [Row(new=b"1,2"), Row(new=b"3", after=[0], history_of=0), Row(new=b"4", after=[1], history_of=1)]
    await play(*rows, history="live", form="ids", before_reply=",", after_reply=",")
    assert [msgspec.json.decode(seen.body) for seen in server.seen] == [
        [1, 2], [1, 2, 5, 6, 7, 3], [1, 2, 5, 6, 7, 3, 4]
    ]  # fmt: skip


async def test_two_turns_may_go_on_from_one(server: Server, play: PlayIt) -> None:
    rows = [Row(new=b"A"), Row(new=b"B", after=[0], history_of=0), Row(new=b"C", after=[0, 1], history_of=0)]
    await play(*rows, history="live", before_reply="<", after_reply=">")
    assert [seen.body for seen in server.seen] == [b"[A]", b"[A<ab>B]", b"[A<ab>C]"]


async def test_a_live_turn_that_does_not_wait_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match="request 1 holds the reply to 0 and does not wait for it"):
        Folder(write_folder(tmp_path, [Row(), Row(history_of=0)], history="live"))


async def test_a_run_that_is_stopped(server: Server, tmp_path: Path) -> None:
    asked = asyncio.Event()

    async def answer(peer: Peer, seen: Seen) -> None:
        if seen.body == b"[busy]":
            peer.say(whole("503 Busy", b"busy", "Retry-After: 500"))
            return
        peer.say(EVENT_HEAD + framed(piece("a")))
        asked.set()
        await peer.reader.read()

    server.answering = answer
    rows = [
        Row(new=b"busy", group=1), Row(start_s=0.01), Row(after=[1]), Row(start_s=1e6, group=2)
    ]  # fmt: skip
    play = Play(write_folder(tmp_path, rows, port=server.port, max_retries=1))
    play.player.begin(time.monotonic(), None)
    await asyncio.wait_for(asked.wait(), LONG_S)
    async with asyncio.timeout(LONG_S):
        while (counters(tmp_path)["scheduled"], counters(tmp_path)["open"]) != (2, 1):
            await asyncio.sleep(0.01)
    play.player.stop()
    play.player.stop()
    found = await play.end()
    assert [found[n].status for n in range(4)] == ["refused", "cut", "unsent", "unsent"]
    assert found[0].reason == f"HTTP 503: busy; no further try: {STOPPED}"
    assert [found[n].reason for n in (1, 2, 3)] == [STOPPED] * 3
    assert [found[n].attempts for n in range(4)] == [1, 1, 0, 0]


async def test_a_circle_ends_unsent(server: Server, play: PlayIt) -> None:
    found = await play(Row(group=1), Row(after=[2]), Row(after=[1]))
    assert [found[n].status for n in range(3)] == ["ok", "unsent", "unsent"]
    assert found[1].reason == "what it waits for never ends"


async def test_connections_leave_no_garbage(server: Server, tmp_path: Path) -> None:
    """Senders run without the collector."""
    server.answering = then_close(whole("200 OK", b'{"choices":[{"text":"ab"}]}', "Connection: close"))
    play = Play(write_folder(tmp_path, [Row(group=n) for n in range(20)], port=server.port))

    def count() -> int:
        return sum(type(thing).__name__ in ("Connection", "Exchange", "Answer") for thing in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = count()
        play.player.begin(time.monotonic(), None)
        await play.end()
        for _ in range(5):
            await asyncio.sleep(0)
        assert count() == before
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("file", "data", "reason"),
    [
        ("run.json", b"{}", "run.json: "),
        ("run.json", None, "cannot read"),
        ("requests.npy", b"", "requests.npy: "),
        ("requests.npy", b"rows", "requests.npy: "),
        ("bytes.bin", b"[", "not inside bytes.bin"),
        ("bytes.bin", None, "cannot read"),
    ],
)
def test_a_broken_folder_is_refused(tmp_path: Path, file: str, data: bytes | None, reason: str) -> None:
    path = write_folder(tmp_path, [Row()])
    if data is None:
        (path / file).unlink()
    else:
        (path / file).write_bytes(data)
    with pytest.raises(FolderError, match=reason):
        Folder(path)


async def test_a_sender_that_the_folder_does_not_know_is_refused(tmp_path: Path) -> None:
    folder = Folder(write_folder(tmp_path, [Row()], num_senders=2, slots=(1, 1)))
    with Ledger(tmp_path, 2) as ledger, pytest.raises(FolderError, match="work for 2 senders"):
        Player(folder, 2, ledger, asyncio.get_running_loop(), lambda: None)


def test_a_key_that_breaks_the_header_is_refused_and_not_shown(tmp_path: Path) -> None:
    folder = Folder(write_folder(tmp_path, [Row()]))
    with pytest.raises(FolderError) as caught:
        Bodies(folder, "secret\r\nX-Evil: 1")
    assert "secret" not in str(caught.value)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    made = (
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    )
    subprocess.run(
        [openssl, *made, "-keyout", key, "-out", certificate, *names], check=True, capture_output=True
    )
    return key, certificate


async def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: StartIt) -> None:
    key, certificate = make_certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = Server(tls=context)
    await server.start()
    rows = [Row(), Row(after=[0], new=b"x" * 10**6)]
    path = write_folder(tmp_path, rows, port=server.port, tls=True, host="localhost")
    unknown = await Play(path)()
    assert unknown[0].status == "unreachable"
    assert "certificate" in unknown[0].reason.lower()
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    process = start(path, 0)
    await process.ready()
    process.begin(start=time.monotonic())
    assert await process.end() == (0, "")
    trusted = read_outcomes(path)
    assert [trusted[n].status for n in range(2)] == ["ok", "ok"]
    assert len(server.seen[-1].body) == 10**6 + 2
    await server.stop()


StartIt = Callable[..., "Process"]


class Process:
    """A sender as a process of its own."""

    def __init__(self, *command: object) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def close(self) -> None:
        self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def begin(self, **line: Any) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(msgspec.json.encode(line) + b"\n")
        self.popen.stdin.flush()

    async def ready(self) -> bytes:
        assert self.popen.stdout is not None
        return await asyncio.to_thread(self.popen.stdout.readline)

    async def end(self) -> tuple[int, str]:
        """Its exit status and what it said on stderr; stdin stays as it is until then."""
        await asyncio.to_thread(self.popen.wait, LONG_S)
        assert self.popen.stdin is not None
        self.popen.stdin.close()
        self.popen.stdin = None
        _, errors = self.popen.communicate()
        return self.popen.returncode, errors.decode()


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def start(*arguments: object, code: str | None = None) -> Process:
        command = ("-m", "braid.lab.replay.sending.sender") if code is None else ("-c", code)
        processes.append(Process(*command, *arguments))
        return processes[-1]

    yield start
    for process in processes:
        process.close()


async def test_a_process_plays_a_folder(server: Server, tmp_path: Path, start: StartIt) -> None:
    path = write_folder(tmp_path, [Row(new=b"x" * (6 << 20)), Row(after=[0])], port=server.port)
    process = start(path, 0)
    assert await process.ready() == b"ready\n"
    process.begin(start=time.monotonic(), api_key="secret")
    assert await process.end() == (0, "")
    found = read_outcomes(path)
    assert [found[n].status for n in range(2)] == ["ok", "ok"]
    assert [len(seen.body) for seen in server.seen] == [(6 << 20) + 2, 5]
    assert b"Authorization: Bearer secret\r\n" in server.seen[0].head


@pytest.mark.parametrize("how", ["stdin", "SIGTERM", "SIGINT"])
async def test_a_process_is_stopped(server: Server, tmp_path: Path, start: StartIt, how: str) -> None:
    asked = asyncio.Event()

    async def answer(peer: Peer, seen: Seen) -> None:
        asked.set()
        await peer.reader.read()

    server.answering = answer
    path = write_folder(tmp_path, [Row(), Row(after=[0])], port=server.port)
    process = start(path, 0)
    await process.ready()
    process.begin(start=time.monotonic())
    await asyncio.wait_for(asked.wait(), LONG_S)
    if how == "stdin":
        assert process.popen.stdin is not None
        process.popen.stdin.close()
    else:
        os.kill(process.popen.pid, getattr(signal, how))
    assert await process.end() == (0, "")
    found = read_outcomes(path)
    assert [(found[n].status, found[n].reason) for n in range(2)] == [("cut", STOPPED), ("unsent", STOPPED)]


async def test_a_process_that_is_told_no_start(tmp_path: Path, start: StartIt) -> None:
    process = start(write_folder(tmp_path, [Row()]), 0)
    await process.ready()
    process.begin(key="secret")
    status, errors = await process.end()
    assert (status, errors) == (1, "the line on stdin is no start: ValidationError\n")


async def test_a_process_without_a_folder_says_why(tmp_path: Path, start: StartIt) -> None:
    status, errors = await start(tmp_path, 0).end()
    assert status == 1
    assert errors == f"cannot read {tmp_path / 'run.json'}: No such file or directory\n"


BUG = """
import sys
from braid.lab.replay.sending import player, sender

def bug(*_): raise ZeroDivisionError("a bug")

setattr(player.{name}, "{method}", bug)
sys.exit(sender.main(sys.argv[1:]))
"""


@pytest.mark.parametrize(("name", "method"), [("Player", "closed"), ("Pool", "_connect"), ("Answer", "feed")])
async def test_a_bug_ends_the_process(
    server: Server, tmp_path: Path, start: StartIt, name: str, method: str
) -> None:
    server.answering = then_close(stream("a"))
    code = BUG.replace("{name}", name).replace("{method}", method)
    process = start(write_folder(tmp_path, [Row()], port=server.port), 0, code=code)
    assert await process.ready() == b"ready\n"
    process.begin(start=time.monotonic())
    status, errors = await process.end()
    assert (status, errors.splitlines()[-1]) == (1, "ZeroDivisionError: a bug")
