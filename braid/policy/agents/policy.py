"""The four decisions about programs: whose turn is next, who may enter, who gives way, and what is kept.

One object per decision, so that a policy is a choice of four and an ablation is another choice. All are pure: they
are told the time, and change only what they have learnt. The scheduler calls them; ``catalog`` names them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import Enum
from math import inf
from typing import NamedTuple, Protocol, TypeVar

from braid.policy.agents.program import Program, Turn

AnyTurn = TypeVar("AnyTurn", bound=Turn)
OrderKey = tuple[float, ...]
"""Smaller is earlier. Unique per request, so that nothing else is ever compared."""


class Order(Protocol):
    """Waiting turns stand in a few lines. A line keeps the order of ``key``; which line's head is next is asked anew
    every time. So the work per step is in the number of lines, not of turns.
    """

    @property
    def num_lines(self) -> int: ...

    def key(self, turn: Turn) -> OrderKey:
        """Its place within a line, and among those that run; asked once, on arrival."""
        ...

    def line(self, turn: Turn) -> int:
        """Where it stands; asked on arrival, when it is preempted, and when ``is_resident`` or ``is_held`` change."""
        ...

    def ranked(self, heads: Sequence[AnyTurn], now: float) -> Iterable[AnyTurn]:
        """The heads of the lines that are not empty, in the order in which they are to be tried.

        One that the gate refuses is passed over; one that does not fit into memory is waited for.
        """
        ...

    def started(self, turn: Turn, now: float) -> None:
        """It runs now."""
        ...


class SetLoad(NamedTuple):
    """What programs need, in blocks, when a turn asks to enter.

    Args:
        needed: by the programs that are in: those with a turn under way, and those that are idle, each in the
            measure of ``Rank.weight``; blocks that several share count once.
        added: by this turn, beyond what it shares with those.
        num_blocks, num_lower_blocks: that the device has, and the tier below it.
        num_running: turns that run.
    """

    needed: float
    added: int
    num_blocks: int
    num_lower_blocks: int
    num_running: int


class Gate(Protocol):
    """Who may enter although there is a seat and memory. Nobody is refused while nothing runs."""

    @property
    def is_open(self) -> bool:
        """Whether it admits everybody, so that nobody needs to reckon what programs need."""
        ...

    def admits(self, turn: Turn, load: SetLoad, now: float) -> bool: ...


class Victim(Protocol):
    def choose(self, running: Sequence[AnyTurn]) -> AnyTurn:
        """Who gives up its blocks when there are none left.

        ``running`` are the turns that may be preempted, earliest in order first; never empty. To choose the one that is
        first in order, where there are others, could livelock.
        """
        ...


class Fate(Enum):
    """What becomes of a program's blocks when its turn has ended."""

    REST = "rest"
    """They stay until somebody needs them."""
    DISCARD = "discard"
    """They are the first to go."""
    SWAP = "swap"
    """They are copied to the tier below, and then the first to go; ``DISCARD`` where there is none."""


class Keep(NamedTuple):
    """``hold_s``: seconds for which nobody else may have the blocks (0: no hold; infinite: until the program returns).
    ``source``: what the decision rests on, for telemetry: ``cold``, ``global``, ``kind``, ``tool``, ``program``,
    ``hint`` or ``none``."""

    hold_s: float = 0.0
    fate: Fate = Fate.REST
    source: str = "none"


class Rank(NamedTuple):
    """What the idle blocks of a program are worth.

    Args:
        protection: blocks of a lower protection all go first.
        value: among equals the smaller goes first.
        weight: in [0, 1], how much of its working set the gate counts.
        until: when to ask again although nothing happens; infinite for never.
    """

    protection: int
    value: float
    weight: float
    until: float = inf


class Retention(Protocol):
    """What is kept of programs between their turns. It hears of every turn, and learns from it."""

    @property
    def is_ranked(self) -> bool:
        """Whether idle blocks are evicted by ``rank``; if not, by their last use."""
        ...

    def arrived(self, program: Program, gap_s: float, now: float) -> None:
        """The next turn has come ``gap_s`` after the end of the last one; ``program`` is as that one left it."""
        ...

    def started(self, program: Program, waited_s: float, found: float, now: float) -> None:
        """A turn of a program with turns before it starts after ``waited_s`` in the queue; it found the share ``found``
        of what it could reuse on the device."""
        ...

    def ended(self, program: Program, now: float) -> Keep:
        """A turn has ended; ``program`` says how. Asked again if its finish becomes known only later."""
        ...

    def left(self, program: Program, now: float) -> None:
        """No turn follows: it said so, or it has been idle for too long."""
        ...

    def rank(self, program: Program, now: float) -> Rank:
        """Asked when its state changes, and at ``Rank.until``; only if ``is_ranked``."""
        ...


class AgentPolicy(NamedTuple):
    """``name`` is what ``--agent-policy`` says."""

    name: str
    order: Order
    gate: Gate
    victim: Victim
    retention: Retention
