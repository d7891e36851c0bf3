"""What the scheduler knows of one live request beside the request itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from braid.core.request import FinishReason, Request
from braid.core.step import SampleSpec
from braid.policy.agents.policy import OrderKey
from braid.policy.agents.program import Program
from braid.sched.prompt_answer import PromptAnswer


class Begun(NamedTuple):
    """A chunk of ``num_tokens`` of which the layers up to ``num_layers`` are computed, and what they left."""

    num_tokens: int
    num_layers: int
    carry: object


@dataclass(slots=True, eq=False)
class Entry:
    """Bookkeeping of one request; what policies see of it is ``braid.policy.agents.program.Turn``.

    Invariants:
        1. ``keys`` names the first full blocks of ``request.token_ids``; tokens are only ever appended, so
           keys stay valid.
        2. ``parked_on`` is set exactly while the entry waits for another one to make that key READY.
        3. ``lane`` is set exactly while a step holds the request.
        4. ``begun`` is None while it waits, and while nothing more than whole chunks is computed.
    """

    request: Request
    program: Program
    number: int
    root: bytes
    order: OrderKey = ()
    line: int = 0
    is_resident: bool = False
    is_held: bool = False
    reusable: int = 0
    """Blocks at the front of its prompt that its program's latest turn, or its parent's, had too."""
    watched: bytes | None = None
    """The key by which ``is_resident`` is decided, while it waits, and who is told when that comes or goes."""
    seen: Callable[[bool], None] = lambda is_there: None
    keys: list[bytes] = field(default_factory=list)
    announced: list[bytes] = field(default_factory=list)
    parked_on: bytes | None = None
    lane: str | None = None
    begun: Begun | None = None
    spec: SampleSpec | None = None
    num_shared_blocks: int = 0
    """Blocks at the front of the request's that others filled: its prefix hit of the latest admission."""
    spec_is_early: bool = False
    """Whether ``spec`` was built before ``min_tokens``."""
    num_lost: int = 0
    """Tokens that had KV when it was preempted last."""
    num_host_blocks: int = 0
    num_disk_blocks: int = 0
    """Blocks of its prompt that were copied up for it from a tier below, since it began to wait."""
    first_loaded: int = 0
    """How many blocks are before these."""
    num_loads: int = 0
    """How often blocks were copied up because it could start, since it began to wait."""
    prefetch_room: int | None = 1
    """With so many empty blocks it is worth a look whether any could come up before it can start; None: no more."""
    num_stored_early: int = 0
    """Blocks whose copies down were asked for while it runs."""
    answer: PromptAnswer | None = None
    """What is wanted of the prompt itself, until it has been handed out; while it is there, no prefix is shared in."""

    @property
    def num_remaining(self) -> int:
        return len(self.request.token_ids) - self.request.num_computed_tokens

    def num_usable(self, block_size: int) -> int:
        """Blocks of a prefix that it may share in: never that of its last token, which must be computed."""
        return (len(self.request.token_ids) - 1) // block_size

    def count_loaded(self, first: int, num_host: int, num_disk: int) -> None:
        """So many blocks have come up, behind the ``first``."""
        so_far = self.num_host_blocks + self.num_disk_blocks
        self.first_loaded = min(self.first_loaded, first) if so_far else first
        self.num_host_blocks += num_host
        self.num_disk_blocks += num_disk

    def wait_anew(self) -> None:
        """It has given its blocks up."""
        self.num_loads, self.prefetch_room, self.num_stored_early = 0, 1, 0
        self.num_host_blocks = self.num_disk_blocks = self.first_loaded = 0

    def sample_spec(self) -> SampleSpec:
        """How to choose the next token; rebuilt only when what is banned changes."""
        request = self.request
        early = request.num_output_tokens < request.params.min_tokens
        if self.spec is None or self.spec_is_early != early:
            banned = _banned_token_ids(request, early)
            self.spec_is_early = early
            self.spec = SampleSpec(
                request.params, request.seed, request.token_ids, request.num_prompt_tokens, banned
            )
        return self.spec


def _banned_token_ids(request: Request, early: bool) -> tuple[int, ...]:
    """Token ids that would end the request before it may end.

    Under a constraint, ``ignore_eos`` asks for the longest output that the grammar allows: end tokens come only where
    nothing else may.
    """
    params = request.params
    banned = set(params.stop_token_ids) if early else set()
    if params.constraint is not None if params.ignore_eos else early:
        banned |= request.eos_token_ids
    return tuple(sorted(banned))


def ending(request: Request, token_id: int) -> tuple[FinishReason, int | None] | None:
    """Whether ``token_id``, the newest of ``request``, ends it: the reason, and the stop token id if it
    was one.

    An end token among the first ``min_tokens`` does not count; the sampler was told not to choose it. An end token
    under a constraint always counts: the grammar is complete.
    """
    params = request.params
    num_output = request.num_output_tokens
    late = num_output > params.min_tokens
    if token_id in request.eos_token_ids and (
        params.constraint is not None or (late and not params.ignore_eos)
    ):
        return FinishReason.STOP, None
    if late and token_id in params.stop_token_ids:
        return FinishReason.STOP, token_id
    if num_output >= request.max_tokens:
        return FinishReason.LENGTH, None
    return None
