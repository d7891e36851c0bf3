"""A lane of the machine's processors: a thread with a team of its own, as large as each step says."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import torch

from braid.core.step import StepPlan


class LaneThread:
    """Runs plans one after the other, off the loop's thread.

    Args:
        name: of the lane, for debuggers.
        serve: called on the thread with every plan, or with what ended it.
        device: of the model; the team of a CPU is resized to ``StepPlan.units``.
    """

    def __init__(
        self, name: str, serve: Callable[[StepPlan | BaseException], None], device: torch.device
    ) -> None:
        self._plans: queue.SimpleQueue[StepPlan | None] = queue.SimpleQueue()
        self._serve = serve
        self._is_cpu = device.type == "cpu"
        self._thread = threading.Thread(target=self._run, name=f"lane-{name}", daemon=True)
        self._thread.start()

    def submit(self, plan: StepPlan) -> None:
        self._plans.put(plan)

    def close(self) -> None:
        """After the step in flight."""
        self._plans.put(None)
        self._thread.join()

    def _run(self) -> None:
        # A new thread takes over the process's setting when it first asks, and forgets what it was told before.
        everything = torch.get_num_threads()
        try:
            with torch.inference_mode():
                while (plan := self._plans.get()) is not None:
                    if self._is_cpu:
                        # Of this thread alone, and of native kernels too; it takes less than a microsecond.
                        torch.set_num_threads(plan.units or everything)
                    self._serve(plan)
        except BaseException as error:
            self._serve(error)
