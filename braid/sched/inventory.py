"""What there is of programs, for whoever watches: asked between two steps, so it must be quick."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from heapq import nlargest
from itertools import islice

from braid.core.program import ProgramInfo
from braid.policy.agents.forecast import returns_in
from braid.policy.agents.program import Program
from braid.sched.block_pool import BlockPool
from braid.sched.leases import Leases
from braid.sched.programs import ProgramTable

HasKey = Callable[[bytes], bool]


class Inventory:
    """Tells of programs where they stand and where their KV lives.

    Args:
        retention: the policy, which may know when they come back.
        is_lower: whether the tier below the device has a key; None without one.
    """

    def __init__(
        self,
        pool: BlockPool,
        programs: ProgramTable,
        leases: Leases,
        retention: object,
        is_lower: HasKey | None = None,
    ) -> None:
        self._pool, self._programs, self._leases = pool, programs, leases
        self._retention = retention
        self._is_lower = is_lower

    def list(self, owner: str | None, limit: int, now: float) -> list[ProgramInfo]:
        """Those of ``owner``, or of everybody, that were last heard of, the latest first."""
        return [self._describe(program, now) for program in self._latest(owner, limit)]

    def _latest(self, owner: str | None, limit: int) -> Iterable[Program]:
        if owner is not None:
            return islice(self._programs.of(owner), limit)
        owners = self._programs.owners()
        latest = (program for name in owners for program in islice(self._programs.of(name), limit))
        return nlargest(limit, latest, key=lambda program: program.last_active)

    def _describe(self, program: Program, now: float) -> ProgramInfo:
        assert program.id is not None, "a program in the table has an id"
        keys = program.keys
        on_device = _leading(keys, 0, lambda key: self._pool.find(key) is not None)
        below = 0 if self._is_lower is None else _leading(keys, on_device, self._is_lower)
        end = self._leases.end_of(program.id)
        return ProgramInfo(
            owner=program.id.owner,
            program=program.id.program,
            parent=None if program.parent is None or program.parent.id is None else program.parent.id.program,
            num_turns=program.num_turns,
            num_tokens=program.num_tokens,
            num_waiting=program.num_waiting,
            num_running=program.num_running,
            num_working=program.num_working,
            idle_s=max(0.0, now - program.last_active) if program.is_idle else 0.0,
            finish=program.finish.value,
            tool=program.tool,
            num_blocks=len(keys),
            num_device_blocks=on_device,
            num_lower_blocks=below,
            is_protected=program.is_protected,
            lease_s=None if end is None else max(0.0, end - now),
            return_s=returns_in(self._retention, program, now),
        )


def _leading(keys: Sequence[bytes], start: int, is_there: HasKey) -> int:
    """How many keys from ``start`` on are there. Chains go from their ends, so a few look-ups tell; where one has a
    gap, what is behind it may count too."""
    places = range(start, len(keys))
    return bisect_left(places, True, key=lambda place: not is_there(keys[place]))
