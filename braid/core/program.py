"""Which program a request belongs to, and what its client wishes for the time after it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgramRef:
    """The program of one turn, as the client names it. Ids are opaque, untrusted and scoped by ``owner``.

    Args:
        owner: whose program it is: the name of an API key, empty on a server without keys. Two owners never share a
            program, whatever ids they send.
        program: the finest id that the client gave (a thread, an agent).
        parent: the program that started this one.
        group: the coarser id (a session) where there are several levels.
        final: no turn of this program follows.
        source: which row of the table of identities it came from.
    """

    owner: str
    program: str
    parent: str | None = None
    group: str | None = None
    final: bool = False
    source: str = "body"


@dataclass(frozen=True, kw_only=True, slots=True)
class RetainIntent:
    """What a client wishes for the KV of its prompt; every way of saying it ends here. Advisory, never a promise.

    Args:
        boundaries: prompt lengths (tokens) at which a reusable prefix ends, rising.
        min_s, max_s: wanted lifetime at least and at most, seconds; where they conflict ``max_s`` holds.
        lease_s: the one hard form, asked for explicitly; capped by quota.
        priority: lower runs earlier.
        expected_out: output tokens the client expects.
        tool: the tool that runs next.
        return_s, return_p90_s: when the next turn is expected, median and 90th percentile, seconds.
        deadline_s: when the answer is of no use any more, seconds from arrival.
        verbs: what to do with the program's KV now: ``demote``, ``prefetch``, ``evict``.
        sources: the fields and headers that it was read from.
    """

    boundaries: tuple[int, ...] = ()
    min_s: float | None = None
    max_s: float | None = None
    lease_s: float | None = None
    priority: int = 0
    expected_out: int | None = None
    tool: str | None = None
    return_s: float | None = None
    return_p90_s: float | None = None
    deadline_s: float | None = None
    verbs: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()


class Applied(StrEnum):
    """What became of a wish."""

    APPLIED = "applied"
    CLIPPED = "clipped"
    DEFERRED = "deferred"
    IGNORED = "ignored"
    REJECTED = "rejected"


class Outcome(NamedTuple):
    """What became of one wish, and why it was not simply applied: ``quota``, ``pressure``, ``unsupported``,
    ``unknown_program``, ``superseded`` or ``invalid``."""

    wish: str
    applied: Applied
    reason: str | None = None


class ProgramInfo(NamedTuple):
    """What the engine knows of one program at one moment.

    Args:
        owner, program, parent: ids as in ``ProgramRef``.
        num_turns: turns that have ended.
        num_tokens: of the latest ended turn, prompt and answer.
        num_waiting, num_running: turns under way.
        num_working: turns under way of its sub-agents.
        idle_s: seconds since its latest turn came or ended; 0 while one is under way.
        finish: how its latest turn ended, a ``braid.policy.agents.program.Finish``.
        tool: the tools that it called; None without.
        num_blocks: full blocks that it left.
        num_device_blocks: of those from the first on, as many as are on the device.
        num_lower_blocks: of the others, as many as follow in the tier below.
        is_protected: whether a lifetime that its client wished is honoured now.
        lease_s: seconds until its lease ends; None without one.
        return_s: seconds from now until it is expected back, median; None where nobody knows.
    """

    owner: str
    program: str
    parent: str | None = None
    num_turns: int = 0
    num_tokens: int = 0
    num_waiting: int = 0
    num_running: int = 0
    num_working: int = 0
    idle_s: float = 0.0
    finish: str = "unknown"
    tool: str | None = None
    num_blocks: int = 0
    num_device_blocks: int = 0
    num_lower_blocks: int = 0
    is_protected: bool = False
    lease_s: float | None = None
    return_s: float | None = None


class ProgramVerb(StrEnum):
    """What a client may ask for one of its programs between two turns."""

    CLOSE = "close"
    PREFETCH = "prefetch"
    DEMOTE = "demote"
    PIN = "pin"
