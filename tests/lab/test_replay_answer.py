from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from braid.lab.replay.sending.answer import MAX_COMPLAINT, Answer, encode_reply
from braid.lab.replay.sending.complaint import complaint
from braid.lab.replay.sending.exchange import parse_retry_after

STREAM = b"text/event-stream; charset=utf-8"


def chunk(text: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": more.pop("finish", None), "logprobs": None}
    if "ids" in more:
        choice["token_ids"] = more.pop("ids")
    return event({"id": "x", "object": "text_completion", "choices": [choice], **more})


def chat(finish: str | None = None, **delta: Any) -> bytes:
    return event({"object": "chat.completion.chunk", "choices": [{"delta": delta, "finish_reason": finish}]})


def event(value: Any) -> bytes:
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


DONE = b"data: [DONE]\n\n"


def read(
    *pieces: bytes, kind: bytes = STREAM, status: int = 200, ends: bool = True, **options: Any
) -> Answer:
    """Piece ``n`` comes at second ``n``."""
    answer = Answer(**options)
    answer.begin(status, kind)
    for now_s, piece in enumerate(pieces):
        answer.feed(piece, float(now_s))
    if ends:
        answer.end(float(len(pieces)))
    else:
        answer.cut("the socket said no", float(len(pieces)))
    return answer


def test_pieces_without_usage_count_one_each() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
    last = event({"choices": [], "usage": usage})
    answer = read(chunk("a"), chunk("b"), chunk(""), chunk("c", finish="length"), last, DONE)
    assert (answer.status, answer.finish_reason) == ("ok", "length")
    assert answer.chunk_times_s == [0.0, 1.0, 3.0]
    assert answer.chunk_tokens == [1, 1, 1]
    assert (answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens) == (7, 3, 4)


def test_continuous_usage_tells_tokens_also_of_pieces_without_text() -> None:
    pieces = [
        chunk(text, usage={"completion_tokens": n}) for text, n in (("", 0), ("a", 2), ("", 3), ("bc", 6))
    ]
    answer = read(*pieces, chunk("", finish="stop", usage={"completion_tokens": 6}), DONE)
    assert answer.chunk_tokens == [2, 1, 3]
    assert answer.chunk_times_s == [1.0, 2.0, 3.0]


def test_usage_with_the_last_piece_only_is_not_continuous() -> None:
    answer = read(chunk("ab"), chunk("cd", finish="stop", usage={"completion_tokens": 8}), DONE)
    assert answer.chunk_tokens == [1, 1]
    assert answer.completion_tokens == 8


def test_token_ids_count_where_there_is_no_usage() -> None:
    answer = read(chunk("ab", ids=[1, 2]), chunk("", ids=[3]), chunk("c", ids=[4], finish="length"), DONE)
    assert answer.chunk_tokens == [2, 1, 1]


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "a"},
        {"reasoning_content": "hm"},
        {"reasoning": "hm"},
        {"refusal": "no"},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
        {"function_call": {"arguments": "{"}},
    ],
)
def test_all_kinds_of_chat_output_count(delta: dict[str, Any]) -> None:
    answer = read(chat(role="assistant", content=""), chat(**delta), chat(finish="stop"), DONE)
    assert answer.status == "ok"
    assert answer.chunk_times_s == [1.0]


def test_an_answer_in_one_piece_comes_at_its_end() -> None:
    whole = {"choices": [{"text": "abc", "finish_reason": "length"}], "usage": {"completion_tokens": 5}}
    data = msgspec.json.encode(whole)
    answer = read(data[:9], data[9:], kind=b"application/json")
    assert (answer.status, answer.chunk_tokens, answer.chunk_times_s) == ("ok", [5], [2.0])


