"""The stub server: what it is told to do, it does; what it saw, it tells."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise

import httpx
import msgspec
import pytest

from braid.lab.replay.stub.server import running
from braid.lab.replay.stub.state import FAULTS, Stub, StubError, StubOptions
from braid.lab.replay.stub.words import REPLY, PrefixCache, WordTokenizer

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
USAGE = {"include_usage": True, "continuous_usage_stats": True}


@contextmanager
def server(**options: object) -> Iterator[tuple[Stub, httpx.Client]]:
    with running(StubOptions(**options)) as stub, httpx.Client(base_url=stub.url, timeout=20) as client:  # type: ignore[arg-type]
        yield stub, client


def events(answer: httpx.Response) -> list[dict]:
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert lines[-1] == "[DONE]"
    return [msgspec.json.decode(line) for line in lines[:-1]]


def test_every_word_is_one_token_that_comes_back() -> None:
    tokenizer = WordTokenizer()
    ids = tokenizer.encode(" the river  the\n")
    assert len(ids) == 5
    assert ids[0] == ids[3]
    assert tokenizer.decode(ids) == " the river  the\n"
    assert WordTokenizer().encode(" the") == ids[:1]  # the same in every process


def test_words_with_one_checksum_get_two_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("braid.lab.replay.stub.words.crc32", lambda data: 7)
    assert len(set(WordTokenizer().encode(" a b c"))) == 3


def test_the_cache_knows_full_blocks_of_common_beginnings() -> None:
    cache = PrefixCache(4)
    assert cache.enter(list(range(10))) == 0
    assert cache.enter(list(range(10))) == 8
    assert cache.enter([0, 1, 2, 3, 9, 5, 6, 7]) == 4
    assert cache.enter([4, 5, 6, 7]) == 0  # known, but not at the beginning


def test_models_and_tokens() -> None:
    with server(model="m", max_model_len=100, bos=True) as (_, client):
        card = client.get("/v1/models").json()["data"][0]
        assert (card["id"], card["max_model_len"]) == ("m", 100)
        answer = client.post("/tokenize", json={"prompt": " a b"}).json()
        assert answer["count"] == len(answer["tokens"]) == 3
        bare = {"prompt": " a b", "add_special_tokens": False}
        assert client.post("/tokenize", json=bare).json()["tokens"] == answer["tokens"][1:]
        assert client.post("/detokenize", json={"tokens": answer["tokens"][1:]}).json() == {"prompt": " a b"}
        assert client.get("/nothing").status_code == 404


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_a_stream_and_an_answer_in_one_piece_say_the_same(path: str) -> None:
    prompt = {"prompt": " a b c"} if path == TEXT else {"messages": [{"role": "user", "content": "a b c"}]}
    with server() as (stub, client):
        ask = {**prompt, "max_tokens": 20}
        parts = events(client.post(path, json={**ask, "stream": True, "stream_options": USAGE}))
        plain = events(client.post(path, json={**ask, "stream": True}))
        whole = client.post(path, json=ask).json()
        ids = events(client.post(path, json={**ask, "stream": True, "return_token_ids": True}))
    choices = [part["choices"][0] for part in parts if part["choices"]]
    pieces = [c["text"] if path == TEXT else c["delta"]["content"] for c in choices]
    said = whole["choices"][0]
    assert "".join(pieces) == (said["text"] if path == TEXT else said["message"]["content"])
    assert "".join(pieces) == "".join([*REPLY, *REPLY[:4]])
    assert choices[-1]["finish_reason"] == said["finish_reason"] == "length"
    assert parts[-1]["usage"] == whole["usage"]
    assert whole["usage"]["completion_tokens"] == 20
    assert whole["usage"]["prompt_tokens"] == (3 if path == TEXT else 7)
    counts = [part["usage"]["completion_tokens"] for part in parts if part.get("usage") and part["choices"]]
    assert counts == list(range(1, 21))
    assert len(plain) == len(parts) - 1
    assert "usage" not in plain[-1]
    tokens = [token for part in ids for token in part["choices"][0].get("token_ids", [])]
    assert stub.tokenizer.decode(tokens) == "".join(pieces)
    assert [seen.ended for seen in stub.log] == ["done"] * 4


def test_lengths_end_by_themselves_unless_they_are_forced() -> None:
    ask = {"prompt": [5, 6], "max_tokens": 30}
    with server(natural_tokens=8) as (_, client):
        asked = [ask, {**ask, "min_tokens": 12}, {**ask, "ignore_eos": True}, {**ask, "max_tokens": 4}]
        answers = [client.post(TEXT, json=body).json() for body in asked]
    assert [answer["usage"]["completion_tokens"] for answer in answers] == [8, 12, 30, 4]
    assert [answer["choices"][0]["finish_reason"] for answer in answers] == [
        "stop",
        "stop",
        "length",
        "length",
    ]
    with server(natural_tokens=8, extras="ignored") as (_, client):
        assert client.post(TEXT, json={**ask, "ignore_eos": True}).json()["usage"]["completion_tokens"] == 8
    with server(extras="refused") as (_, client):
        refusal = client.post(TEXT, json={**ask, "ignore_eos": True})
    assert refusal.status_code == 400
    assert "ignore_eos" in refusal.text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"prompt": " a", "max_tokens": 0}, 400),
        ({"prompt": " a", "max_tokens": 64}, 400),
        ({"prompt": []}, 400),
        ({"prompt": {"a": 1}}, 400),
        ({}, 400),
        ({"prompt": " a", "model": "other"}, 404),
    ],
)
def test_nonsense_is_refused(body: dict, status: int) -> None:
    with server(max_model_len=64) as (stub, client):
        assert client.post(TEXT, json=body).status_code == status
        assert client.post(TEXT, content=b"{").status_code == 400
        assert stub.log == []


def test_the_log_tells_what_was_asked() -> None:
    with server(cache_block=2, api_key="k") as (_, client):
        assert client.post(TEXT, json={"prompt": [1]}).status_code == 401
        client.headers["authorization"] = "Bearer k"
        for prompt in ([1, 2, 3, 4, 5], [1, 2, 3, 9]):
            ask = {"prompt": prompt, "max_tokens": 7}
            answer = client.post(TEXT, json=ask, headers={"x-session-id": "p1"}).json()
        assert answer["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}
        log = client.get("/stub/log").json()
        client.delete("/stub/log")
        assert client.get("/stub/log").json() == []
    assert [(row["prompt_tokens"], row["cached_tokens"], row["program"]) for row in log] == [
        (5, 0, "p1"),
        (4, 2, "p1"),
    ]
    assert [row["max_tokens"] for row in log] == [7, 7]
    assert log[0]["arrival_s"] <= log[1]["arrival_s"]


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_a_reply_is_in_the_cache_when_it_is_complete(path: str) -> None:
    with server(cache_block=1) as (stub, client):
        first = {"prompt": " a b"} if path == TEXT else {"messages": [{"role": "user", "content": "a b"}]}
        said = client.post(path, json={**first, "max_tokens": 20}).json()["choices"][0]
        if path == TEXT:
            later = {"prompt": f" a b{said['text']} c"}
        else:
            reply = {"role": "assistant", "content": said["message"]["content"]}
            later = {"messages": [*first["messages"], reply, {"role": "user", "content": "c"}]}
        client.post(path, json={**later, "max_tokens": 1})
    before, after = stub.log
    assert after.cached_tokens == before.prompt_tokens + 20


def test_tokens_come_no_earlier_than_they_are_due() -> None:
    with server(ttft_s=0.02, ttft_per_token_s=0.005, tbt_s=0.01) as (stub, client):
        client.post(TEXT, json={"prompt": [1, 2, 3, 4], "max_tokens": 3, "stream": True})
    times = [time - stub.log[0].arrival_s for time in stub.log[0].token_times_s]
    assert len(times) == 3
    assert all(time >= due - 0.001 for time, due in zip(times, (0.04, 0.05, 0.06), strict=True))


def test_more_than_it_serves_at_a_time_wait_their_turn() -> None:
    with server(concurrency=1, ttft_s=0.02) as (stub, client):
        body = msgspec.json.encode({"prompt": [1], "max_tokens": 1, "stream": True})
        head = b"POST /v1/completions HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(body)
        with _sockets(stub, 3) as sockets:
            for sock in sockets:
                sock.sendall(head + body)
            for sock in sockets:
                _until(sock, b"0\r\n\r\n")
        assert client.get("/health").status_code == 200
    firsts = sorted(seen.token_times_s[0] for seen in stub.log)
    assert all(later - earlier >= 0.019 for earlier, later in pairwise(firsts))


def test_a_client_that_goes_away_frees_its_place() -> None:
    with server(concurrency=1, tbt_s=30.0) as (stub, client):
        with client.stream("POST", TEXT, json={"prompt": [1], "max_tokens": 2, "stream": True}) as answer:
            assert next(answer.iter_lines()).startswith("data: ")
        answer = client.post(TEXT, json={"prompt": [1], "max_tokens": 1})
    assert answer.status_code == 200
    assert [seen.ended for seen in stub.log] == ["hung_up", "done"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "silence"])
def test_faults(fault: str, stream: bool) -> None:
    with server(faults={fault: 1.0}, retry_after_s=7) as (stub, client):
        ask = {"prompt": [1], "max_tokens": 8, "stream": stream}
        if fault in ("not_http", "reset", "cut"):
            with pytest.raises(httpx.RemoteProtocolError):
                client.post(TEXT, json=ask)
        else:
            answer = client.post(TEXT, json=ask)
            _check(fault, stream, answer)
    assert [seen.ended for seen in stub.log] == [fault]


def test_silence_lasts_until_the_client_gives_up() -> None:
    with server(faults={"silence": 1.0}) as (stub, client), pytest.raises(httpx.ReadTimeout):
        client.post(TEXT, json={"prompt": [1]}, timeout=0.05)
    assert [seen.ended for seen in stub.log] == ["silence"]


def test_faults_are_spread_by_their_shares() -> None:
    with server(faults={"429": 0.25, "500": 0.1}) as (stub, client):
        for _ in range(40):
            client.post(TEXT, json={"prompt": [1], "max_tokens": 1})
    faults = [seen.fault for seen in stub.log]
    assert (faults.count("429"), faults.count("500"), faults.count("")) == (10, 4, 26)


@pytest.mark.parametrize("faults", [{"fire": 0.1}, {"cut": 0.7, "429": 0.4}, {"cut": -0.1}])
def test_wrong_options_are_refused(faults: dict[str, float]) -> None:
    with pytest.raises(StubError):
        StubOptions(faults=faults)


def test_new_connections_can_be_left_waiting_and_the_whole_server_can_stand_still() -> None:
    with server(accept_delay_s=0.05, stall=(0.0, 0.05)) as (stub, client):
        client.post(TEXT, json={"prompt": [1], "max_tokens": 1})
        client.post(TEXT, json={"prompt": [1], "max_tokens": 1})
    assert stub.log[1].arrival_s - stub.log[0].arrival_s >= 0.04


@contextmanager
def _sockets(stub: Stub, num: int) -> Iterator[list]:
    port = int(stub.url.rpartition(":")[2])
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(num)]


def _until(sock: object, mark: bytes) -> None:
    data = b""
    while mark not in data:
        data += sock.recv(65536)  # type: ignore[attr-defined]


def _check(fault: str, stream: bool, answer: httpx.Response) -> None:
    if fault in ("429", "503"):
        assert (answer.status_code, answer.headers["retry-after"]) == (int(fault), "7")
    elif fault == "500" or (fault == "error_event" and not stream):
        assert answer.status_code == 500
    elif fault == "html":
        assert answer.text.startswith("<!doctype html>")
    elif fault == "rubbish":
        with pytest.raises(msgspec.DecodeError):
            msgspec.json.decode(answer.text.removeprefix("data: "))
    else:
        assert "error" in events(answer)[-1]
