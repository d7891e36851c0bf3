"""What became of each planned request: the record that senders write and everything after them reads.

All times are seconds from the run's start on one monotonic clock that all processes share. ``planned`` is always
the sum of the statuses: nothing is lost.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:  # senders read this module, and have no use for tables
    import polars as pl

Status = Literal[
    "ok", "refused", "error", "timed_out", "cancelled", "cut", "unreachable", "rubbish", "unsent"
]
STATUSES: tuple[Status, ...] = (
    "ok",
    "refused",
    "error",
    "timed_out",
    "cancelled",
    "cut",
    "unreachable",
    "rubbish",
    "unsent",
)
"""
    ok           answered to its end
    refused      429 or 503 (after all retries that the run allows)
    error        any other HTTP status, or an error event inside a stream
    timed_out    the client's limit passed
    cancelled    the client hung up, as planned
    cut          the connection ended inside the answer
    unreachable  no connection
    rubbish      an answer that is not what the endpoint promises
    unsent       never sent: the run was stopped, or a sender died
"""


class Outcome(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One request's end.

    Args:
        request: its number in the plan.
        scheduled_s: when it was to be sent (for one that waited: the real end of what it waited for plus its gap).
            None for one that was never scheduled.
        sent_s: when the client acted on it (took or opened a connection); ``sent_s - scheduled_s`` is the send lag.
        first_byte_s: of the answer.
        chunk_times_s: when each piece of output came; ``chunk_tokens``: tokens in each (1 each where the server does
            not say).
        end_s: when the answer ended, however it did.
        http_status: 0 without an answer.
        prompt_tokens, completion_tokens, cached_tokens: by the server's usage; None where it does not say.
        retry_after_s: of the last refusal.
        attempts: how often it was sent; retries after a refusal count, a stale connection does not.
        read_lag_s: the longest the sender was busy with other work before it read a piece of this answer: no time of
            this answer is more wrong than that.
        num_reads, num_late_reads: how often something of it was read, and how often later than ``RunSpec.late_read_s``.
        reason: why it is not ok, one line, as the server or the socket said it.
    """

    request: int
    status: Status
    scheduled_s: float | None = None
    sent_s: float | None = None
    first_byte_s: float | None = None
    chunk_times_s: tuple[float, ...] = ()
    chunk_tokens: tuple[int, ...] = ()
    end_s: float | None = None
    http_status: int = 0
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    retry_after_s: float | None = None
    attempts: int = 0
    read_lag_s: float = 0.0
    num_reads: int = 0
    num_late_reads: int = 0
    reason: str = ""


def outcome_schema() -> dict[str, Any]:
    """The columns of outcomes, in order."""
    import polars as pl

    return {
        "request": pl.UInt32,
        "status": pl.Enum(STATUSES),
        "scheduled_s": pl.Float64,
        "sent_s": pl.Float64,
        "first_byte_s": pl.Float64,
        "chunk_times_s": pl.List(pl.Float64),
        "chunk_tokens": pl.List(pl.Int64),
        "end_s": pl.Float64,
        "http_status": pl.Int32,
        "finish_reason": pl.String,
        "prompt_tokens": pl.Int64,
        "completion_tokens": pl.Int64,
        "cached_tokens": pl.Int64,
        "retry_after_s": pl.Float64,
        "attempts": pl.Int32,
        "read_lag_s": pl.Float64,
        "num_reads": pl.Int64,
        "num_late_reads": pl.Int64,
        "reason": pl.String,
    }


def outcome_frame(outcomes: list[Outcome], num_planned: int, why_missing: str) -> pl.DataFrame:
    """One row per planned request in order of the plan; those without a record are ``unsent`` for ``why_missing``."""
    import polars as pl

    schema = outcome_schema()
    known = {outcome.request: outcome for outcome in outcomes}
    missing = (number for number in range(num_planned) if number not in known)
    known |= {n: Outcome(request=n, status="unsent", reason=why_missing) for n in missing}
    rows = [known[number] for number in range(num_planned)]
    columns = {name: [getattr(row, name) for row in rows] for name in schema}
    return pl.DataFrame(columns, schema=schema)
