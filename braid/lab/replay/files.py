"""The folder between planner and senders. Plain arrays and JSON: senders need neither polars nor the trace.

requests.npy   one record per request, ``REQUEST``
after.npy      request numbers; a request's are ``after[after_from : after_to]``
bytes.bin      what is sent, see ``REQUEST``
run.json       ``RunSpec``
status-K.npy   counters of sender K while it runs, ``COUNTERS``, read for the live view
outcomes-K.mp  ``Outcome`` records of sender K as they end: length (4 bytes, little endian), then msgpack
"""

from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

Form = Literal["ids", "text", "chat"]
History = Literal["recorded", "live"]

REQUEST = np.dtype(
    [
        ("group", "u4"),
        ("start_s", "f8"),
        ("delay_s", "f8"),
        ("out_tok", "i8"),
        ("cancel_after_tok", "i8"),
        ("history_of", "i8"),
        ("after_from", "i8"),
        ("after_to", "i8"),
        ("headers_at", "i8"),
        ("head_at", "i8"),
        ("new_at", "i8"),
        ("tail_at", "i8"),
        ("end_at", "i8"),
    ]
)
"""``start_s`` is NaN where a slot is waited for; ``cancel_after_tok`` and ``history_of`` are -1 for none.

In ``bytes.bin`` a request lies at ``[headers_at, end_at)``: its own header lines (each with CRLF), then the body in
three pieces: ``head``, ``new``, ``tail``. With recorded history the body is ``head + new + tail``. With live history it
is ``head + H + new + tail``, where H is empty for ``history_of`` -1, and otherwise H of that request, its ``new``,
``RunSpec.before_reply``, its reply encoded by ``form`` (JSON string content, or decimal ids joined by commas), and
``RunSpec.after_reply``.
"""

COUNTERS = ("scheduled", "sent", "open", "ok", "refused", "error", "timed_out", "cancelled", "cut", "unreachable",
            "rubbish", "unsent", "output_tokens", "lag_max_us", "waiting", "beat_us")  # fmt: skip
"""Int64 counters of a sender; ``beat_us`` is its clock when it last wrote. Behind them: ``RECENT`` TTFTs in
microseconds, a ring by ``ok``."""
RECENT = 256


class RunSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What all senders must know.

    Args:
        host, port, tls: where to connect; ``address`` that was looked up once.
        request_line: method and path, e.g. ``POST /v1/completions HTTP/1.1``.
        headers: common header lines, each with CRLF (Host, Content-Type, Accept); the key comes by another way.
        form: how prompts are written, and so what a piece of output looks like.
        history: what later turns hold of earlier replies.
        before_reply, after_reply: see ``REQUEST``.
        num_senders: groups are dealt by ``group % num_senders``.
        slots: programs at a time of each sender in concurrency mode; None for none.
        timeout_s: per attempt, from the scheduled time.
        drain_s: after the last planned start, open requests are given so long; None for no limit.
        max_retries: after 429/503, waiting Retry-After (or ``retry_wait_s`` without one).
        stop_on_failure: a program's later turns are left unsent when one is not ok; otherwise they go on.
        late_read_s: what is read later than so long after it came is counted.
        max_connections: of each sender; more is a refusal to start, said clearly.
    """

    host: str
    port: int
    address: str
    tls: bool = False
    request_line: str
    headers: str
    form: Form
    history: History = "recorded"
    before_reply: str = ""
    after_reply: str = ""
    num_senders: int = 1
    slots: tuple[int, ...] | None = None
    timeout_s: float = 600.0
    drain_s: float | None = None
    max_retries: int = 0
    retry_wait_s: float = 1.0
    stop_on_failure: bool = False
    late_read_s: float = 0.02
    max_connections: int = 10_000
