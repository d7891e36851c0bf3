"""Braid's retention: no holds, only a rank by which idle blocks are evicted, and a weight for the gate.

The value of a block is what it saves per second of being kept: the index of its program's gaps at its idle time (see
``gap_model``), times the seconds to rebuild the program's context, over its blocks. It is soft: it says who goes first,
never who stays.

Before there is data the index is about 1 / idle time, so a program outranks another until it has been idle for longer
in proportion to what it costs to rebuild.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from math import inf
from typing import NamedTuple

from braid.policy.agents.costs import Costs
from braid.policy.agents.gap_model import EDGES, NUM_BINS, GapModel, Gaps, bin_of
from braid.policy.agents.gate import Guests
from braid.policy.agents.hints import HintTrust, hinted_shares
from braid.policy.agents.policy import Fate, Keep, Rank
from braid.policy.agents.program import Finish, Program

PLAIN, EXPECTED, ASSURED, UNDER_WAY = range(4)
"""Protection: of programs that hardly come back, of those that do, of those whose client named a time that is honoured,
and of those with a turn that runs."""
LIKELY = 0.5
"""To come back at all: below that a program is not expected."""
MAX_LAWS = 8192
FIRST_EDGE = bin_of(1.0)
"""Ranks do not change within the first second."""

_OF_A_CHILD = " of a sub-agent"
KINDS = (*Finish, *(finish + _OF_A_CHILD for finish in Finish))


class _Law(NamedTuple):
    """What is expected of one program since its last turn ended; ``hinted`` None where its client said nothing."""

    gaps: Gaps
    learnt: list[float]
    hinted: list[float] | None


class Ranked:
    """Args:
    soon_s: a program counts in the gate by its chance to be back within so long.
    guests: programs that the gate let through by force.
    is_ranked: False to leave eviction to the last use, and weigh for the gate only.
    """

    def __init__(
        self,
        costs: Costs,
        *,
        soon_s: float,
        guests: Guests,
        is_ranked: bool = True,
        model: GapModel | None = None,
    ) -> None:
        self._guests = guests
        self.is_ranked = is_ranked
        self.model = model or GapModel()
        self.trust = HintTrust()
        self._costs = costs
        self._soon_s = soon_s
        self._laws: OrderedDict[Program, _Law] = OrderedDict()

    def arrived(self, program: Program, gap_s: float, now: float) -> None:
        law = self._laws.pop(program, None)
        if program.id is None:
            return
        if law is not None and law.hinted is not None:
            self.trust.learn(program.id.owner, gap_s, law.hinted, law.learnt)
        self.model.add(gap_s, _kind(program), program.tool, program.id)

    def started(self, program: Program, waited_s: float, found: float, now: float) -> None:
        pass

    def ended(self, program: Program, now: float) -> Keep:
        law = self._learn_law(program)
        source = "hint" if law.hinted is not None else self.model.source(*_context(program))
        intent = program.intent
        is_over = intent is not None and intent.max_s is not None and intent.max_s <= 0
        return Keep(0.0, Fate.DISCARD if is_over else Fate.REST, source)

    def left(self, program: Program, now: float) -> None:
        """One that said so at the end of its turn teaches nothing: nobody will wait for the next of its like."""
        self._laws.pop(program, None)
        if program.num_turns and now > program.last_active:
            self.model.add_never(_kind(program), program.tool)

    def returns_in(self, program: Program, now: float) -> float | None:
        """See ``braid.policy.agents.forecast``."""
        law = self._laws.get(program)
        gaps = self.model.gaps(*_context(program)) if law is None else law.gaps
        return gaps.median(max(0.0, now - program.last_active))

    def describe(self) -> Mapping[str, float]:
        """Gaps by how turns ended."""
        return self.model.describe(KINDS)

    def rank(self, program: Program, now: float) -> Rank:
        if program.num_running:
            return Rank(UNDER_WAY, -program.seniority, 1.0)
        if program in self._guests:
            return Rank(PLAIN, -program.seniority, 0.0)
        law = self._laws.get(program) or self._learn_law(program)
        if program.num_working:
            # Its clock stands still until its sub-agents are done.
            return self._rank(program, law, program.last_active)._replace(until=inf)
        return self._rank(program, law, now)

    def _rank(self, program: Program, law: _Law, now: float) -> Rank:
        # Times are compared, not spans: else a rank could be asked for at a time and still be the one before it.
        last = program.last_active
        idle_s = max(0.0, now - last)
        place = max(bin_of(idle_s), FIRST_EDGE)
        while place < NUM_BINS - 1 and last + EDGES[place + 1] <= now:
            place += 1
        until = last + EDGES[place + 1] if place < NUM_BINS - 1 else inf
        idle_s = max(idle_s, EDGES[place])
        intent = program.intent
        min_s, max_s = (None, None) if intent is None else (intent.min_s, intent.max_s)
        if max_s is not None:
            if last + max_s <= now:
                return Rank(PLAIN, -1.0, 0.0)
            until = min(until, last + max_s)
        protection = EXPECTED if law.gaps.returns(idle_s) >= LIKELY else PLAIN
        if program.is_protected and min_s is not None and last + min_s > now:
            protection = ASSURED
            until = min(until, last + min_s)
        # Who waits is not in: it asks the gate itself. And before the gate it may wait for long, so what it has left is
        # worth no more than if its client were away since it came: to protect that pushes out those who are in.
        weight = 0.0 if program.num_waiting else law.gaps.returns_within(self._soon_s, idle_s)
        weight = min(1.0, max(0.0, weight))
        return Rank(protection, law.gaps.index(idle_s) * self._rebuild_s(program), weight, until)

    def _rebuild_s(self, program: Program) -> float:
        """Seconds per block; a context without a full block has none to keep."""
        num_blocks = len(program.keys)
        if not num_blocks:
            return 0.0
        costs = self._costs
        return min(costs.prefill_s(program.num_tokens), costs.reload_s(num_blocks)) / num_blocks

    def _learn_law(self, program: Program) -> _Law:
        learnt = self.model.shares(*_context(program))
        hinted = None if program.id is None else hinted_shares(program.intent)
        if hinted is None or program.id is None:
            law = _Law(Gaps(learnt), learnt, None)
        else:
            law = _Law(Gaps(self.trust.blend(program.id.owner, hinted, learnt)), learnt, hinted)
        self._laws[program] = law
        self._laws.move_to_end(program)
        if len(self._laws) > MAX_LAWS:
            self._laws.popitem(last=False)
        return law


def _kind(program: Program) -> str:
    """Sub-agents end for good where their parents wait for a person."""
    return program.finish if program.parent is None else program.finish + _OF_A_CHILD


def _context(program: Program) -> tuple[str, str | None, object]:
    return _kind(program), program.tool, program.id
