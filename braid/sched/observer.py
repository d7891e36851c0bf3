"""Whoever wants to hear of every turn: what it wanted, what it found, and what it left.

Observers run on the loop's thread, so they return at once. Nothing that they hear is a token or a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from braid.policy.agents.program import Finish, ProgramId


class Origins(NamedTuple):
    """Where the KV of a turn's tokens came from, in tokens.

    Args:
        device_hit: found in the device's blocks.
        host_reload, disk_reload: copied up from a tier below.
        recompute: computed again, although the turn itself, its program's latest turn or its parent's had it.
        compulsory: never computed by any of these.
    """

    device_hit: int = 0
    host_reload: int = 0
    disk_reload: int = 0
    recompute: int = 0
    compulsory: int = 0


class TurnStart(NamedTuple):
    """A turn has its blocks and runs.

    Args:
        number: of the turn, unique in the life of a scheduler.
        num_tokens: that are known: the prompt, and what was generated before a preemption.
        keys: of the blocks that it could have found: full ones, but never that of the last token. Keys form chains, see
            ``prefix_cache``.
        num_found: how many of these had content.
        waited_s: from its arrival, or zero where it has run before.
        is_again: it has run before, and was preempted.
        num_evicted: blocks of all programs that were evicted so far.
    """

    now: float
    number: int
    program: ProgramId | None
    parent: ProgramId | None
    num_tokens: int
    keys: Sequence[bytes]
    num_found: int
    origins: Origins
    waited_s: float
    is_again: bool
    num_evicted: int


class TurnStop(NamedTuple):
    """A turn gives its blocks back.

    Args:
        keys: of its blocks that are full of content; empty where nobody may use them.
        reason: ``stop``, ``length``, ``abort``, ``error``, or ``preempted``: then it starts again later.
    """

    now: float
    number: int
    program: ProgramId | None
    num_tokens: int
    keys: Sequence[bytes]
    reason: str


class Observer(Protocol):
    @property
    def num_dropped(self) -> int:
        """Turns' starts and ends that it could not take."""
        ...

    def started(self, turn: TurnStart) -> None: ...

    def stopped(self, turn: TurnStop) -> None: ...

    def told(self, program: ProgramId, finish: Finish, now: float) -> None:
        """How the program's latest turn has ended, by who has read its answer."""
        ...


class Observers:
    """Several as one."""

    def __init__(self, *observers: Observer) -> None:
        self._all = observers

    @property
    def num_dropped(self) -> int:
        return sum(observer.num_dropped for observer in self._all)

    def started(self, turn: TurnStart) -> None:
        for observer in self._all:
            observer.started(turn)

    def stopped(self, turn: TurnStop) -> None:
        for observer in self._all:
            observer.stopped(turn)

    def told(self, program: ProgramId, finish: Finish, now: float) -> None:
        for observer in self._all:
            observer.told(program, finish, now)
