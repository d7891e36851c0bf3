"""The lane ``tier``: moves of blocks on a thread of their own, beside the steps that compute."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Protocol

from braid.core.faults import Faults
from braid.core.step import Move, StepPlan, StepResult

logger = logging.getLogger(__name__)

CLOSE_S = 10.0
"""Seconds that a copy under way gets at the end; a disk may hang for ever."""


class Slots(Protocol):
    """A tier below the device. Copies are over when ``wait`` returns."""

    @property
    def name(self) -> str: ...

    def store(self, slot: int, key: bytes, block: int) -> None: ...

    def load(self, slot: int, key: bytes, block: int) -> bool:
        """False if the slot holds something else."""
        ...

    def wait(self) -> None: ...

    def close(self) -> None: ...


class TierLane:
    """Executes the moves of plans, one plan after another.

    A tier that fails is turned off with one warning; what a load finds to be wrong is only that block's end.

    Args:
        tell: takes every result, on the lane's thread; an exception means that the lane has ended.
        faults: places ``tier.store`` and ``tier.load``.
    """

    def __init__(
        self,
        tiers: Iterable[Slots],
        tell: Callable[[StepResult | BaseException], None] = lambda result: None,
        *,
        faults: Faults | None = None,
    ) -> None:
        faults = faults or Faults()
        self._tiers = {tier.name: tier for tier in tiers}
        self._store = faults.around("tier.store", self._store_one)
        self._load = faults.around("tier.load", self._load_one)
        self._broken: set[str] = set()
        self._busy_since: float | None = None
        self.tell = tell
        self._plans: queue.SimpleQueue[StepPlan | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="lane-tier", daemon=True)
        self._thread.start()

    def submit(self, plan: StepPlan) -> None:
        self._plans.put(plan)

    def watch(self, seconds: float) -> None:
        """Warn once if a step has taken longer than so many seconds."""
        since = self._busy_since
        if since is not None and time.monotonic() - since >= seconds:
            self._busy_since = None
            logger.warning("copies between KV tiers are stuck; requests are served without the tiers below")

    def close(self) -> None:
        """Stop after the step in flight."""
        self._plans.put(None)
        self._thread.join(CLOSE_S)
        if not self._thread.is_alive():
            for tier in self._tiers.values():
                tier.close()

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one plan on the calling thread. Never raises: what fails is named in the result."""
        start = self._busy_since = time.monotonic()
        failed = {index for index, move in enumerate(plan.moves) if not self._move(move)}
        self._warn_of_damage([plan.moves[index] for index in failed])
        for name in {move.tier for move in plan.moves} - self._broken:
            try:
                self._tiers[name].wait()
            except Exception as error:
                self._turn_off(name, error)
        failed |= {index for index, move in enumerate(plan.moves) if move.tier in self._broken}
        self._busy_since = None
        return StepResult(
            plan.step_id,
            plan.lane,
            start,
            time.monotonic() - start,
            {},
            failed_moves=frozenset(failed),
            broken_tiers=frozenset(self._broken),
        )

    def _serve(self) -> None:
        try:
            while (plan := self._plans.get()) is not None:
                self.tell(self.execute(plan))
        except BaseException as error:
            self.tell(error)

    def _move(self, move: Move) -> bool:
        if move.tier in self._broken:
            return False
        try:
            if move.is_load:
                return self._load(move)
            self._store(move)
        except Exception as error:
            self._turn_off(move.tier, error)
            return False
        return True

    def _load_one(self, move: Move) -> bool:
        return self._tiers[move.tier].load(move.slot, move.key, move.block)

    def _store_one(self, move: Move) -> None:
        self._tiers[move.tier].store(move.slot, move.key, move.block)

    def _warn_of_damage(self, failed: Iterable[Move]) -> None:
        for name, count in Counter(move.tier for move in failed).items():
            if name not in self._broken:
                logger.warning(
                    "blocks in the KV tier %s are damaged: %d; they are computed again", name, count
                )

    def _turn_off(self, name: str, error: Exception) -> None:
        self._broken.add(name)
        logger.warning(
            "the KV tier %s is off until the next start: %s; requests are served without", name, error
        )
