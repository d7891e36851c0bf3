"""What programs leave in the block pool between turns, and what their clients may do with it."""

from __future__ import annotations

from collections.abc import Sequence

from braid.core.program import Applied, Outcome, ProgramRef, ProgramVerb
from braid.core.request import Request
from braid.sched.block_pool import BlockPool
from braid.sched.leases import Leases
from braid.sched.prefix_cache import match_prefix
from braid.sched.programs import ProgramId, ProgramTable

DEFAULT_LEASE = 300.0
MAX_LEASE = 3600.0
"""Seconds."""
KEYS_PER_BLOCK = 4
"""The table may know so many keys for each block of the pool; more could not be cached anyway."""


class Retention:
    """The programs of one pool and their leases.

    Blocks are found by their keys, so what was evicted in the meantime is simply not there, and an id never opens
    anything but its own owner's programs.
    """

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self.programs = ProgramTable(KEYS_PER_BLOCK * pool.num_blocks)
        self.leases = Leases(pool)
        self._leaving: dict[str, list[tuple[bytes, ...]]] = {}
        """Keys to be demoted once the step in flight on a lane, which still holds their blocks, is over."""

    def act(self, verb: ProgramVerb, ref: ProgramRef, seconds: float | None, now: float) -> Outcome:
        """Do what a client asks for between two turns."""
        if verb is ProgramVerb.PREFETCH:
            return Outcome(verb.value, Applied.IGNORED, "unsupported")
        program_id = ProgramId(ref.owner, ref.program)
        if self.programs.get(program_id) is None:
            return Outcome(verb.value, Applied.IGNORED, "unknown_program")
        if verb is ProgramVerb.PIN:
            return self._pin(program_id, DEFAULT_LEASE if seconds is None else seconds, now)
        self._demote(program_id, forget=verb is ProgramVerb.CLOSE)
        return Outcome(verb.value, Applied.APPLIED)

    def end_turn(self, request: Request, keys: Sequence[bytes] | None, lane: str | None, now: float) -> None:
        """A request has ended and given its blocks back.

        Args:
            keys: of its full blocks; None where it left nothing of use.
            lane: whose step in flight still holds its blocks.
        """
        ref, intent = request.program, request.intent
        if ref is None:
            return
        program_id = ProgramId(ref.owner, ref.program)
        if keys is not None:
            self.programs.record(program_id, keys, request.num_tokens, now)
        if ref.final:
            self._demote(program_id, forget=True, lane=lane)
        elif keys is not None and intent is not None and intent.lease_s is not None:
            self._pin(program_id, intent.lease_s, now)

    def settle(self, lane: str) -> None:
        """The step in flight on ``lane`` is over, and what waited for it was released."""
        for keys in self._leaving.pop(lane, ()):
            self._demote_keys(keys)

    def check_integrity(self) -> None:
        """See ``ProgramTable`` and ``Leases``."""
        self.programs.check_integrity()
        self.leases.check_integrity()

    def _pin(self, program_id: ProgramId, seconds: float, now: float) -> Outcome:
        wish = ProgramVerb.PIN.value
        program = self.programs.get(program_id)
        if program is None or not seconds > 0:
            return Outcome(wish, Applied.IGNORED, "unknown_program" if program is None else "unsupported")
        blocks = match_prefix(self._pool, program.keys, len(program.keys))
        kept = self.leases.grant(program_id, blocks, now + min(seconds, MAX_LEASE))
        if kept < len(blocks) or seconds > MAX_LEASE:
            self.leases.num_clipped += 1
            return Outcome(wish, Applied.CLIPPED, "quota")
        if not kept:
            return Outcome(wish, Applied.IGNORED, "pressure")
        return Outcome(wish, Applied.APPLIED)

    def _demote(self, program_id: ProgramId, *, forget: bool, lane: str | None = None) -> None:
        """Evict first what this program alone left; nothing that another known program would miss."""
        self.leases.end(program_id)
        program = self.programs.forget(program_id) if forget else self.programs.get(program_id)
        if program is None:
            return
        keys = self.programs.unshared(program)
        self._demote_keys(keys)
        if lane is not None:
            self._leaving.setdefault(lane, []).append(keys)

    def _demote_keys(self, keys: Sequence[bytes]) -> None:
        self._pool.demote([block for key in keys if (block := self._pool.find(key)) is not None])
