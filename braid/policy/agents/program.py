"""What policies may know of a program, and of one of its turns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from braid.core.program import RetainIntent
from braid.core.request import Request


class ProgramId(NamedTuple):
    """Ids are the client's; two owners' equal ids are two programs."""

    owner: str
    program: str


COMMON_OWNER = "\0"
COMMON_TOOL = "\0"
"""Of what is no program, but a prefix that many of them begin with, and told to policies as if it were one: see
``braid.sched.commons``. Neither is printable, as clients' names are."""


class Finish(StrEnum):
    """How a turn ended, as far as it tells when the next one comes."""

    TOOL = "tool"
    """It calls tools: their results come next."""
    TEXT = "text"
    """It answers: a person may read it first."""
    STOP = "stop"
    """A stop string ended it; many agents cut a tool call so."""
    LENGTH = "length"
    ABORT = "abort"
    UNKNOWN = "unknown"
    """Nobody has said yet."""


@dataclass(slots=True, eq=False, weakref_slot=True)
class Program:
    """A chain of turns, and its state now. Only ``braid.sched`` changes it; policies read it.

    Args:
        id: None for a request that names no program and continues none: a program of one turn.
        first_arrival: when its first turn came.
        parent: whose sub-agent it is.
        keys: of the full blocks of its latest finished turn, from the prompt's first to the answer's last.
        num_turns: turns that have ended.
        num_tokens: of the latest ended turn, prompt and answer.
        service: seconds from start to end, summed over the turns that have ended.
        num_waiting, num_running: turns that wait for their start, and turns that run.
        num_working: turns under way of its sub-agents: while there are any it waits for them, not for a tool.
        num_preemptions: of its turns, less one for each turn that ended without any.
        last_active: when the latest turn, its own or a sub-agent's, came or ended.
        finish, tool: how that turn ended; the tools it called, joined, None without one.
        has_strayed: whether its latest turn had little in common with ``keys``, which are still those from before.
        intent: what its client wishes after that turn; lifetimes count from ``last_active``.
        is_protected: whether ``intent.min_s`` is honoured now; quotas may say no.
    """

    id: ProgramId | None
    first_arrival: float
    parent: Program | None = None
    keys: tuple[bytes, ...] = ()
    num_turns: int = 0
    num_tokens: int = 0
    service: float = 0.0
    num_waiting: int = 0
    num_running: int = 0
    num_working: int = 0
    num_preemptions: int = 0
    last_active: float = 0.0
    finish: Finish = Finish.UNKNOWN
    tool: str | None = None
    has_strayed: bool = False
    intent: RetainIntent | None = None
    is_protected: bool = False

    @property
    def seniority(self) -> float:
        """When the program at the root of its family first came: sub-agents queue with their parent."""
        program, depth = self, 0
        while program.parent is not None and depth < 8:
            program, depth = program.parent, depth + 1
        return min(self.first_arrival, program.first_arrival)

    @property
    def is_idle(self) -> bool:
        """Whether nothing of it waits or runs: its client works."""
        return not (self.num_waiting or self.num_running)


class Turn(Protocol):
    """A request as policies see it while it waits or runs."""

    @property
    def request(self) -> Request: ...

    @property
    def program(self) -> Program: ...

    @property
    def number(self) -> int:
        """Of the requests added so far: breaks ties."""
        ...

    @property
    def is_resident(self) -> bool:
        """Whether at least half of what it can reuse of its program's last turn is in the device's blocks."""
        ...

    @property
    def is_held(self) -> bool:
        """Whether its program's blocks are held for it (a hard hold of a baseline)."""
        ...
