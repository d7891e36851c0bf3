"""What programs leave in the block pool between turns: told to the policy, and done as it says.

Blocks are found by their keys, so what was evicted in the meantime is simply not there, and an id never opens
anything but its own owner's programs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from braid.core.program import Applied, Outcome, ProgramRef, ProgramVerb, RetainIntent
from braid.core.request import FinishReason, Request, Status
from braid.policy.agents.policy import Fate, Keep
from braid.policy.agents.policy import Retention as RetentionPolicy
from braid.policy.agents.program import Finish, Program, ProgramId
from braid.sched.block_pool import BlockPool
from braid.sched.commons import Commons
from braid.sched.entry import Entry
from braid.sched.holds import Holds
from braid.sched.leases import Leases
from braid.sched.prefix_cache import match_prefix
from braid.sched.programs import ProgramTable, num_shared
from braid.sched.protections import Protections
from braid.sched.ranks import Ranks
from braid.sched.transfers import Transfers

DEFAULT_LEASE = 300.0
MAX_LEASE = 3600.0
"""Seconds."""
IDLE_LIMIT = 3600.0
"""Seconds without a turn after which a program is over."""
MAX_CLOSED, MAX_CLOSED_KEYS = 8, 1024
"""Programs that are over by that, closed in one tick, and about how many keys they may have; the others wait for the
next one."""
KEYS_PER_BLOCK = 4
KEYS_PER_LOWER_BLOCK = 2
"""The table may know so many keys for each block of the pool, and of the tier below; more could not be kept anyway,
even where programs share what they have."""

_FINISHES: dict[FinishReason | None, Finish] = {
    FinishReason.LENGTH: Finish.LENGTH,
    FinishReason.ABORT: Finish.ABORT,
}


_ASKED = {"evict": Fate.DISCARD, "demote": Fate.SWAP}
"""What a turn's client may ask for the blocks that it leaves."""


class Room(NamedTuple):
    """Whether there is enough now, and whose holds had to end."""

    enough: bool
    ended: Sequence[Program]


