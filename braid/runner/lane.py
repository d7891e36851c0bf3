"""A lane: a thread that computes one step after the other, on its share of the machine, and that comes back from death.

What ends a thread (not a request: those are isolated in ``Runner.execute``) costs the step that it was at: all works of
that plan get errors, and a new thread goes on with the next plan. A thread that hangs cannot be ended from inside its
process; whoever supervises the process sees that the lane makes no progress.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

import torch

from braid.core.step import StepPlan, StepResult
from braid.runner.partition import Seat

logger = logging.getLogger(__name__)

Value = TypeVar("Value")

MAX_DEATHS = 5
"""Deaths in a row, without a step served in between, after which a lane is given up: the device itself is broken."""


class _Errand(NamedTuple):
    """Something else to do on the lane's thread, between two steps."""

    call: Callable[[], Any]
    future: Future[Any]

    def run(self, begin: Callable[[], None]) -> None:
        """Whatever goes wrong is for who waits; the thread lives on."""
        try:
            begin()
            self.future.set_result(self.call())
        except BaseException as error:
            self.future.set_exception(error)


class LaneThread:
    """Runs plans one after the other, off the loop's thread.

    Args:
        name: of the lane, for debuggers and logs.
        execute: called on the thread with every plan. What it raises ends the thread.
        bury: makes the result of a plan that ended its thread; called on that thread.
        tell: takes every result, and what ended the lane for good.
        seat: the share of the machine that the thread computes on.
    """

    def __init__(
        self,
        name: str,
        execute: Callable[[StepPlan], StepResult],
        bury: Callable[[StepPlan, BaseException], StepResult],
        tell: Callable[[StepResult | BaseException], None],
        seat: Seat,
    ) -> None:
        self._name, self._execute, self._bury, self._tell, self._seat = name, execute, bury, tell, seat
        self._items: queue.SimpleQueue[StepPlan | _Errand | None] = queue.SimpleQueue()
        self._plan: StepPlan | None = None
        self._latest = -1
        """The number of the step that was submitted last."""
        self._reshared = self._taken_over = (-1, 0)
        """A step, and the units that it is to go on with; and the same as far as it has done so."""
        self._begun: threading.Thread | None = None
        self._deaths = 0
        self.num_restarts = 0
        self._thread = self._start()

    def submit(self, plan: StepPlan) -> None:
        self._latest = plan.step_id
        self._items.put(plan)

    def reshare(self, units: int) -> None:
        """Have the step that was submitted last go on with so many units, from its next ``breathe`` on."""
        self._reshared = self._latest, units

    def breathe(self) -> None:
        """On the lane's thread, now and then within a step: take over new units."""
        reshared = self._reshared
        if reshared is not self._taken_over and self._plan is not None and self._plan.step_id == reshared[0]:
            self._seat.resize(reshared[1])
            self._taken_over = reshared

    def call(self, call: Callable[[], Value]) -> Future[Value]:
        """Run ``call`` on the lane's thread after what was submitted before."""
        future: Future[Value] = Future()
        self._items.put(_Errand(call, future))
        return future

    def close(self) -> None:
        """After the step in flight."""
        self._items.put(None)
        thread: threading.Thread | None = None
        while thread is not self._thread:  # one that dies meanwhile leaves a successor
            thread = self._thread
            thread.join()

    def _start(self) -> threading.Thread:
        thread = threading.Thread(target=self._run, name=f"lane-{self._name}", daemon=True)
        thread.start()
        return thread

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                self._serve()
        except BaseException as error:
            self._die(error)

    def _serve(self) -> None:
        while (item := self._items.get()) is not None:
            if isinstance(item, _Errand):
                item.run(self._begin)
                continue
            self._plan = item
            self._begin()
            # Left only when all that the step computed is there, on GPUs as well: the result is told after that, so
            # whatever the scheduler then calls READY may be read by the other lane.
            with self._seat.step(item.units):
                result = self._execute(item)
            self._plan, self._deaths = None, 0
            self._tell(result)
            del item, result  # what they carry belongs to others now, however long nothing else comes

    def _begin(self) -> None:
        """Before a thread's first item and not earlier: a seat that is broken costs a plan, not an endless loop."""
        if self._begun is not threading.current_thread():
            self._seat.begin()
            self._begun = threading.current_thread()

    def _die(self, error: BaseException) -> None:
        """On the thread that ends: let another one go on, and answer the plan that was under way."""
        plan, self._plan = self._plan, None
        self._deaths += 1
        logger.error("the thread of lane %s has ended (%r); death %d", self._name, error, self._deaths)
        try:
            if plan is None or self._deaths >= MAX_DEATHS:
                raise error
            result = self._bury(plan, error)
            self.num_restarts += 1
            self._thread = self._start()
            self._tell(result)
        except BaseException as final:
            self._tell(final)
