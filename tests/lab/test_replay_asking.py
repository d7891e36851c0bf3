from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from braid.lab.replay.asking.http import Answer, Asker, TargetError, clean, count_at, dig, endpoint


def received(connection: socket.socket) -> bytes:
    """A request, whole."""
    data = connection.recv(65536)
    while data.startswith((b"GET", b"POST")) and b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    length = re.search(rb"Content-Length: (\d+)", data)
    while length and len(data.partition(b"\r\n\r\n")[2]) < int(length[1]):
        data += connection.recv(65536)
    return data


@contextmanager
def answering(*answers: bytes | None, hold: bool = False) -> Iterator[tuple[str, list[bytes]]]:
    """A socket that answers each connection with the next of ``answers``; ``hold`` keeps connections open."""
    seen: list[bytes] = []
    kept: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def work() -> None:
            for answer in answers:
                connection, _ = server.accept()
                kept.append(connection)
                seen.append(received(connection))
                if answer:
                    connection.sendall(answer)
                if not hold:
                    connection.close()

        thread = threading.Thread(target=work)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", seen
        thread.join()
        for connection in kept:
            connection.close()


def ok(body: bytes, *more: bytes, status: bytes = b"200 OK") -> bytes:
    lines = (b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *more)
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://host:8000", (False, "host", 8000, "")),
        ("http://host:8000/", (False, "host", 8000, "")),
        (" http://host:8000/v1/ ", (False, "host", 8000, "")),
        ("https://host/api/v1", (True, "host", 443, "/api")),
        ("http://[::1]:80/a b", (False, "::1", 80, "/a%20b")),
    ],
)
def test_a_base_url_in_parts(url: str, parts: tuple[object, ...]) -> None:
    assert endpoint(url) == parts


def test_the_parts_name_the_host_as_a_header_does() -> None:
    assert endpoint("http://[::1]:81/v1").netloc == "[::1]:81"
    assert endpoint("https://host/x/v1").url == "https://host/x"


@pytest.mark.parametrize(
    "url",
    ["", "host:8000", "ftp://host", "http://", "http://host:99999", "http://[::1", "http://u:p@host", "http://h/?a=1",
     "http://h\u00f6st"],
)  # fmt: skip
def test_what_is_no_base_url(url: str) -> None:
    with pytest.raises(TargetError):
        endpoint(url)


def test_a_question_and_its_answer() -> None:
    with answering(ok(b'{"a": [1]}', b"X-Who: me"), ok(b"")) as (url, seen):
        asker = Asker(endpoint(url + "/base/v1"), "secret", 10)
        answer = asker.post("/v1/x", {"b": 2})
        asker.get("/v1/y")
    assert (answer.status, answer.json, answer.headers["x-who"]) == (200, {"a": [1]}, "me")
    assert seen[0].startswith(b"POST /base/v1/x HTTP/1.1\r\n")
    assert b"Authorization: Bearer secret\r\n" in seen[0]
    assert seen[0].endswith(b'\r\n\r\n{"b": 2}')
    assert seen[1].startswith(b"GET /base/v1/y HTTP/1.1\r\n")


def test_a_busy_server_is_asked_again() -> None:
    busy = ok(b"", b"Retry-After: 0", status=b"503 Service Unavailable")
    with answering(busy, busy, ok(b"{}")) as (url, seen):
        assert Asker(endpoint(url), None, 10).get("/x").status == 200
    assert len(seen) == 3


def test_a_server_that_stays_busy_is_left_in_time() -> None:
    with answering(ok(b"", b"Retry-After: 60", status=b"429 Too Many Requests")) as (url, _):
        assert Asker(endpoint(url), None, 10).get("/x").status == 429


def test_a_silent_server() -> None:
    with (
        answering(None, hold=True) as (url, _),
        pytest.raises(TargetError, match=r"no answer within 0\.05 s"),
    ):
        Asker(endpoint(url), None, 0.05).get("/x")


@pytest.mark.parametrize("raw", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"])
def test_answers_that_are_none(raw: bytes) -> None:
    with answering(raw) as (url, _), pytest.raises(TargetError, match=r"not HTTP|reset|cannot reach"):
        Asker(endpoint(url), None, 10).get("/x")


def test_tls_with_a_server_that_speaks_none() -> None:
    with answering(ok(b"{}")) as (url, _), pytest.raises(TargetError, match=r"TLS|reach"):
        Asker(endpoint(url.replace("http:", "https:")), None, 10).get("/x")


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(TargetError, match="is the server running"):
        Asker(endpoint(f"http://127.0.0.1:{port}"), None, 10).get("/x")


def test_what_may_be_missing_is_none() -> None:
    with answering(ok(b"", status=b"404 Not Found"), b"nonsense\r\n\r\n", ok(b"{}")) as (url, _):
        asker = Asker(endpoint(url), None, 10)
        assert asker.maybe("GET", "/x") is None
        assert asker.maybe("POST", "/x", {}) is None
        assert asker.maybe("GET", "/x") is not None


@pytest.mark.parametrize("key", ["", "a\r\nX: y", "schlüssel"])
def test_a_key_that_cannot_be_in_a_header(key: str) -> None:
    with pytest.raises(TargetError, match="API key"):
        Asker(endpoint("http://h"), key)


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, b'{"error": {"message": "no\\nsuch \\u001b[31mthing"}}', "400: no such ?[31mthing"),
        (404, b'{"detail": "Not Found"}', "404: Not Found"),
        (200, b"<!DOCTYPE html><p>hello", "200 with a web page"),
        (502, b"", "502 with an empty body"),
        (500, b"[" * 100_000, "500 with '[[["),
    ],
)
def test_the_reason_in_one_clean_line(status: int, body: bytes, reason: str) -> None:
    assert Answer(status, {}, body).reason.startswith(reason)
    assert Answer(status, {}, body).reason.isprintable()


def test_digging() -> None:
    value = {"a": [{"b": 3}, True, -1]}
    assert dig(value, "a", 0, "b") == count_at(value, "a", 0, "b") == 3
    wrong: list[Callable[[], object]] = [
        lambda: dig(value, "a", 9),
        lambda: dig(value, 0),
        lambda: dig(value, "a", "b"),
        lambda: count_at(value, "a", 1),
        lambda: count_at(value, "a", 2),
        lambda: count_at(None, "a"),
    ]
    assert [found() for found in wrong] == [None] * 6


def test_clean_text_is_short() -> None:
    assert clean("x" * 10_000, 20) == "x" * 17 + "..."
