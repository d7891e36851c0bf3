"""What programs need, in blocks: those that are in, and the one that asks to enter. Kept up, never summed anew.

Three parts make up what is needed, and no block is in two of them:
    1. keys that several known programs have, once;
    2. what one known program alone has, in the measure of its rank's weight, while no turn of it runs;
    3. the blocks of the turns that run, beyond what the other two parts count.
The third is reckoned when a turn starts and stays until it stops; what others do in the meantime may make it a little
too large or too small.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from braid.policy.agents.policy import SetLoad
from braid.policy.agents.program import Program
from braid.sched.block_pool import BlockPool
from braid.sched.entry import Entry
from braid.sched.programs import ProgramTable
from braid.sched.ranks import Ranks


class WorkingSets:
    """See above; ``num_lower_blocks`` is what the tier below the device holds."""

    def __init__(
        self,
        pool: BlockPool,
        programs: ProgramTable,
        ranks: Ranks,
        block_size: int,
        num_lower_blocks: int = 0,
    ) -> None:
        self._pool = pool
        self._programs = programs
        self._ranks = ranks
        self._block_size = block_size
        self.num_lower_blocks = num_lower_blocks
        self._num_own: dict[Program, int] = {}
        """Blocks that a program alone has, where there are any."""
        self._resting: dict[Program, float] = {}
        """Part 2, by program."""
        self._running: dict[Entry, float] = {}
        """Part 3, by turn."""
        self._num_resting = self._num_running = 0.0
        programs.watch(self)
        ranks.watch(self._weigh)

    @property
    def needed(self) -> float:
        return self._programs.num_shared_keys + max(0.0, self._num_resting) + max(0.0, self._num_running)

    def load(self, entry: Entry, num_running: int) -> SetLoad:
        """What a waiting turn, whose keys are known, would add to what is needed without it."""
        resting = self._resting.get(entry.program, 0.0)
        added = self._num_beyond(entry, self._num_in_use(entry))
        return SetLoad(
            self.needed - resting, round(added), self._pool.num_blocks, self.num_lower_blocks, num_running
        )

    def started(self, entry: Entry, num_taken: int) -> None:
        """A turn is about to take its blocks, ``num_taken`` of which nobody uses now."""
        num_blocks = self._num_blocks(entry)
        self._running[entry] = beyond = self._num_beyond(entry, num_blocks - num_taken)
        self._num_running += beyond

    def grew(self, entry: Entry) -> None:
        """A turn has one block more."""
        self._running[entry] += 1
        self._num_running += 1

    def stopped(self, entry: Entry) -> None:
        """A turn runs no more."""
        self._num_running -= self._running.pop(entry)

    def got(self, program: Program, keys: Sequence[bytes]) -> None:
        """What it shares now with one other was that one's own. Deeper keys have fewer holders: it is one at most."""
        self._count(program)
        first = bisect_left(keys, True, key=lambda key: self._programs.num_holders(key) <= 2)
        for holder in self._programs.holders(keys[first]) if first < len(keys) else ():
            self._count(holder)

    def lost(self, program: Program, keys: Sequence[bytes]) -> None:
        """What it shared with one other is that one's own now."""
        self._count(program)
        first = bisect_left(keys, True, key=lambda key: self._programs.num_holders(key) <= 1)
        for holder in self._programs.holders(keys[first]) if first < len(keys) else ():
            self._count(holder)

    def check_integrity(self) -> None:
        """Prove that the sums are those of their parts.

        Raises:
            AssertionError: naming what does not add up; a bug in Braid.
        """
        assert abs(sum(self._resting.values()) - self._num_resting) < 1e-3, "resting programs are miscounted"
        assert abs(sum(self._running.values()) - self._num_running) < 1e-3, "running turns are miscounted"
        for program, count in self._num_own.items():
            assert count == self._programs.num_unshared(program), "a program's own blocks are miscounted"
        for program, blocks in self._resting.items():
            assert blocks == self._weight(program) * self._num_own[program], "a program is weighed wrongly"

    def _count(self, program: Program) -> None:
        """What a program alone has is another number."""
        own = self._programs.num_unshared(program)
        if own:
            self._num_own[program] = own
        else:
            self._num_own.pop(program, None)
        self._weigh(program)

    def _weigh(self, program: Program) -> None:
        """A program's rank or state is another one, or what it has."""
        self._num_resting -= self._resting.pop(program, 0.0)
        own = self._weight(program) * self._num_own.get(program, 0)
        if own:
            self._resting[program] = own
            self._num_resting += own

    def _weight(self, program: Program) -> float:
        rank = self._ranks.get(program)
        return 0.0 if rank is None or program.num_running else rank.weight

    def _num_blocks(self, entry: Entry) -> int:
        return -(-entry.request.num_tokens // self._block_size)

    def _num_beyond(self, entry: Entry, num_in_use: int) -> float:
        """Its blocks without those that are counted elsewhere, or that others use who run."""
        return max(0.0, self._num_blocks(entry) - max(self._num_counted(entry), num_in_use))

    def _num_counted(self, entry: Entry) -> float:
        """How much of its prefix others count: all that several have, and what one other has in its measure."""
        if entry.answer is not None:
            return 0.0
        keys, table = entry.keys, self._programs
        shared = bisect_left(keys, True, key=lambda key: table.num_holders(key) < 2)
        holder = table.latest_holder(keys[shared]) if shared < len(keys) else None
        if holder is None or holder is entry.program or holder.num_running:
            return shared
        rank = self._ranks.get(holder)
        ends = bisect_left(keys, True, lo=shared, key=lambda key: not table.num_holders(key))
        return shared + (rank.weight if rank is not None else 0.0) * (ends - shared)

    def _num_in_use(self, entry: Entry) -> int:
        """Blocks of its prefix that running turns use. Who uses a block uses all before it."""
        if entry.answer is not None:
            return 0
        return bisect_left(entry.keys, True, key=lambda key: not self._is_in_use(key))

    def _is_in_use(self, key: bytes) -> bool:
        block = self._pool.find(key)
        return block is not None and self._pool.refs(block) > 0