def test_a_chat_answer_in_one_piece_is_read() -> None:
    whole = {"choices": [{"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]}
    answer = read(msgspec.json.encode(whole), kind=b"application/json", keep="chat")
    assert (answer.status, answer.chunk_tokens, answer.reply) == ("ok", [1], ["hi"])


def test_a_stream_by_another_name_is_read() -> None:
    assert read(chunk("a", finish="stop"), DONE, kind=b"text/plain").chunk_tokens == [1]


def test_content_after_the_end_is_nobodys() -> None:
    answer = read(chunk("a"), DONE + chunk("b") + b"data: {nonsense\n\n")
    assert (answer.status, answer.chunk_tokens) == ("ok", [1])


@pytest.mark.parametrize(
    ("pieces", "options", "status", "reason"),
    [
        ([chunk("a"), event({"error": {"message": "no\nmemory"}})], {}, "error", "no memory"),
        ([chunk("a"), b'event: error\ndata: {"message": "gone"}\n\n'], {}, "error", "gone"),
        ([b'{"error": {"message": "bad"}}'], {"kind": b"application/json"}, "error", "bad"),
        ([chunk("a")], {}, "cut", "without a finish reason"),
        ([chunk("a")], {"ends": False}, "cut", "the socket said no"),
        ([chunk("a"), b'data: {"choi'], {"ends": False}, "cut", "the socket said no"),
        ([b'{"choices"'], {"ends": False, "kind": b"application/json"}, "cut", "the socket said no"),
        ([], {"ends": False}, "cut", "the socket said no"),
        ([chunk("a", finish="stop")], {"ends": False}, "ok", ""),
        ([chunk("a"), b"data: [DONE]"], {"ends": False}, "ok", ""),
        ([], {"kind": b"text/html"}, "rubbish", "text/html"),
        ([b"<!doctype html><p>hi"], {"kind": b""}, "rubbish", "doctype"),
        ([b"welcome to the proxy"], {"kind": b"text/plain"}, "rubbish", "welcome"),
        ([b""], {"kind": b"application/json"}, "rubbish", "empty"),
        ([b"  \n "], {"kind": b"application/json"}, "rubbish", "empty"),
        ([b'{"hello": "world"}'], {"kind": b"application/json"}, "rubbish", "choices"),
        ([b'{"choices": []}'], {"kind": b"application/json"}, "rubbish", "without choices"),
        ([b'{"choices": [{"text": 5}]}'], {"kind": b"application/json"}, "rubbish", "not a chunk"),
        ([b'{"choices": [{"text": "a'], {"kind": b"application/json"}, "rubbish", "not a chunk"),
        ([b"data: hello\n\n"], {}, "rubbish", "hello"),
        ([b"data: 5\n\n"], {}, "rubbish", "not a chunk"),
        ([b'data: {"x":' + b"[" * 10**5 + b"\n\n"], {}, "rubbish", "not a chunk"),
        ([b'data: {"choices":[{"text":"\xff\xfe"}]}\n\n'], {}, "rubbish", "not a chunk"),
        ([b"x" * (2 << 20)], {}, "rubbish", "line of more"),
        ([b'{"error": {"message": "slow down"}}'], {"status": 429}, "refused", "HTTP 429: slow down"),
        ([b"busy"], {"status": 503, "ends": False}, "refused", "HTTP 503: busy"),
        ([b'{"detail": "nobody"}'], {"status": 404}, "error", "HTTP 404: nobody"),
        ([b""], {"status": 500}, "error", "HTTP 500: (nothing)"),
        ([b"y" * (MAX_COMPLAINT + 1)], {"status": 500, "ends": False}, "error", "HTTP 500: yyy"),
        ([b""], {"status": 302}, "error", "HTTP 302"),
    ],
)
def test_verdicts(pieces: list[bytes], options: dict[str, Any], status: str, reason: str) -> None:
    answer = read(*pieces, **options)
    assert answer.status == status
    assert reason in answer.reason
    assert "\n" not in answer.reason
    assert len(answer.reason) <= 300


def test_hanging_up_comes_with_the_piece_that_reaches_the_number() -> None:
    answer = read(*[chunk("a", ids=[1, 2]) for _ in range(5)], cancel_after_tok=3)
    assert (answer.status, answer.chunk_tokens) == ("cancelled", [2, 2])
    assert read(kind=STREAM, cancel_after_tok=0).status == "cancelled"
    assert read(b"no", status=500, cancel_after_tok=0).status == "error"
    assert read(chunk("a", finish="stop"), DONE, cancel_after_tok=3).status == "ok"


def test_replies_are_kept_as_the_form_says() -> None:
    pieces = (chunk('a"', ids=[1, 2]), chunk("\n\u00e4", ids=[30], finish="stop"), DONE)
    assert encode_reply(read(*pieces, keep="ids").reply, "ids") == b"1,2,30"
    text = encode_reply(read(*pieces, keep="text").reply, "text")
    assert msgspec.json.decode(b'"' + text + b'"') == 'a"\n\u00e4'
    said = read(chat(reasoning_content="hm"), chat(content="hi"), chat(finish="stop"), DONE, keep="chat")
    assert encode_reply(said.reply, "chat") == b"hi"
    assert read(*pieces).reply == []


def test_a_reply_without_the_ids_that_are_needed_is_rubbish() -> None:
    answer = read(chunk("a", finish="stop"), DONE, keep="ids")
    assert (answer.status, answer.reason) == (
        "rubbish",
        "the answer has no token_ids, and the next turn needs them",
    )


def test_complaints_are_found_in_known_places() -> None:
    assert complaint(b'{"error": {"message": "a  b"}}') == "a b"
    assert complaint(b'{"error": "plain"}') == "plain"
    assert complaint(b'{"object": "error", "message": "top"}') == "top"
    assert complaint(b'{"code": 5}') == "{'code': 5}"
    assert complaint(b"\xff") == "\ufffd"


def test_retry_after_is_seconds_or_a_date() -> None:
    now = datetime(2030, 1, 2, 3, 4, 0, tzinfo=UTC)
    assert parse_retry_after(b" 2.5 ") == 2.5
    assert parse_retry_after(b"Wed, 02 Jan 2030 03:04:05 GMT", now) == 5.0
    assert parse_retry_after(b"Wed, 02 Jan 2030 03:03:05 GMT", now) == 0.0
    assert parse_retry_after(b"Wed, 02 Jan 2030 03:04:05 -0000", now) == 5.0
    for nonsense in (b"", b"soon", b"-1", b"inf", b"nan"):
        assert parse_retry_after(nonsense) is None
