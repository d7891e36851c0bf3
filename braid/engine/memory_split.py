"""Experts and KV in one budget of memory, whose boundary moves while serving.

A step of memory goes from one side to the other between two plans: KV blocks that count as free are put away and their
pages given back before slots are opened with them, and slots are given up before blocks are taken back. So both
together never take more than the budget, but for experts that a step is computing with at that moment.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from braid.core.config import EngineConfig
from braid.core.errors import InvalidParameterError
from braid.policy.agents.costs import Costs
from braid.policy.experts.boundary import Boundary, Side, Window
from braid.policy.fit import MemoryPlan, human
from braid.runner.experts.store import ExpertStore, SlotNeed
from braid.runner.kv_store import KVStore
from braid.sched.scheduler import BlockNeed, Scheduler

logger = logging.getLogger(__name__)

WINDOW_S = 2.0
"""Between two decisions; only time with somebody to serve counts."""
PAUSE_S = 0.5
"""No turn of the loop counts longer: when nobody is there, it sleeps."""
STEPS = 32
"""A move is one part in so many of the budget."""
LARGEST_STEP = 128 << 20
"""Bytes, at most: pages are made while everybody waits, some 3 GB of them in a second."""
PROMPT = 512
"""Tokens of a prompt, of whose price a block's is taken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What experts' slots and KV blocks may take together.

    Args:
        num_bytes: of both.
        slot_bytes, block_bytes: of one.
        least_slots, most_slots, least_blocks, most_blocks: what each side always keeps, and can use.
    """

    num_bytes: int
    slot_bytes: int
    block_bytes: int
    least_slots: int
    most_slots: int
    least_blocks: int
    most_blocks: int

    @property
    def step_slots(self) -> int:
        """Of one move; that many bytes of blocks go the other way."""
        wished = min(self.num_bytes // STEPS, LARGEST_STEP)
        return max(1, -(-self.block_bytes // self.slot_bytes), wished // self.slot_bytes)

    @property
    def step_blocks(self) -> int:
        return -(-self.step_slots * self.slot_bytes // self.block_bytes)

    def slots_beside(self, num_blocks: int) -> int:
        return min(self.most_slots, (self.num_bytes - num_blocks * self.block_bytes) // self.slot_bytes)

    def blocks_beside(self, num_slots: int) -> int:
        return min(self.most_blocks, (self.num_bytes - num_slots * self.slot_bytes) // self.block_bytes)

    def can_grow(self, num_slots: int, num_blocks: int) -> frozenset[Side]:
        """Sides that a step can go to."""
        sides = set()
        if num_slots < self.most_slots and num_blocks - self.step_blocks >= self.least_blocks:
            sides.add(Side.EXPERTS)
        if num_blocks < self.most_blocks and num_slots - self.step_slots >= self.least_slots:
            sides.add(Side.KV)
        return frozenset(sides)

    def line(self) -> str:
        """For people."""
        slots, blocks = self.least_slots * self.slot_bytes, self.least_blocks * self.block_bytes
        return (
            f"experts and KV share {human(self.num_bytes)}, at least {human(slots)} and {human(blocks)}; "
            f"the boundary moves by {human(self.step_slots * self.slot_bytes)} to where that saves more time"
        )


def budget_of(
    config: EngineConfig, plan: MemoryPlan, slot_bytes: int, cycle: int, total: int, *, is_cpu: bool
) -> Budget | None:
    """The budget whose boundary moves; None where it stays.

    Args:
        slot_bytes: of an expert; 0 where they have no slots of their own.
        cycle, total: experts that a token uses, and all.

    Raises:
        InvalidParameterError: it is to move, and cannot.
    """
    wish = config.memory_split
    is_free = config.expert_memory in (None, "auto") and config.kv_cache_memory is None
    if wish == "fixed" or (wish == "auto" and not (slot_bytes and is_cpu and is_free)):
        return None
    if not slot_bytes or not is_cpu:
        why = (
            "the model runs on a GPU"
            if slot_bytes
            else "no experts have slots of their own (--expert-memory)"
        )
        raise InvalidParameterError(
            f"memory_split 'live' moves memory between experts and KV on a CPU, but {why}; use auto",
            param="memory_split",
        )
    block_bytes = plan.block_size * plan.kv_bytes_per_token
    num_bytes = plan.num_expert_slots * slot_bytes + plan.num_blocks * block_bytes
    least_slots = min(cycle, plan.num_expert_slots)
    useful = plan.max_num_seqs * -(-plan.max_model_len // plan.block_size)
    most_blocks = max(plan.num_blocks, min(useful, (num_bytes - least_slots * slot_bytes) // block_bytes))
    return Budget(
        num_bytes=num_bytes,
        slot_bytes=slot_bytes,
        block_bytes=block_bytes,
        least_slots=least_slots,
        most_slots=total,
        least_blocks=min(plan.num_blocks, -(-plan.max_model_len // plan.block_size)),
        most_blocks=most_blocks,
    )


class _Sums(NamedTuple):
    """Since the window began."""

    seconds: float = 0.0
    request_s: float = 0.0
    short_s: float = 0.0


class MemorySplit:
    """Moves the boundary of ``budget``, on the loop's thread."""

    def __init__(
        self,
        budget: Budget,
        scheduler: Scheduler,
        kv: KVStore,
        store: ExpertStore,
        costs: Costs,
        boundary: Boundary | None = None,
    ) -> None:
        self.budget = budget
        self._scheduler, self._kv, self._store, self._costs = scheduler, kv, store, costs
        self._boundary = boundary or Boundary()
        self._latest: float | None = None
        self._sums = _Sums()
        self._slots, self._blocks = self._needs()

    def _needs(self) -> tuple[SlotNeed, BlockNeed]:
        return self._store.need(self.budget.step_slots), self._scheduler.need(self.budget.step_blocks)

    def turn(self, now: float) -> None:
        """Called before every plan."""
        passed = 0.0 if self._latest is None else min(now - self._latest, PAUSE_S)
        self._latest = now
        need = self._scheduler.need(self.budget.step_blocks)
        seconds, request_s, short_s = self._sums
        if need.num_running or need.num_short:
            seconds += passed
            request_s += passed * need.num_running
        if need.num_short:
            short_s += passed * min(1.0, self.budget.step_blocks / need.num_short)
        self._sums = _Sums(seconds, request_s, short_s)
        if seconds >= WINDOW_S:
            self._decide(now)

    def _decide(self, now: float) -> None:
        slots, blocks = self._needs()
        sums, self._sums = self._sums, _Sums()
        num_missing = slots.num_missing - self._slots.num_missing
        window = Window(
            seconds=sums.seconds,
            missed_experts=slots.num_missed - self._slots.num_missed,
            expert_s=(slots.stall_s - self._slots.stall_s) / num_missing if num_missing else 0.0,
            num_running=sums.request_s / sums.seconds,
            missed_blocks=blocks.num_missed - self._blocks.num_missed,
            block_s=self._costs.prefill_s(PROMPT) / PROMPT * self._scheduler.config.block_size,
            short_s=sums.short_s,
            can_grow=self.budget.can_grow(slots.num_slots, blocks.num_blocks),
        )
        self._slots, self._blocks = slots, blocks
        side = self._boundary.decide(window)
        if side is not None:
            self._move(side, slots.num_slots, blocks.num_blocks, now)

    def _move(self, side: Side, num_slots: int, num_blocks: int, now: float) -> None:
        budget = self.budget
        if side is Side.KV:
            self._store.resize(num_slots - budget.step_slots)
            self._scheduler.resize(budget.blocks_beside(num_slots - budget.step_slots), now)
        else:
            gone = self._scheduler.resize(max(budget.least_blocks, num_blocks - budget.step_blocks), now)
            self._kv.give_back(gone)
            self._store.resize(max(num_slots, budget.slots_beside(num_blocks - len(gone))))
        slots, blocks = self._needs()
        if (slots.num_slots, blocks.num_blocks) == (num_slots, num_blocks):
            return
        worth = ", ".join(f"{one.value} {worth:.3g}" for one, worth in self._boundary.worth.items())
        logger.info(
            "memory to %s: %d slots for experts (from %d), %d KV blocks (from %d); "
            "request-seconds per second that a step would save: %s",
            side.value,
            slots.num_slots,
            num_slots,
            blocks.num_blocks,
            num_blocks,
            worth,
        )

    def check_integrity(self) -> None:
        """
        Raises:
            AssertionError: both together have more than the budget, or one has less than its own.
        """
        budget, (slots, blocks) = self.budget, self._needs()
        taken = slots.num_slots * budget.slot_bytes + blocks.num_blocks * budget.block_bytes
        assert taken <= budget.num_bytes, f"{taken} bytes are taken of {budget.num_bytes}"
        assert slots.num_slots >= budget.least_slots, "experts have too few slots"
        assert blocks.num_blocks >= budget.least_blocks, "KV has too few blocks"

    def describe(self) -> Mapping[str, float]:
        """For telemetry."""
        return self._boundary.describe()
