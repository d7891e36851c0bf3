"""The log of turns as JSON-like lines, from which their blocks can be told apart: no content, no hash of any.

Format, version 1. A line is an object with ``event`` and, but for the first, ``t`` (seconds on the engine's clock):

    log    v, block_size, num_blocks, policy: a scheduler's life begins; turns count from 0 again
    start  turn, program, parent, tokens, blocks, like, found, origins {name: tokens}, waited_s, again, evicted
    stop   turn, program, tokens, blocks, like, reason
    told   program, finish
    division  mixed, prefill_units, decode_units, chunk, why, decodes, context, prompt_tokens, waited_s: how prefill and
           decode share the machine from now on, while both have work, and what that was decided for

``blocks`` is the number of the turn's full blocks (that it could find, when it starts; that have content, when it
stops). ``like`` = [turn, n] says that the first n of them are the first n blocks of an earlier line of that turn, which
may be the same turn; null where none is known. All others are new: nobody had them before. ``found``: how many of them
had content. ``evicted`` counts the blocks that were evicted since the last start. Programs are salted hashes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from braid.policy.agents.program import Finish, ProgramId
from braid.policy.phases.policy import Decided
from braid.sched.observer import Origins, TurnStart, TurnStop

VERSION = 1
KEYS_PER_BLOCK = 16
MAX_KEYS = 1 << 20
"""Of so many blocks, at most, it is remembered who had them first; a block that was forgotten looks new."""

Line = dict[str, Any]


class EventLines:
    """Makes the lines. Work and memory are bounded, but grow with the turns' lengths: nothing for a loop's thread.

    Args:
        name: how an owner and an id are written.
        num_blocks: that the device has.
    """

    def __init__(self, name: Callable[[ProgramId], str], *, num_blocks: int) -> None:
        self._name = name
        self._owners: OrderedDict[bytes, int] = OrderedDict()
        """Which turn had a block first. A block is newer than its followers, so that chains are forgotten from
        their ends."""
        self._max_keys = min(MAX_KEYS, KEYS_PER_BLOCK * num_blocks)
        self._num_evicted = 0

    def started(self, turn: TurnStart) -> Line:
        evicted, self._num_evicted = turn.num_evicted - self._num_evicted, turn.num_evicted
        return {
            "event": "start",
            "t": round(turn.now, 6),
            "turn": turn.number,
            "program": self._named(turn.program),
            "parent": self._named(turn.parent),
            "tokens": turn.num_tokens,
            **self._blocks(turn.number, turn.keys),
            "found": turn.num_found,
            "origins": turn.origins._asdict(),
            "waited_s": round(turn.waited_s, 6),
            "again": turn.is_again,
            "evicted": evicted,
        }

    def stopped(self, turn: TurnStop) -> Line:
        return {
            "event": "stop",
            "t": round(turn.now, 6),
            "turn": turn.number,
            "program": self._named(turn.program),
            "tokens": turn.num_tokens,
            **self._blocks(turn.number, turn.keys),
            "reason": turn.reason,
        }

    def told(self, program: ProgramId, finish: Finish, now: float) -> Line:
        return {"event": "told", "t": round(now, 6), "program": self._name(program), "finish": finish.value}

    def decided(self, decided: Decided) -> Line:
        demand, division = decided
        return {
            "event": "division",
            "t": round(demand.now, 6),
            "mixed": division.is_mixed,
            "prefill_units": division.prefill_units,
            "decode_units": division.decode_units,
            "chunk": division.max_prefill,
            "why": division.why,
            "decodes": demand.num_decodes,
            "context": demand.num_context,
            "prompt_tokens": demand.num_prefill,
            "waited_s": round(demand.waited_s, 6),
        }

    def _named(self, program: ProgramId | None) -> str | None:
        return None if program is None else self._name(program)

    def _blocks(self, turn: int, keys: Sequence[bytes]) -> Line:
        owners = self._owners
        known = bisect_left(range(len(keys)), True, key=lambda index: keys[index] not in owners)
        like = [owners[keys[known - 1]], known] if known else None
        for key in keys[known:]:
            owners[key] = turn
        for key in reversed(keys):
            owners.move_to_end(key)
        while len(owners) > self._max_keys:
            owners.popitem(last=False)
        return {"blocks": len(keys), "like": like}


def head(block_size: int, num_blocks: int, policy: str) -> Line:
    """The first line of a scheduler's life."""
    return {
        "event": "log",
        "v": VERSION,
        "block_size": block_size,
        "num_blocks": num_blocks,
        "policy": policy,
    }


class Recorder:
    """An observer that keeps the lines: of a simulation, where nobody waits.

    Args:
        grain: tokens that one of the scheduler's stands for; ``block_size`` is in the scheduler's.
    """

    num_dropped = 0

    def __init__(self, block_size: int, num_blocks: int, policy: str, grain: int = 1) -> None:
        self._lines = EventLines(lambda program: "/".join(program), num_blocks=num_blocks)
        self._grain = grain
        self.lines: list[Line] = [head(block_size * grain, num_blocks, policy)]

    def started(self, turn: TurnStart) -> None:
        origins = Origins(*(count * self._grain for count in turn.origins))
        turn = turn._replace(num_tokens=turn.num_tokens * self._grain, origins=origins)
        self.lines.append(self._lines.started(turn))

    def stopped(self, turn: TurnStop) -> None:
        turn = turn._replace(num_tokens=turn.num_tokens * self._grain)
        self.lines.append(self._lines.stopped(turn))

    def told(self, program: ProgramId, finish: Finish, now: float) -> None:
        self.lines.append(self._lines.told(program, finish, now))
