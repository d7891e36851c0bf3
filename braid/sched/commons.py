"""Prefixes that many requests begin with, though none of them continues another: a system text, a few examples.

Whoever has such a prefix is not expected back, but the next who begins with it is. So a prefix that comes again, and
not from who has left it, is remembered as if it were a program, whose turns are these: the policy learns when it comes
again, and its blocks are worth what that says, there or not. Requests that name no program have no other way to keep
anything.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence

from braid.policy.agents.policy import Retention as RetentionPolicy
from braid.policy.agents.program import COMMON_OWNER, COMMON_TOOL, Program, ProgramId
from braid.sched.entry import Entry
from braid.sched.programs import ProgramTable, num_shared
from braid.sched.ranks import Ranks

MAX_COMMONS = 256
"""Which did not come for longest goes first."""
MAX_IN_ONE = 4
"""Of the prefixes that begin one prompt so many count as come again, the longest."""


class Commons:
    """The prefixes that are remembered so; they are in the table of programs.

    Args:
        max_keys: of requests without a program, which are remembered for comparison.
    """

    def __init__(self, policy: RetentionPolicy, programs: ProgramTable, ranks: Ranks, max_keys: int) -> None:
        self._policy = policy
        self._programs = programs
        self._ranks = ranks
        self._max_keys = max_keys
        self._by_end: OrderedDict[bytes, Program] = OrderedDict()
        """By their last keys; which did not come for longest is first."""
        self._strangers: OrderedDict[bytes, None] = OrderedDict()
        """Keys of the latest requests without a program."""
        programs.watch(self)

    def __len__(self) -> int:
        return len(self._by_end)

    def started(self, entry: Entry, num_found: int, now: float) -> list[Program]:
        """A turn begins with ``num_found`` blocks that are there; the programs that had to go for what it shows."""
        keys = entry.keys
        count = max(num_found, self._num_known(keys))
        if entry.program.id is None:
            self._remember(keys)
        program = entry.program
        its = (program,) if program.parent is None else (program, program.parent)
        if count <= max(num_shared(keys, known.keys) for known in its):
            return []
        ends = [place for place in reversed(range(count - 1)) if keys[place] in self._by_end]
        gone: list[Program] = []
        for place in reversed((count - 1, *ends[: MAX_IN_ONE - 1])):
            num_tokens = entry.request.num_tokens * (place + 1) // len(keys)
            gone += self._came(keys[: place + 1], num_tokens, now)
        return gone

    def _num_known(self, keys: Sequence[bytes]) -> int:
        """How many of the first keys others had, there or not."""
        count = bisect_left(keys, True, key=lambda key: not self._programs.num_holders(key))
        while count < len(keys) and keys[count] in self._strangers:
            count += 1
        return count

    def _remember(self, keys: Sequence[bytes]) -> None:
        """The end of a chain is forgotten before its beginning."""
        for key in reversed(keys):
            self._strangers[key] = None
            self._strangers.move_to_end(key)
        while len(self._strangers) > self._max_keys:
            self._strangers.popitem(last=False)

    def _came(self, keys: Sequence[bytes], num_tokens: int, now: float) -> list[Program]:
        prefix, gone = self._programs.meet(ProgramId(COMMON_OWNER, keys[-1].hex()), None, now)
        if prefix.num_turns:
            self._policy.arrived(prefix, now - prefix.last_active, now)
        prefix.num_turns += 1
        prefix.num_tokens = num_tokens
        prefix.tool = COMMON_TOOL
        prefix.last_active = now
        self._by_end[keys[-1]] = prefix
        self._by_end.move_to_end(keys[-1])
        gone += self._programs.record(prefix, keys)[1]
        self._policy.ended(prefix, now)
        self._ranks.changed(prefix, now)
        if len(self._by_end) > MAX_COMMONS:
            oldest = next(iter(self._by_end.values()))
            self._programs.forget(oldest)
            gone.append(oldest)
        return gone

    def got(self, program: Program, keys: Sequence[bytes]) -> None:
        pass

    def lost(self, program: Program, keys: Sequence[bytes]) -> None:
        """One that is not known any more."""
        if keys and program.id is not None and program.id.owner == COMMON_OWNER:
            self._by_end.pop(keys[-1], None)

    def check_integrity(self) -> None:
        """Prove that exactly the prefixes that the table knows are known here.

        Raises:
            AssertionError: naming what does not add up; a bug in Braid.
        """
        assert len(self._by_end) <= MAX_COMMONS, "too many prefixes"
        assert set(self._by_end.values()) == set(self._programs.of(COMMON_OWNER)), "prefixes are others"
        assert all(prefix.keys[-1] == end for end, prefix in self._by_end.items()), "a prefix ends elsewhere"
