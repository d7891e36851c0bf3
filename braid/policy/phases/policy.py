"""The decision about phases: one step for both, or a lane for each, and how much of the machine each lane has.

Pure: a policy is told what waits and how long steps took, and changes only what it has learnt. The scheduler asks
whenever a lane is free, so twice or three times at the same moment; a lane starts only if its units are free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol


class Demand(NamedTuple):
    """What there is to compute when a lane is free.

    Args:
        now: seconds.
        num_units: of the machine: cores, or groups of SMs.
        num_decodes: running requests that want one token each, those in flight included.
        num_context: tokens whose KV these read in a step.
        num_prefill: tokens of prompts that are to be computed: of running requests, and of all that wait, whatever of
            theirs the cache holds.
        next_prefill, next_start: tokens to compute of the request that is prefilled next, and how many have KV.
        waited_s: since the arrival of the oldest running request that has no token yet; 0 without one.
        tbt_s, ttft_s: the strictest wishes among those that decode, and among those that have no token yet; infinite
            where nobody said anything.
        max_num_batched_tokens: that one step computes at most.
        can_reshare: whether a step in flight takes over the units of a later division.
    """

    now: float
    num_units: int
    num_decodes: int
    num_context: int
    num_prefill: int
    next_prefill: int
    next_start: int
    waited_s: float
    tbt_s: float
    ttft_s: float
    max_num_batched_tokens: int = 1 << 30
    can_reshare: bool = False


class Division(NamedTuple):
    """What holds until lanes are free again.

    Args:
        is_mixed: one step with decodes and chunks of prompts, on all units; otherwise a lane for each phase.
        prefill_units, decode_units: of the lanes while both have work; a phase that is alone gets all units. Their sum
            may exceed the machine's, and then they share.
        max_prefill: tokens of prompts in one step, at least 1.
        is_prefill_first: in mixed steps decodes wait while there is a prompt to compute.
        why: in words, for logs.
        num_layers: of the model, that a mixed step computes of a chunk while there are decodes; 0 for all. The chunk's
            other layers follow in the next steps, and no other chunk is begun meanwhile.
        predicted_tbt_s: of a step with this division; None where nothing is predicted.
    """

    is_mixed: bool
    prefill_units: int
    decode_units: int
    max_prefill: int
    is_prefill_first: bool = False
    why: str = ""
    predicted_tbt_s: float | None = None
    num_layers: int = 0


class Decided(NamedTuple):
    """A division that differs from the one before it, while both phases had work, and what it was decided for."""

    demand: Demand
    division: Division


class StepSeen(NamedTuple):
    """A step that is over.

    Args:
        lane: ``mixed``, ``prefill`` or ``decode``.
        units: that it had when it began.
        num_prefill: tokens of prompts; ``num_pairs`` are the pairs of tokens that their attention had to weigh.
        num_decodes, num_context: requests with one token, and tokens whose KV they read.
        seconds: it took.
        is_shared: whether another lane computed at the same time.
        is_reshared: whether its units changed meanwhile.
    """

    lane: str
    units: int
    num_prefill: int
    num_pairs: float
    num_decodes: int
    num_context: int
    seconds: float
    is_shared: bool
    is_reshared: bool = False


class Phases(Protocol):
    """Chooses a division."""

    @property
    def name(self) -> str: ...

    @property
    def is_split(self) -> bool:
        """Whether it may want lanes for each phase, so that the executor must have them."""
        ...

    def divide(self, demand: Demand) -> Division: ...

    def stepped(self, step: StepSeen, now: float) -> None: ...

    def answered(self, seconds: float, limit: float, now: float, *, is_first: bool) -> None:
        """A request has a token, ``seconds`` after its arrival (``is_first``) or after the token before; the limit that
        holds for it is infinite where nobody said anything."""
        ...

    def describe(self) -> Mapping[str, float]:
        """What it has learnt and decided, for telemetry."""
        ...
