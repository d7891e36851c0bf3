"""The messages of one step, and the seam they cross. A plan is all an executor may look at, and all that is logged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

from braid.core.request import TokenLogprobs
from braid.core.sampling import SamplingParams


class SampleSpec(NamedTuple):
    """How to choose the token that follows a piece of work.

    ``token_ids`` is the request's whole history (prompt, then output), for penalties; the random number of a
    token is a pure function of ``(seed, len(token_ids) - num_prompt_tokens)``, so it depends neither on the batch
    nor on preemption.
    ``banned_token_ids`` may not be chosen (end tokens before ``min_tokens``).
    """

    params: SamplingParams
    seed: int
    token_ids: Sequence[int]
    num_prompt_tokens: int
    banned_token_ids: tuple[int, ...] = ()


class ScoreSpec(NamedTuple):
    """Weigh known tokens: ``token_ids[i]`` as what follows the work's token ``i``, beside ``num_top`` alternatives."""

    token_ids: Sequence[int]
    num_top: int


class Layers(NamedTuple):
    """Layers ``[first, end)`` of ``num``, of works whose other layers belong to steps before and after.

    ``carry`` is what the executor left after layer ``first - 1``, in ``StepResult.carried``; None before the first.
    """

    first: int
    end: int
    num: int
    carry: object = None

    @property
    def is_last(self) -> bool:
        return self.end == self.num

    @property
    def share(self) -> float:
        return (self.end - self.first) / self.num


class Work(NamedTuple):
    """Tokens ``[start, start + len(token_ids))`` of one request, to be computed in one step.

    ``block_ids`` covers ``start + len(token_ids)`` tokens. ``sample`` is None while the prompt is not yet complete, and
    where no token is wanted. ``pooling`` asks for the last of the work's final hidden states (``last``) or for their
    sum (``mean``). With ``layers``, only these are computed; nothing is wanted of the tokens then but in the last, and
    all works of a plan that have ``layers`` have the same.
    """

    request_id: str
    token_ids: Sequence[int]
    start: int
    block_ids: Sequence[int]
    sample: SampleSpec | None
    score: ScoreSpec | None = None
    pooling: str | None = None
    layers: Layers | None = None

    @property
    def is_decode(self) -> bool:
        """One token on top of existing KV: what decode kernels are made for."""
        return len(self.token_ids) == 1 and self.start > 0


class Move(NamedTuple):
    """The KV of one block, copied between the device and a slot of a tier below it.

    ``key`` names the content: what is found in the slot under another name is not it. ``is_load`` is slot to block,
    else block to slot. Nobody else writes the block or the slot while the step is in flight.
    """

    block: int
    tier: str
    slot: int
    key: bytes
    is_load: bool


class StepPlan(NamedTuple):
    """One step of one lane. Decodes come first in ``works``; a request appears at most once.

    A step of the lane ``tier`` has ``moves`` and no works. ``units`` are cores, or groups of SMs, that it may use; 0
    for all.
    """

    step_id: int
    lane: str
    works: tuple[Work, ...]
    preempted: tuple[str, ...] = ()
    moves: tuple[Move, ...] = ()
    units: int = 0

    @property
    def num_scheduled_tokens(self) -> int:
        return sum(len(work.token_ids) for work in self.works)


class SampledToken(NamedTuple):
    token_id: int
    logprobs: TokenLogprobs | None = None


class StepResult(NamedTuple):
    """What came of a plan. ``errors`` maps requests that failed to a text for the user; their KV is not to be trusted.

    ``exhausted`` are those of ``errors`` that found no memory: they may be sent again.
    ``deferred`` requests got no token for want of time; their last token is to be computed again.
    ``carried`` is what the next layers of a work with ``layers`` begin with, for none but the executor.
    ``scores`` answers the works' ``score``, one entry per token weighed; ``pooled`` their ``pooling``.
    ``failed_moves`` are places among the plan's moves whose content did not arrive; ``broken_tiers`` are not to be used
    any more.
    ``start`` and ``duration`` are seconds on the executor's clock.
    """

    step_id: int
    lane: str
    start: float
    duration: float
    tokens: dict[str, SampledToken]
    errors: Mapping[str, str] = MappingProxyType({})
    scores: Mapping[str, Sequence[TokenLogprobs]] = MappingProxyType({})
    pooled: Mapping[str, Sequence[float]] = MappingProxyType({})
    deferred: frozenset[str] = frozenset()
    exhausted: frozenset[str] = frozenset()
    failed_moves: frozenset[int] = frozenset()
    broken_tiers: frozenset[str] = frozenset()
    carried: Mapping[str, object] = MappingProxyType({})


class Executor(Protocol):
    """Effects live here; twins are the real Runner (wall clock) and the SimExecutor (virtual clock)."""

    @property
    def lanes(self) -> tuple[str, ...]:
        """Names of the lanes that can hold one step each at the same time."""
        ...

    def now(self) -> float:
        """Seconds on this executor's monotonic clock."""
        ...

    def submit(self, plan: StepPlan) -> None:
        """Start a step; returns at once. At most one step per lane is in flight."""
        ...

    def reshare(self, lane: str, units: int) -> None:
        """Give the step in flight in ``lane`` so many units from now on. Asked only of executors whose scheduler was
        told that it ``can_reshare``."""
        ...

    def wait(self, until: float | None) -> list[StepResult]:
        """Block until a step ends, ``wake`` is called or ``until`` is reached; the only blocking call of the loop."""
        ...

    def wake(self) -> None:
        """Make a running or the next ``wait`` return early; safe from any thread."""
        ...
