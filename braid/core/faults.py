"""Faults on purpose, for tests: which visit of which place goes wrong, and how.

Whatever can be made to fail takes a ``Faults`` when it is made, and puts it around the calls that may fail. A plan that
does not name a place leaves its call as it is, so production code pays nothing. No plan is ever read from the
environment, a file or a request.

Places in the engine, with their phases:
    ``load.weights`` (one visit per tensor), ``load.kv``;
    ``ipc.decode``, ``ipc.receive`` (phase: the message's type), ``ipc.send`` (the same);
    ``admit`` (text, constraint, embedding), ``compile``;
    ``blocks`` (start, grow);
    ``batch``, ``forward``, ``head``, ``sample`` (prefill, decode, mixed), ``row``, ``score``, ``pool``;
    ``mask`` (start, step);
    ``experts.read``, ``experts.fetch`` (demand, prefill, prefetch).
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import ParamSpec, TypeVar

Args = ParamSpec("Args")
Value = TypeVar("Value")

_KILL = 9


class FaultKind(StrEnum):
    ERROR = "error"
    """An exception that nobody foresaw."""
    MEMORY = "memory"
    """There is no memory left."""
    DELAY = "delay"
    """The visit takes ``seconds`` longer; for ever is a large number."""
    KILL = "kill"
    """The process ends, as by the system's out-of-memory killer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Visits ``[first, first + count)`` of a place go wrong, counted from 1.

    Args:
        phase: counts only visits in this phase; empty for all.
    """

    point: str
    phase: str = ""
    first: int = 1
    count: int = 1
    kind: FaultKind = FaultKind.ERROR
    seconds: float = 0.0


class InjectedError(Exception):
    """What a fault of kind ERROR raises."""


class Faults:
    """A plan and how far it has come. Safe from any thread.

    Args:
        points: further places that a later plan may name.
        sleep: how a delay waits.
    """

    def __init__(
        self,
        plan: Iterable[Fault] = (),
        *,
        points: Iterable[str] = (),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._lock = threading.Lock()
        self._sleep = sleep
        self.arm(plan)
        self._points = frozenset((*points, *(fault.point for fault in self._plan)))

    def arm(self, plan: Iterable[Fault]) -> None:
        """Begin another plan; visits are counted anew."""
        with self._lock:
            self._plan = tuple(plan)
            self._visits: Counter[tuple[str, str]] = Counter()
            self._struck: Counter[Fault] = Counter()

    @property
    def unstruck(self) -> tuple[Fault, ...]:
        """Faults of the plan that have not happened at all: a test that expects them has tested nothing."""
        return tuple(fault for fault in self._plan if not self._struck[fault])

    def around(
        self, point: str, call: Callable[Args, Value], phase: str | Callable[Args, str] = ""
    ) -> Callable[Args, Value]:
        """``call`` itself if no plan may name the point; else ``call`` with a visit before it.

        Args:
            phase: of every visit, or made from a visit's arguments.
        """
        if point not in self._points:
            return call

        def visited(*args: Args.args, **kwargs: Args.kwargs) -> Value:
            self.visit(point, phase if isinstance(phase, str) else phase(*args, **kwargs))
            return call(*args, **kwargs)

        return visited

    def over(self, point: str, items: Iterable[Value]) -> Iterator[Value]:
        """The same items, with a visit before each."""
        step = self.around(point, lambda item: item)
        return map(step, items)

    def visit(self, point: str, phase: str = "") -> None:
        """Let happen what the plan has for this visit."""
        for fault in self._due(point, phase):
            if fault.kind is FaultKind.DELAY:
                self._sleep(fault.seconds)
            elif fault.kind is FaultKind.KILL:
                os.kill(os.getpid(), _KILL)
            elif fault.kind is FaultKind.MEMORY:
                raise MemoryError(f"injected at {point}")
            else:
                raise InjectedError(f"injected at {point}")

    def _due(self, point: str, phase: str) -> list[Fault]:
        with self._lock:
            self._visits[point, ""] += 1
            if phase:
                self._visits[point, phase] += 1
            due = [fault for fault in self._plan if self._is_due(fault, point, phase)]
            self._struck.update(due)
            return due

    def _is_due(self, fault: Fault, point: str, phase: str) -> bool:
        if fault.point != point or fault.phase not in ("", phase):
            return False
        return 0 <= self._visits[point, fault.phase] - fault.first < fault.count
