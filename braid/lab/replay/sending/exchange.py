"""One planned request while it is played: from the time it is due to its outcome."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from braid.lab.replay.outcome import Outcome, Status
from braid.lab.replay.sending.answer import Answer

if TYPE_CHECKING:
    from braid.lab.replay.sending.connection import Connection

BYTES_PER_TOKEN = 1 << 12
MIN_MAX_BYTES = 1 << 24
"""An answer may have so many bytes, and ``BYTES_PER_TOKEN`` for each token that was asked for."""


@dataclass(slots=True)
class Exchange:
    """A request, all of its attempts.

    Args:
        number: in the plan.
        scheduled_s: when it was due first.
        due_s: when this attempt was due; its time limit counts from there.
        max_bytes: of one answer.
        late_s: reads of a greater lag are counted.
        open_lag_s: how much later than it could the rest of it was sent on a connection that had to be opened first.
        was_stale: this attempt met a connection that the server had closed.
        connection: that carries it.
    """

    number: int
    scheduled_s: float
    due_s: float
    max_bytes: int = MIN_MAX_BYTES
    late_s: float = math.inf
    answer: Answer = field(default_factory=Answer)
    sent_s: float | None = None
    first_byte_s: float | None = None
    read_lag_s: float = 0.0
    num_reads: int = 0
    num_late_reads: int = 0
    open_lag_s: float = 0.0
    attempts: int = 0
    was_stale: bool = False
    retry_after: bytes = b""
    retry_after_s: float | None = None
    connection: Connection | None = None

    def heard(self, now_s: float, lag_s: float) -> None:
        """Something of the answer is read, up to ``lag_s`` after it came."""
        if self.first_byte_s is None:
            self.first_byte_s = now_s
        lag_s += self.open_lag_s
        self.num_reads += 1
        self.num_late_reads += lag_s > self.late_s
        if lag_s > self.read_lag_s:
            self.read_lag_s = lag_s

    def begin_attempt(self, due_s: float, answer: Answer) -> None:
        """It is sent, for the first time or once more."""
        self.due_s = due_s
        self.answer = answer
        self.first_byte_s = None
        self.open_lag_s = 0.0
        self.was_stale = False
        self.retry_after = b""

    def outcome(self, status: Status, reason: str, end_s: float) -> Outcome:
        """How it ended."""
        answer = self.answer
        return Outcome(
            request=self.number,
            status=status,
            scheduled_s=self.scheduled_s,
            sent_s=self.sent_s,
            first_byte_s=self.first_byte_s,
            chunk_times_s=tuple(answer.chunk_times_s),
            chunk_tokens=tuple(answer.chunk_tokens),
            end_s=end_s,
            http_status=answer.http_status,
            finish_reason=answer.finish_reason,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            cached_tokens=answer.cached_tokens,
            retry_after_s=self.retry_after_s,
            attempts=self.attempts,
            read_lag_s=self.read_lag_s,
            num_reads=self.num_reads,
            num_late_reads=self.num_late_reads,
            reason=reason,
        )


def parse_retry_after(value: bytes, now: datetime | None = None) -> float | None:
    """Seconds to wait, from a number or an HTTP date; None for neither. ``now`` is for dates."""
    text = value.decode("latin-1").strip()
    try:
        seconds = float(text)
    except ValueError:
        pass
    else:
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - (now or datetime.now(UTC))).total_seconds())