class Retention:
    """The programs of one pool, and what is kept for them.

    Args:
        ranks: told of every change; None where nobody asks for ranks.
        transfers: copies what programs leave to the tiers below; None where there are none.
    """

    def __init__(
        self,
        pool: BlockPool,
        policy: RetentionPolicy,
        programs: ProgramTable,
        ranks: Ranks | None = None,
        transfers: Transfers | None = None,
    ) -> None:
        self._pool = pool
        self._policy = policy
        self.programs = programs
        self.leases = Leases(pool)
        self.holds = Holds(pool)
        self.protections = Protections(pool.least_blocks)
        self._ranks = ranks
        self._commons: Commons | None = None
        if ranks is not None and policy.is_ranked:
            self._commons = Commons(policy, programs, ranks, pool.least_blocks)
        self._transfers = transfers
        self.kept: Counter[str] = Counter()
        """What became of what was kept: ``handed over``, ``lost`` (to others, before the program came back),
        ``expired``, ``pressure`` (a hold that had to end), ``superseded``, ``final``."""
        self.sources: Counter[str] = Counter()
        """What decisions to keep rested on, see ``braid.policy.agents.policy.Keep``."""
        self._leaving: dict[str, list[tuple[bytes, ...]]] = {}
        """Keys to be demoted once the step in flight on a lane, which still holds their blocks, is over."""

    # -- the course of a turn ------------------------------------------------------------------------------

    def arrive(self, request: Request, now: float) -> Program:
        """A request comes to wait."""
        ref = request.program
        if ref is None:
            program = Program(None, request.arrival_time, last_active=now)
        else:
            parent = None if ref.parent is None else ProgramId(ref.owner, ref.parent)
            program, gone = self.programs.meet(
                ProgramId(ref.owner, ref.program), parent, request.arrival_time
            )
            self._left(gone, now)
        if program.num_turns and program.is_idle:
            self._policy.arrived(program, max(0.0, request.arrival_time - program.last_active), now)
        program.num_waiting += 1
        self._touch(program, now)
        program.intent = _lifetimes(program.intent)
        if program.parent is not None:
            program.parent.num_working += 1
        self._changed(program, now)
        return program

    def reusable(self, program: Program, keys: Sequence[bytes]) -> int:
        """How many of a prompt's first blocks the program's last turn had, or its parent's."""
        parents = () if program.parent is None else (program.parent,)
        return max(num_shared(keys, known.keys) for known in (program, *parents))

    def start(self, entry: Entry, num_found: int, now: float) -> None:
        """A turn has its blocks, ``num_found`` of them with content: what was held for it is handed over."""
        program, request = entry.program, entry.request
        program.num_waiting -= 1
        program.num_running += 1
        self.holds.end(program)
        self._changed(program, now)
        if self._commons is not None and request.first_scheduled_time is None and entry.answer is None:
            self._left(self._commons.started(entry, num_found, now), now)
        if not program.num_turns or request.first_scheduled_time is not None:
            return
        found = min(1.0, num_found / entry.reusable) if entry.reusable else 1.0
        self.kept["handed over" if found >= 0.5 else "lost"] += 1
        self._policy.started(program, now - request.arrival_time, found, now)

    def preempt(self, entry: Entry, keys: Sequence[bytes], now: float) -> None:
        """A turn gives its blocks up, those with ``keys`` full of content, and waits again."""
        program = entry.program
        program.num_running -= 1
        program.num_waiting += 1
        program.num_preemptions += 1
        if num_shared(keys, program.keys) < len(keys):
            self._record(program, keys, now)
        self._changed(program, now)

    def end_turn(self, entry: Entry, keys: Sequence[bytes] | None, now: float) -> tuple[bytes, ...]:
        """A turn has ended and is about to give its blocks back; those with the keys returned are to go first then.

        Args:
            keys: of its full blocks; None where it left nothing of use.
        """
        doomed = self._end_turn(entry, keys, now)
        self._changed(entry.program, now)
        return doomed

    def _end_turn(self, entry: Entry, keys: Sequence[bytes] | None, now: float) -> tuple[bytes, ...]:
        program, request = entry.program, entry.request
        if request.status is Status.RUNNING:
            program.num_running -= 1
        else:
            program.num_waiting -= 1
        if program.parent is not None:
            program.parent.num_working -= 1
        self._touch(program, now)
        program.intent = _lifetimes(program.intent)
        if not program.num_waiting and self.holds.is_over(program, now):
            self._end_hold(program, "expired")
        if program.id is None or keys is None:
            return ()
        begun = request.first_scheduled_time
        program.num_turns += 1
        program.service += 0.0 if begun is None else now - begun
        program.finish = _FINISHES.get(request.finish_reason, Finish.UNKNOWN)
        program.tool = None if request.intent is None else request.intent.tool
        program.intent = _wishes(program.intent, request.intent)
        if not request.num_preemptions:
            program.num_preemptions = max(0, program.num_preemptions - 1)
        doomed = self._record(program, keys, now)
        if not program.has_strayed:
            program.num_tokens = request.num_tokens
        if request.program is not None and request.program.final:
            return doomed + self._close(program, now)
        if request.intent is not None and request.intent.lease_s is not None:
            self._pin(program, request.intent.lease_s, now)
        self.protections.grant(program, now)
        return doomed + self._keep(program, now)

    def discard(self, keys: Sequence[bytes], lane: str | None) -> None:
        """The blocks of these keys are the first to go, once the step in flight on ``lane`` has let go of them."""
        self._pool.demote([block for key in keys if (block := self._pool.find(key)) is not None])
        if lane is not None and keys:
            self._leaving.setdefault(lane, []).append(tuple(keys))

    def settle(self, lane: str) -> None:
        """The step in flight on ``lane`` is over, and what waited for it was released."""
        for keys in self._leaving.pop(lane, ()):
            self.discard(keys, None)

    # -- what is said in between, and the time -------------------------------------------------------------

    def told(self, ref: ProgramRef, finish: Finish, tool: str | None, now: float) -> None:
        """How a program's latest turn has ended, by who has read its answer."""
        program = self.programs.get(ProgramId(ref.owner, ref.program))
        if program is None or not program.is_idle or program.finish not in (Finish.UNKNOWN, Finish.ABORT):
            return
        # Who has read enough of an answer aborts it, and then says how it ended; a client's own word on tools stands.
        program.finish, program.tool = finish, program.tool or tool
        self.discard(self._keep(program, now), None)
        self._changed(program, now)

    def act(self, verb: ProgramVerb, ref: ProgramRef, seconds: float | None, now: float) -> Outcome:
        """Do what a client asks for between two turns."""
        if verb is ProgramVerb.PREFETCH and self._transfers is None:
            return Outcome(verb.value, Applied.IGNORED, "unsupported")
        program = self.programs.get(ProgramId(ref.owner, ref.program))
        if program is None:
            return Outcome(verb.value, Applied.IGNORED, "unknown_program")
        if verb is ProgramVerb.PIN:
            return self._pin(program, DEFAULT_LEASE if seconds is None else seconds, now)
        if verb is ProgramVerb.PREFETCH:
            return self._prefetch(program)
        if verb is ProgramVerb.CLOSE:
            self.discard(self._close(program, now), None)
        else:
            self._end_lease(program)
            self.discard(self._send_down(program), None)
        return Outcome(verb.value, Applied.APPLIED)

    def tick(self, now: float) -> None:
        """End what has had its time."""
        self.leases.expire(now)
        self.kept["expired"] += len(self.holds.expire(now))
        for program in self.protections.expire(now):
            self._changed(program, now)
        if self._ranks is not None:
            self._ranks.tick(now)
        self._close_idle(now)

    def _close_idle(self, now: float) -> None:
        """End programs of which nothing was heard for long, a bounded number of them."""
        num_keys = 0
        for program in self.programs.idle_since(now - IDLE_LIMIT, MAX_CLOSED):
            num_keys += len(program.keys)
            self.discard(self._close(program, now), None)
            if num_keys >= MAX_CLOSED_KEYS:
                break

    def next_deadline(self) -> float | None:
        """When to ``tick`` although nothing else happens."""
        ends = [end for end in (self.leases.next_end, self.holds.next_end) if end is not None]
        return min(ends, default=None)

    def make_room(self, count: int, *, alone: bool) -> Room:
        """Revoke leases until ``count`` blocks are free; and end holds too if nothing else runs that could free any."""
        ended: list[Program] = []
        if alone and count > self._pool.num_free + self._pool.num_revocable:
            ended = self.holds.make_room(count - self._pool.num_revocable)
            self.kept["pressure"] += len(ended)
        return Room(self.leases.make_room(count), ended)

    def check_integrity(self) -> None:
        """See ``ProgramTable``, ``Leases`` and ``Holds``."""
        self.programs.check_integrity()
        self.leases.check_integrity()
        self.holds.check_integrity()
        self.protections.check_integrity()
        if self._commons is not None:
            self._commons.check_integrity()
        if self._ranks is not None:
            self._ranks.check_integrity()

    # -- inside --------------------------------------------------------------------------------------------

    def _touch(self, program: Program, now: float) -> None:
        for one in (program, program.parent):
            if one is not None:
                one.intent = _aged(one.intent, now - one.last_active)
                one.last_active = now
                self.programs.touch(one)

    def _record(self, program: Program, keys: Sequence[bytes], now: float) -> tuple[bytes, ...]:
        """Remember what a turn has left; what its program had before, and nobody has now.

        One turn aside (agents ask for titles and summaries under the same id) does not make a program forget its chain;
        who goes on elsewhere has a new one with the turn after.
        """
        is_aside = len(keys) < len(program.keys) and 2 * num_shared(keys, program.keys) < len(program.keys)
        program.has_strayed = is_aside and not program.has_strayed
        if program.has_strayed:
            return ()
        left, gone = self.programs.record(program, keys)
        self._left(gone, now)
        if left:
            self.kept["superseded"] += 1
        if self._transfers is not None:
            self._transfers.demote(left)
            self._transfers.store(program)
        return left

    def _keep(self, program: Program, now: float) -> tuple[bytes, ...]:
        """Ask the policy what becomes of an idle program's blocks, and do it; those that are to go first."""
        if not program.is_idle:
            return ()
        keep = self._policy.ended(program, now)
        asked = [_ASKED[verb] for verb in _verbs(program.intent) if verb in _ASKED]
        if asked:
            keep = Keep(0.0, Fate.DISCARD if Fate.DISCARD in asked else Fate.SWAP, "hint")
        self.sources[keep.source] += 1
        if keep.hold_s > 0:
            blocks = match_prefix(self._pool, program.keys, len(program.keys))
            self.holds.grant(program, blocks, now + keep.hold_s)
        else:
            self.holds.end(program)
        if keep.fate is Fate.REST:
            return ()
        return self._send_down(program) if keep.fate is Fate.SWAP else self._give_up(program)

    def _send_down(self, program: Program) -> tuple[bytes, ...]:
        """Its blocks are the first to go, once they are in the tier below; those that may go now."""
        own = self.programs.unshared(program)
        if self._transfers is None:
            return own
        self._transfers.store(program, own)
        return ()

    def _give_up(self, program: Program) -> tuple[bytes, ...]:
        """Its blocks are the first to go, and are not copied any more."""
        if self._transfers is not None:
            self._transfers.forget(program)
        return self.programs.unshared(program)

    def _prefetch(self, program: Program) -> Outcome:
        """Have what the program left copied up, if that is in nobody's way."""
        assert self._transfers is not None, "there is nothing to fetch from"
        wish, keys = ProgramVerb.PREFETCH.value, program.keys
        cached = match_prefix(self._pool, keys, len(keys))
        if len(cached) == len(keys):
            return Outcome(wish, Applied.APPLIED)
        if self._transfers.loading(keys[len(cached)]) is not None:
            return Outcome(wish, Applied.DEFERRED)
        count = min(self._transfers.reach(keys, len(cached), len(keys)), self._pool.num_empty)
        if not count:
            return Outcome(wish, Applied.IGNORED, "pressure")
        self._pool.hold(cached)
        self._transfers.begin(keys, cached, count)
        return Outcome(wish, Applied.DEFERRED)

    def _close(self, program: Program, now: float) -> tuple[bytes, ...]:
        """A program is over; the keys that were its own."""
        self._leave(program, now)
        left = self.programs.forget(program)
        self._let_go(program)
        if self._transfers is not None:
            self._transfers.demote(left)
        return left

    def _left(self, programs: Iterable[Program], now: float) -> None:
        """These are not known any more."""
        for program in programs:
            self._leave(program, now)
            self._let_go(program)

    def _leave(self, program: Program, now: float) -> None:
        """The policy learns of programs that had a turn, and have none under way: that one may be known again."""
        self._end_hold(program, "final")
        if program.num_turns and program.is_idle:
            self._policy.left(program, now)

    def _let_go(self, program: Program) -> None:
        """Of a program that is not known any more."""
        self.protections.end(program)
        self._end_lease(program)
        if self._ranks is not None:
            self._ranks.forget(program)
        if self._transfers is not None:
            self._transfers.forget(program)

    def _changed(self, program: Program, now: float) -> None:
        """A program's state is another one, and with it perhaps its parent's."""
        if self._ranks is not None:
            self._ranks.changed(program, now)
            if program.parent is not None:
                self._ranks.changed(program.parent, now)

    def _end_hold(self, program: Program, why: str) -> bool:
        ended = self.holds.end(program)
        self.kept[why] += ended
        return ended

    def _end_lease(self, program: Program) -> None:
        if program.id is not None:
            self.leases.end(program.id)

    def _pin(self, program: Program, seconds: float, now: float) -> Outcome:
        wish = ProgramVerb.PIN.value
        if program.id is None or not seconds > 0:
            return Outcome(wish, Applied.IGNORED, "unsupported")
        blocks = match_prefix(self._pool, program.keys, len(program.keys))
        kept = self.leases.grant(program.id, blocks, now + min(seconds, MAX_LEASE))
        if kept < len(blocks) or seconds > MAX_LEASE:
            self.leases.num_clipped += 1
            return Outcome(wish, Applied.CLIPPED, "quota")
        if not kept:
            return Outcome(wish, Applied.IGNORED, "pressure")
        return Outcome(wish, Applied.APPLIED)


