"""One attempt's answer, read as it comes: pieces of output, usage, and the verdict. Knows no socket and no clock.

Reads streams and whole answers of /v1/completions and /v1/chat/completions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from braid.lab.replay.files import Form
from braid.lab.replay.outcome import Status
from braid.lab.replay.sending.complaint import complaint, complaint_of, excerpt, one_line
from braid.lab.replay.sending.sse import EventReader, LongEventError

MAX_COMPLAINT = 1 << 16
"""Bytes of an error's body that are read."""
REFUSALS = (429, 503)
_SNIFF = 8
_EVENT_STARTS = (b"data:", b"event:", b"id:", b"retry:", b":")


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _Details | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[Any] | None = None
    function_call: Any = None

    @property
    def is_output(self) -> bool:
        return bool(
            self.content
            or self.reasoning_content
            or self.reasoning
            or self.tool_calls
            or self.function_call
            or self.refusal
        )


class _Choice(msgspec.Struct, gc=False):
    text: str | None = None
    delta: _Delta | None = None
    message: _Delta | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class Answer:
    """What a server answers to one attempt. ``status`` is None until the verdict is known; nothing changes it then.

    1. A piece of output is a chunk with text (of the reply, its reasoning, a tool call) or with token ids. It has as
       many tokens as the usage in it says, where usage comes with every piece from the first on; else as many as it
       has ids; else one.
    2. It is ``ok`` at ``[DONE]``, or when it ends after a finish reason; whatever follows is nobody's.
    3. Hanging up, as planned, comes with the piece that reaches ``cancel_after_tok``; for 0 with the answer's first
       line.

    Args:
        cancel_after_tok: None for never.
        keep: the form of the reply to keep in ``reply``; None where nobody needs it.
    """

    __slots__ = (
        "_cancel_after_tok", "_continuous", "_events", "_keep", "_no_ids", "_sniffed", "_whole", "cached_tokens",
        "chunk_times_s", "chunk_tokens", "completion_tokens", "finish_reason", "http_status", "num_tokens",
        "prompt_tokens", "reason", "reply", "status",
    )  # fmt: skip

    def __init__(self, *, cancel_after_tok: int | None = None, keep: Form | None = None) -> None:
        self._cancel_after_tok = cancel_after_tok
        self._keep = keep
        self._events: EventReader | None = None
        self._whole = bytearray()
        self._sniffed = False
        self._continuous: bool | None = None
        self._no_ids = False
        self.status: Status | None = None
        self.reason = ""
        self.http_status = 0
        self.chunk_times_s: list[float] = []
        self.chunk_tokens: list[int] = []
        self.num_tokens = 0
        self.finish_reason: str | None = None
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.reply: list[str] | list[int] = []

    def begin(self, http_status: int, content_type: bytes) -> None:
        """The head of the answer is there."""
        self.http_status = http_status
        if not self._is_success:
            return
        kind = content_type.split(b";", 1)[0].strip().lower()
        if kind == b"text/event-stream":
            self._events = EventReader()
        elif kind.endswith(b"html"):
            self._settle("rubbish", f"the answer is {kind.decode('latin-1')}")
        if self._cancel_after_tok == 0:
            self._settle("cancelled")

    def feed(self, data: bytes, now_s: float) -> None:
        """More of its body."""
        if self.status is not None:
            return
        if self._events is not None:
            self._read_events(data, now_s)
            return
        self._whole += data
        if not self._is_success:
            if len(self._whole) > MAX_COMPLAINT:
                self._settle_complaint()
        elif not self._sniffed and len(self._whole) >= _SNIFF:
            self._sniff(now_s)

    def end(self, now_s: float) -> None:
        """Its last byte was read."""
        if self.status is not None:
            return
        if not self._is_success:
            self._settle_complaint()
            return
        if not self._sniffed and self._events is None:
            self._sniff(now_s)
        if self._events is None:
            self._settle_whole(now_s)
        else:
            self._settle_stream(now_s, "the stream ended without a finish reason or [DONE]")

    def cut(self, why: str, now_s: float) -> None:
        """The connection ended before that."""
        if self.status is not None:
            return
        if self.http_status and not self._is_success:
            self._settle_complaint()
        elif self._events is not None:
            self._settle_stream(now_s, why)
        else:
            self._settle("cut", why)

    def spoil(self, why: str) -> None:
        """It is not HTTP, or has no end."""
        if self.http_status and not self._is_success:
            self._settle_complaint()
        else:
            self._settle("rubbish", why)

    @property
    def _is_success(self) -> bool:
        return 200 <= self.http_status < 300

    def _settle(self, status: Status, reason: str = "") -> None:
        if self.status is None:
            self.status = status
            self.reason = one_line(reason)
            self._whole.clear()

    def _settle_complaint(self) -> None:
        reason = f"HTTP {self.http_status}: {complaint(bytes(self._whole[:MAX_COMPLAINT]))}"
        self._settle("refused" if self.http_status in REFUSALS else "error", reason)

    def _settle_ok(self) -> None:
        if self._no_ids:
            self._settle("rubbish", "the answer has no token_ids, and the next turn needs them")
        else:
            self._settle("ok")

    def _sniff(self, now_s: float) -> None:
        """What a body is that does not call itself a stream of events."""
        start = bytes(self._whole[:_SNIFF]).lstrip()
        if not start and self._whole:
            start = bytes(self._whole[:MAX_COMPLAINT]).lstrip()
        if not start:
            return
        self._sniffed = True
        if start.startswith(_EVENT_STARTS):
            self._events = EventReader()
            data, self._whole = bytes(self._whole), bytearray()
            self._read_events(data, now_s)
        elif not start.startswith(b"{"):
            self._settle("rubbish", f"neither JSON nor events: {excerpt(bytes(self._whole))}")

    def _settle_whole(self, now_s: float) -> None:
        if not self._whole.strip():
            self._settle("rubbish", "an empty answer")
            return
        chunk = self._decode(bytes(self._whole))
        if chunk is None:
            return
        if not chunk.choices and chunk.error is None:
            self._settle("rubbish", f"an answer without choices: {excerpt(bytes(self._whole))}")
            return
        self._read_chunk(chunk, now_s)
        self._settle_ok()

    def _settle_stream(self, now_s: float, why: str) -> None:
        """The verdict on a stream that says no more."""
        assert self._events is not None
        for name, data in self._events.end():
            # What no empty line closed may be whole, or broken off anywhere.
            if data == b"[DONE]" or _is_whole(data):
                self._read_event(name, data, now_s)
        if self.status is None and self.finish_reason is not None:
            self._settle_ok()
        self._settle("cut", why)

    def _read_events(self, data: bytes, now_s: float) -> None:
        assert self._events is not None
        try:
            events = self._events.feed(data)
        except LongEventError as error:
            self._settle("rubbish", str(error))
            return
        for name, payload in events:
            self._read_event(name, payload, now_s)
            if self.status is not None:
                return

    def _read_event(self, name: bytes, data: bytes, now_s: float) -> None:
        if data == b"[DONE]":
            self._settle_ok()
            return
        if name == b"error":
            self._settle("error", complaint(data))
            return
        chunk = self._decode(data)
        if chunk is not None:
            self._read_chunk(chunk, now_s)

    def _decode(self, data: bytes) -> _Chunk | None:
        """None, and a verdict, where it is none."""
        try:
            chunk = _decode(data)
        except (ValueError, RecursionError) as error:
            self._settle("rubbish", f"not a chunk ({error}): {excerpt(data)}")
            return None
        if chunk.choices is None and chunk.usage is None and chunk.error is None:
            self._settle("rubbish", f"not a chunk (no choices): {excerpt(data)}")
            return None
        return chunk

    def _read_chunk(self, chunk: _Chunk, now_s: float) -> None:
        if chunk.error is not None:
            self._settle("error", complaint_of(chunk.error))
            return
        if chunk.usage is not None:
            self._read_usage(chunk.usage)
        if not chunk.choices:
            return
        is_output = False
        num_ids = 0
        for choice in chunk.choices:
            part = choice.delta or choice.message
            is_output = is_output or bool(choice.text) or (part is not None and part.is_output)
            num_ids += len(choice.token_ids or ())
            self.finish_reason = choice.finish_reason or self.finish_reason
            if self._keep is not None:
                self._keep_reply(choice)
        self._count(chunk.usage, is_output, num_ids, now_s)

    def _read_usage(self, usage: _Usage) -> None:
        if usage.prompt_tokens is not None:
            self.prompt_tokens = usage.prompt_tokens
        if usage.completion_tokens is not None:
            self.completion_tokens = usage.completion_tokens
        if usage.prompt_tokens_details is not None and usage.prompt_tokens_details.cached_tokens is not None:
            self.cached_tokens = usage.prompt_tokens_details.cached_tokens

    def _count(self, usage: _Usage | None, is_output: bool, num_ids: int, now_s: float) -> None:
        said = usage.completion_tokens if usage is not None else None
        if self._continuous is None and (is_output or num_ids or said):
            self._continuous = said is not None
        num = num_ids or int(is_output)
        if self._continuous and said is not None:
            num = said - self.num_tokens
        if num <= 0:
            return
        self.chunk_times_s.append(now_s)
        self.chunk_tokens.append(num)
        self.num_tokens += num
        if self._cancel_after_tok is not None and self.num_tokens >= self._cancel_after_tok:
            self._settle("cancelled")

    def _keep_reply(self, choice: _Choice) -> None:
        part = choice.delta or choice.message
        text = choice.text or (part.content if part is not None else None)
        reply: list[Any] = self.reply
        if self._keep != "ids":
            if text:
                reply.append(text)
        elif choice.token_ids:
            reply += choice.token_ids
        elif text:
            self._no_ids = True


def encode_reply(reply: Sequence[str] | Sequence[int], form: Form) -> bytes:
    """As a later prompt holds it: decimal ids joined by commas, or the inside of a JSON string."""
    if form == "ids":
        return ",".join(map(str, reply)).encode()
    return msgspec.json.encode("".join(map(str, reply)))[1:-1]


def _is_whole(data: bytes) -> bool:
    try:
        _decode(data)
    except (ValueError, RecursionError):
        return False
    return True
