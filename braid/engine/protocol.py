"""The seam between the HTTP shell and whatever produces tokens. Free of torch, so that the HTTP process stays small."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from braid.core.experts import ExpertStats
from braid.core.metrics import EMPTY_HISTOGRAM, Histogram
from braid.core.program import Outcome, ProgramInfo, ProgramRef, ProgramVerb, RetainIntent
from braid.core.request import NO_SLO, Delta, Slo
from braid.core.sampling import SamplingParams
from braid.policy.agents.program import Finish
from braid.policy.phases.policy import Division

MAX_LISTED = 1000
"""Programs that are told of at once."""


class GenerateRequest(NamedTuple):
    """One sequence to be generated; an ``n > 1`` call is expanded into children with ids of their own before."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    params: SamplingParams
    priority: int = 0
    cache_salt: str = ""
    program: ProgramRef | None = None
    intent: RetainIntent | None = None
    pooling: str | None = None
    """``last`` or ``mean``: one vector of the prompt's hidden states instead of tokens."""
    slo: Slo = NO_SLO


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineInfo:
    """What a ready engine says of itself; constant until it restarts."""

    model: str
    architecture: str
    dtype: str
    device: str
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    vocab_size: int
    num_blocks: int
    block_size: int
    kernels: str
    torch_version: str
    hidden_size: int = 0
    """Length of an embedding."""
    pooling: str | None = None
    """How this model's embeddings are made (``last`` or ``mean``); None where it makes none."""
    block_bytes: int = 0
    """KV of one block, for blocks as bytes."""
    phases: str = "mixed"
    """How prefill and decode share the machine."""
    partition: str = "serial"
    """What gives lanes their shares."""
    agent_policy: str = "lru"
    """How programs are ordered, admitted and kept."""
    experts: Mapping[str, str] = field(default_factory=dict)
    """How experts are held that have a file: ``policy``, ``scope``, ``format``, ``prefetch``; empty where all are in
    memory, or there are none."""
    acts_on: tuple[str, ...] = ("lease_s", "verbs")
    """Fields of ``RetainIntent`` that make a difference under this policy."""


class LaneStats(NamedTuple):
    """A lane that computes: now, and since the engine started.

    ``units`` are cores, or groups of SMs, of the step in flight, 0 without one; ``restarts`` are threads that followed
    one that had died.
    """

    units: int = 0
    steps: int = 0
    busy_s: float = 0.0
    restarts: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """Gauges at one moment and counters since the engine started (token counts in tokens)."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    """Blocks that can be granted now, cached ones included."""
    num_cached_blocks: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    num_preemptions: int = 0
    num_steps: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    num_programs: int = 0
    """Programs whose latest turn is remembered."""
    num_leases: int = 0
    num_leased_blocks: int = 0
    leases_granted: int = 0
    leases_clipped: int = 0
    """Wishes that were cut, in seconds or in blocks."""
    leases_revoked: int = 0
    """Leases that ended early because somebody needed the blocks."""
    block_lifetime: Histogram = EMPTY_HISTOGRAM
    """Seconds from a cached block's granting to its eviction."""
    block_idle_before_evict: Histogram = EMPTY_HISTOGRAM
    """Seconds from a cached block's last use to its eviction."""
    block_reuse_gap: Histogram = EMPTY_HISTOGRAM
    """Seconds from a cached block's use to its next by another request."""
    tokens_by_origin: Mapping[str, int] = field(default_factory=dict)
    """Tokens of the turns that started, by where their KV came from; see ``braid.sched.observer.Origins``."""
    programs_kept: Mapping[str, int] = field(default_factory=dict)
    """Programs that came back, or were given up, by what had become of their blocks."""
    keep_sources: Mapping[str, int] = field(default_factory=dict)
    """Decisions how long to keep a program's blocks, by what they rested on."""
    policy_state: Mapping[str, float] = field(default_factory=dict)
    """What the policies have learnt, by names of their own."""
    oldest_newcomer_wait: float = 0.0
    """Seconds that the first turn of a program has been waiting, the longest of all."""
    ttft_first: Histogram = EMPTY_HISTOGRAM
    """Seconds from arrival to first token, of programs' first turns."""
    ttft_later: Histogram = EMPTY_HISTOGRAM
    turn_preemptions: Histogram = EMPTY_HISTOGRAM
    """How often a turn had been preempted when it ended."""
    agent_log_dropped: int = 0
    """Events that the log of turns could not take."""
    tiers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By tier below the device (``host``, ``disk``) its blocks: ``slots``, ``used``, ``stored``, ``loaded``,
    ``failed``, ``evicted``."""
    division: Division | None = None
    """How the phases share the machine since the last step was planned."""
    lanes: Mapping[str, LaneStats] = field(default_factory=dict)
    """``mixed``, ``prefill`` and ``decode``, as far as the engine has them."""
    experts: ExpertStats | None = None
    """Of the store of experts; None where all experts are in memory, or there are none."""


class EngineClient(Protocol):
    """Tokens in, tokens out."""

    @property
    def info(self) -> EngineInfo | None:
        """None until the engine has been ready once."""
        ...

    @property
    def is_ready(self) -> bool:
        """True while the engine accepts requests."""
        ...

    @property
    def down_reason(self) -> str:
        """Why ``is_ready`` is False; empty while it is True."""
        ...

    @property
    def restarts(self) -> int:
        """How often the engine has died and been started again."""
        ...

    def generate(self, request: GenerateRequest) -> AsyncGenerator[Delta]:
        """Stream a request's deltas; the last has a finish_reason. Closing the iterator aborts the request.

        Raises:
            EngineDeadError: the engine is not running, or died before the request ended.
            OverloadedError: the queue is full.
            InvalidParameterError: the engine's limits do not admit the request (for example its context length).
        """
        ...

    async def stats(self) -> EngineStats:
        """Raises EngineDeadError when the engine is not running."""
        ...

    async def program(self, verb: ProgramVerb, program: ProgramRef, seconds: float | None = None) -> Outcome:
        """Act on what the engine keeps for a program; ``seconds`` is how long to ``pin``.

        Raises:
            EngineDeadError: the engine is not running.
        """
        ...

    async def told(self, program: ProgramRef, finish: Finish, tool: str | None) -> None:
        """Say how a program's latest turn has ended, by who has read its answer; ``tool`` names what it goes off to do.

        Nobody waits for it and it never fails: what an engine is not told it does without.
        """
        ...

    async def programs(self, owner: str | None, limit: int = MAX_LISTED) -> list[ProgramInfo]:
        """The programs of ``owner`` that were last heard of (of everybody if None), the latest first; at most
        ``MAX_LISTED``.

        Raises:
            EngineDeadError: the engine is not running.
        """
        ...