def _verbs(intent: RetainIntent | None) -> tuple[str, ...]:
    return () if intent is None else intent.verbs


def _wishes(old: RetainIntent | None, new: RetainIntent | None) -> RetainIntent | None:
    """What a turn's client wishes is for the time after that turn; only lifetimes run on until their own ends, unless
    it names others."""
    if new is None or old is None or new.min_s is not None or new.max_s is not None:
        return old if new is None else new
    return replace(new, min_s=old.min_s, max_s=old.max_s)


def _lifetimes(intent: RetainIntent | None) -> RetainIntent | None:
    """Of a wish all that is left when the next turn has come: lifetimes that are not over."""
    if intent is None:
        return None
    min_s, max_s = (None if s is None or not s > 0 else s for s in (intent.min_s, intent.max_s))
    return None if min_s is None and max_s is None else RetainIntent(min_s=min_s, max_s=max_s)


def _aged(intent: RetainIntent | None, seconds: float) -> RetainIntent | None:
    """Lifetimes count from when a program was active last: it was active so many seconds later now."""
    if intent is None or (intent.min_s is None and intent.max_s is None) or seconds <= 0:
        return intent
    left = [s if s is None or not s > 0 else max(0.0, s - seconds) for s in (intent.min_s, intent.max_s)]
    return replace(intent, min_s=left[0], max_s=left[1])
