"""The life of one request. One number is the truth: ``num_computed_tokens`` catches up with ``num_tokens``."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, StrEnum
from math import inf
from typing import NamedTuple

from braid.core.program import ProgramRef, RetainIntent
from braid.core.sampling import SamplingParams


class Status(Enum):
    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


class FinishReason(StrEnum):
    """Why a request ended; the values are OpenAI's where OpenAI has one."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


FAILED = (FinishReason.ERROR, FinishReason.ABORT)
"""How requests end that brought no answer."""


class TokenLogprobs(NamedTuple):
    """Natural-log probability of one chosen token, its rank (1 = most likely), and the best alternatives.

    Probabilities are the model's own: before penalties, bias, temperature and truncation.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...]


class PhaseTimes(NamedTuple):
    """How long one request was where, in seconds on the executor's clock; None for what it never reached."""

    queued: float | None = None
    """From arrival to its first step."""
    prefill: float | None = None
    """From its first step to its first token, or to its end where it wants no token."""
    decode: float | None = None
    """From its first token to its end."""
    num_preemptions: int = 0


class Delta(NamedTuple):
    """What one request gained since its last delta; the last one carries ``finish_reason`` and ``times``.

    ``stop_reason`` is the stop string or the stop token id that ended the request; ``error`` is a text for the
    user when ``finish_reason`` is ERROR, and ``can_retry`` tells whether the request may go well if it is sent again.
    ``prompt_logprobs`` (one entry per prompt token, None for the first) come with the first delta of a request that
    asked for them, ``embedding`` with the only delta of a pooling request.
    """

    request_id: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    num_cached_tokens: int
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    error: str | None = None
    times: PhaseTimes | None = None
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    embedding: tuple[float, ...] | None = None
    can_retry: bool = False


class Slo(NamedTuple):
    """What a request's client wishes, in seconds: at most ``ttft_s`` until the first token, and ``tbt_s`` between two.
    Infinite where nothing is wished."""

    ttft_s: float = inf
    tbt_s: float = inf


NO_SLO = Slo()


@dataclass(slots=True, eq=False)
class Request:
    """One sequence on its way through the scheduler.

    Invariants:
        1. ``0 <= num_computed_tokens <= num_tokens``; KV exists for exactly the first ``num_computed_tokens`` tokens.
        2. ``block_ids`` covers at least ``num_computed_tokens`` tokens and is owned by the block pool's writer.
        3. ``num_output_tokens = num_tokens - num_prompt_tokens``; a preemption never removes an output token.

    Times are seconds on the executor's clock.
    """

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    arrival_time: float = 0.0
    eos_token_ids: frozenset[int] = frozenset()
    max_tokens: int = 0
    """Output limit after the context limit is applied; set by whoever admits the request. 0: no token is wanted."""
    seed: int = 0
    """The random stream; equals ``params.seed`` where one was given."""
    priority: int = 0
    """Lower runs earlier (vLLM's meaning)."""
    cache_salt: str = ""
    """Prefix blocks are shared only among requests of equal salt."""
    program: ProgramRef | None = None
    intent: RetainIntent | None = None
    pooling: str | None = None
    """``last`` or ``mean``: make one vector of the prompt's hidden states, and no token."""
    slo: Slo = NO_SLO

    status: Status = Status.WAITING
    token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    """Prompt tokens found in the prefix cache at first admission."""
    block_ids: list[int] = field(default_factory=list)
    in_flight: bool = False
    num_preemptions: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    error: str | None = None
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    last_token_time: float | None = None
    finish_time: float | None = None

    def __post_init__(self) -> None:
        if not self.token_ids:
            self.token_ids = list(self.prompt_token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - len(self.prompt_token_ids)

    @property
    def is_finished(self) -> bool:
        return self.status is Status.FINISHED

    @property
    def wants_tokens(self) -> bool:
        """Whether anything is to be generated, once ``max_tokens`` is set."""
        return self.pooling is None and self.max_tokens > 0

    def times(self) -> PhaseTimes:
        """How long it was where, as far as it has come."""
        begun, first = self.first_scheduled_time, self.first_token_time
        ready = self.finish_time if first is None and not self.wants_tokens else first
        return PhaseTimes(
            queued=_span(self.arrival_time, begun),
            prefill=_span(begun, ready),
            decode=_span(first, self.finish_time),
            num_preemptions=self.num_preemptions,
        )


def _span(begin: float | None, end: float | None) -> float | None:
    return None if begin is None or end is None else end - begin
