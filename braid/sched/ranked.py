"""Idle blocks in the order of their programs' ranks; of one program the end of its chain goes first.

Blocks stand in one group per program. A key that several programs have belongs to the best of them; but the others
need not be looked at before a block's turn has come. So a block stands in the group of anyone who has its key, and
only when it would be evicted, and somebody better has it too, the group goes over to that one.

Why this is exact: who has a key also has all keys before it in the chain. A block is evicted only out of the lowest
group, as its deepest, and if nobody better has its key. Whoever has a deeper key of the same chain is then none of the
better ones either, so that block stands in the same group, and has gone. No block stays whose beginning has gone.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator, Sequence

from braid.policy.agents.program import Program
from braid.sched.programs import ProgramTable
from braid.sched.ranks import Place, Ranks


class Group:
    """Idle blocks of one chain, which ``program`` has.

    Args:
        blocks: by their depth.
        deepest: no block is deeper.
        place: by which it is queued.
        checked: state of the world, and number of holders of the key, for which nobody was found to be better.
    """

    __slots__ = ("blocks", "checked", "deepest", "place", "program")

    def __init__(self, program: Program) -> None:
        self.program = program
        self.place: Place | None = None
        self.blocks: dict[int, int] = {}
        self.deepest = -1
        self.checked = (-1, -1)

    def end(self) -> int:
        """The deepest block's depth; there must be one. Going down costs no more than the chain's release did."""
        while self.deepest not in self.blocks:
            self.deepest -= 1
        return self.deepest


class RankedBlocks:
    """See ``IdleBlocks``. Blocks of nobody go before those of programs, by their last use."""

    def __init__(self, programs: ProgramTable, ranks: Ranks) -> None:
        self._programs = programs
        self._ranks = ranks
        self._keys: dict[int, bytes] = {}
        self._by_key: dict[bytes, int] = {}
        self._nobodys: OrderedDict[int, None] = OrderedDict()
        """In the order in which they go."""
        self._groups: dict[Program, Group] = {}
        """None of them is empty."""
        self._homes: dict[int, tuple[Group, int]] = {}
        """Every other block's group, and its depth."""
        self._latest = (Group(Program(None, 0.0)), 0)
        """Where a block was settled last; nowhere at first."""
        self._queue: list[tuple[Place, int, Group]] = []
        """A heap of groups; entries with another place than the group's are dead."""
        self._num_queued = 0
        self._version = 0
        """Of ranks and holders: counts their changes."""
        programs.watch(self)
        ranks.watch(self._ranked)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, block: int) -> bool:
        return block in self._keys

    def __iter__(self) -> Iterator[int]:
        return iter(self._keys)

    def add(self, block: int, key: bytes) -> None:
        self._keys[block] = key
        self._by_key[key] = block
        # Chains are released from their ends: where the block behind this one has just been settled is a place for it,
        # too, since anyone who has its key will do. That spares asking who has it.
        group, depth = self._latest
        depth -= 1
        keys = group.program.keys
        if 0 <= depth < len(keys) and keys[depth] == key and self._groups.get(group.program) is group:
            self._put_into(group, depth, block)
        else:
            self._settle(block, key)

    def discard(self, block: int) -> None:
        key = self._keys.pop(block, None)
        if key is not None:
            del self._by_key[key]
            self._leave(block)

    def demote(self, block: int) -> None:
        self._leave(block)
        self._put_first(block)

    def pop(self, now: float) -> int:
        block = next(iter(self._nobodys)) if self._nobodys else self._last_of_lowest()
        self.discard(block)
        return block

    def put_back(self, block: int, key: bytes) -> None:
        self.add(block, key)
        if block in self._nobodys:
            self._nobodys.move_to_end(block, last=False)

    # -- what programs have, and what that is worth --------------------------------------------------------

    def got(self, program: Program, keys: Sequence[bytes]) -> None:
        """Blocks of nobody become its own."""
        self._version += 1
        for key in keys:
            block = self._by_key.get(key)
            if block is not None and block in self._nobodys:
                del self._nobodys[block]
                self._settle(block, key)

    def lost(self, program: Program, keys: Sequence[bytes]) -> None:
        """Blocks go over to somebody else who has them, or are nobody's and the first to go."""
        self._version += 1
        for key in keys:
            block = self._by_key.get(key)
            home = None if block is None else self._homes.get(block)
            if block is None or home is None or home[0].program is not program:
                continue
            self._leave(block)
            if self._programs.num_holders(key):
                self._settle(block, key)
            else:
                self._put_first(block)

    def _ranked(self, program: Program) -> None:
        self._version += 1
        group = self._groups.get(program)
        if group is not None:
            self._enqueue(group)

    # -- groups --------------------------------------------------------------------------------------------

    def _settle(self, block: int, key: bytes) -> None:
        """Give an idle block its place."""
        program = self._programs.latest_holder(key)
        if program is None:
            self._nobodys[block] = None
            return
        group = self._groups.get(program)
        if group is None:
            group = self._groups[program] = Group(program)
            self._enqueue(group)
        self._put_into(group, self._programs.depth(key), block)

    def _put_into(self, group: Group, depth: int, block: int) -> None:
        group.blocks[depth] = block
        if depth > group.deepest:
            group.deepest = depth
        self._homes[block] = self._latest = (group, depth)

    def _leave(self, block: int) -> None:
        home = self._homes.pop(block, None)
        if home is None:
            del self._nobodys[block]
            return
        group, depth = home
        del group.blocks[depth]
        if not group.blocks:
            del self._groups[group.program]

    def _put_first(self, block: int) -> None:
        self._nobodys[block] = None
        self._nobodys.move_to_end(block, last=False)

    def _last_of_lowest(self) -> int:
        """The next block to go, of those that programs have."""
        while True:
            place, _, group = self._queue[0]
            if not self._is_live(place, group):
                heapq.heappop(self._queue)
                continue
            block = group.blocks[group.end()]
            better = self._better(group, self._keys[block])
            if better is None:
                return block
            self._hand_over(group, better)

    def _better(self, group: Group, key: bytes) -> Program | None:
        """Somebody of a higher place than the group's program who has the key."""
        holders = self._programs.holders(key)
        state = (self._version, len(holders))
        if group.checked != state:
            place = self._ranks.place(group.program)
            for program in holders:
                if self._ranks.place(program) > place:
                    return program
            group.checked = state
        return None

    def _hand_over(self, group: Group, program: Program) -> None:
        """All blocks of a group become another program's, which has them too: the smaller group joins the larger."""
        del self._groups[group.program]
        other = self._groups.pop(program, None)
        if other is not None:
            group, other = (group, other) if len(group.blocks) > len(other.blocks) else (other, group)
            group.blocks |= other.blocks
            group.deepest = max(group.deepest, other.deepest)
            for depth, block in other.blocks.items():
                self._homes[block] = (group, depth)
        group.program = program
        self._groups[program] = group
        self._enqueue(group)

    def _enqueue(self, group: Group) -> None:
        """Give a group the place of its program."""
        place = self._ranks.place(group.program)
        if place == group.place:
            return
        group.place = place
        self._num_queued += 1
        heapq.heappush(self._queue, (place, self._num_queued, group))
        if len(self._queue) > 2 * len(self._groups) + 64:
            self._queue = [
                (other.place, number, other)
                for number, other in enumerate(self._groups.values())
                if other.place is not None
            ]
            heapq.heapify(self._queue)

    def _is_live(self, place: Place, group: Group) -> bool:
        return group.place == place and self._groups.get(group.program) is group

    def check_integrity(self) -> None:
        """Prove that every block is in one place, and that it is one where it belongs.

        Raises:
            AssertionError: naming what does not add up; a bug in Braid.
        """
        assert self._keys.keys() == self._homes.keys() | self._nobodys.keys(), "an idle block is lost"
        assert not self._homes.keys() & self._nobodys.keys(), "an idle block is in two places"
        assert self._by_key == {key: block for block, key in self._keys.items()}, "an idle block has two keys"
        queued = {id(group) for place, _, group in self._queue if self._is_live(place, group)}
        for program, group in self._groups.items():
            assert group.program is program, "a group is not where it is looked for"
            assert group.blocks, "a group is empty"
            assert group.place == self._ranks.place(program), "a group has a wrong place"
            assert id(group) in queued, "a group is not queued"
        for block, (group, depth) in self._homes.items():
            assert group.blocks[depth] == block, "an idle block is not at home"
            assert depth <= group.deepest, "a group has forgotten its end"
            assert group.program.keys[depth] == self._keys[block], "a program has no such block"
