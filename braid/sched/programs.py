"""Who has been here: programs by id, and which of them have which blocks' keys. No token is remembered."""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from braid.policy.agents.program import COMMON_OWNER, Program, ProgramId

MAX_PROGRAMS = 4096


def num_shared(one: Sequence[bytes], other: Sequence[bytes]) -> int:
    """Keys form chains, so two of them are equal up to some place and nowhere after it: that place."""
    short = min(len(one), len(other))
    return bisect_left(range(short), True, key=lambda index: one[index] != other[index])


class KeyWatcher(Protocol):
    """Is told which keys programs have, once the table has changed."""

    def got(self, program: Program, keys: Sequence[bytes]) -> None:
        """``keys``, the end of its chain, are new to the program."""
        ...

    def lost(self, program: Program, keys: Sequence[bytes]) -> None:
        """``keys``, which were the end of its chain, are the program's no more."""
        ...


@dataclass(slots=True, eq=False)
class _Owner:
    """The programs of one owner, least recently used first."""

    programs: OrderedDict[str, Program] = field(default_factory=OrderedDict)
    num_keys: int = 0


class ProgramTable:
    """Programs by id, bounded in number and in keys.

    Where it is full, the owner that has most loses its least recently used program: nobody can push others out by
    naming many programs. A program that is dropped while a turn of it is under way is known again when that ends.

    Args:
        max_keys: keys of all programs together.
    """

    def __init__(self, max_keys: int, max_programs: int = MAX_PROGRAMS) -> None:
        self._max_keys, self._max_programs = max_keys, max_programs
        self._owners: dict[str, _Owner] = {}
        self._holders: dict[bytes, dict[Program, None]] = {}
        self._depths: dict[bytes, int] = {}
        self._by_age: OrderedDict[Program, None] = OrderedDict()
        """Those of all owners, least recently used first."""
        self._watchers: list[KeyWatcher] = []
        self._num_programs = self._num_keys = 0
        self.num_shared_keys = 0
        """Keys that several programs have."""

    def __len__(self) -> int:
        """Programs without the prefixes that they share."""
        commons = self._owners.get(COMMON_OWNER)
        return self._num_programs - (0 if commons is None else len(commons.programs))

    def watch(self, watcher: KeyWatcher) -> None:
        self._watchers.append(watcher)

    def knows(self, program: Program) -> bool:
        """Whether it is in the table; one without an id never is."""
        return program.id is not None and self.get(program.id) is program

    def get(self, program_id: ProgramId) -> Program | None:
        owner = self._owners.get(program_id.owner)
        return None if owner is None else owner.programs.get(program_id.program)

    def owners(self) -> list[str]:
        """Those that have programs."""
        return [owner for owner in self._owners if owner != COMMON_OWNER]

    def of(self, owner: str) -> Iterator[Program]:
        """An owner's programs, the latest used first."""
        known = self._owners.get(owner)
        return iter(()) if known is None else reversed(known.programs.values())

    def meet(
        self, program_id: ProgramId, parent: ProgramId | None, now: float
    ) -> tuple[Program, list[Program]]:
        """A turn has come: its program, made if it is new, and those that had to go.

        A parent counts if it was here before its child, so there are no circles.
        """
        known = self.get(program_id)
        if known is not None:
            self.touch(known)
            return known, []
        above = None if parent is None else self.get(parent)
        program = Program(program_id, now, above, last_active=now)
        self._insert(program_id, program)
        return program, self._shrink()

    def record(self, program: Program, keys: Sequence[bytes]) -> tuple[tuple[bytes, ...], list[Program]]:
        """A turn has left ``keys``: those before that nobody has any more, and the programs that had to go."""
        program_id = program.id
        if program_id is None:
            return (), []
        known = self.get(program_id)
        if known is None:
            self._insert(program_id, program)
        elif known is not program:
            return (), []
        self.touch(program)
        owner = self._owners[program_id.owner]
        left = self._set_keys(owner, program, tuple(keys[: self._max_keys]))
        return left, self._shrink()

    def forget(self, program: Program) -> tuple[bytes, ...]:
        """Drop a program; the keys that nobody has any more."""
        program_id = program.id
        if program_id is None or not self.knows(program):
            return ()
        owner = self._owners[program_id.owner]
        del owner.programs[program_id.program], self._by_age[program]
        left = self._set_keys(owner, program, ())
        self._num_programs -= 1
        if not owner.programs:
            del self._owners[program_id.owner]
        return left

    def touch(self, program: Program) -> None:
        """It is used now, if it is known."""
        if program.id is not None and self.knows(program):
            self._owners[program.id.owner].programs.move_to_end(program.id.program)
            self._by_age.move_to_end(program)

    def idle_since(self, time: float, limit: int) -> list[Program]:
        """Programs that nothing was heard of since ``time``, at most ``limit``; those longest idle first.

        The work is in ``limit``, too: who is old but has a turn under way is passed over once, and used when that ends.
        """
        found: list[Program] = []
        busy: list[Program] = []
        for program in self._by_age:
            if program.last_active > time or len(found) + len(busy) == limit:
                break
            (found if program.is_idle and not program.num_working else busy).append(program)
        for program in busy:
            self._by_age.move_to_end(program)
        return found

    def holders(self, key: bytes) -> Collection[Program]:
        """The programs whose latest turn had this block."""
        return self._holders.get(key, ())

    def latest_holder(self, key: bytes) -> Program | None:
        """Of the holders the one that got the key last."""
        held = self._holders.get(key)
        return next(reversed(held)) if held is not None else None

    def depth(self, key: bytes) -> int:
        """The place of a key that somebody has, in the chains of all who have it."""
        return self._depths[key]

    def num_holders(self, key: bytes) -> int:
        return len(self._holders.get(key, ()))

    def unshared(self, program: Program) -> tuple[bytes, ...]:
        """The last of its keys, from the first that no other known program has."""
        return program.keys[self._first_unshared(program) :]

    def num_unshared(self, program: Program) -> int:
        return len(program.keys) - self._first_unshared(program)

    def check_integrity(self) -> None:
        """Prove that the counts are those of the entries.

        Raises:
            AssertionError: naming what does not add up; a bug in Braid.
        """
        programs = [program for owner in self._owners.values() for program in owner.programs.values()]
        holders: dict[bytes, set[Program]] = {}
        for program in programs:
            for key in program.keys:
                holders.setdefault(key, set()).add(program)
        assert set(programs) == self._by_age.keys(), "programs by age are others"
        assert len(programs) == self._num_programs <= self._max_programs, "programs are miscounted"
        assert sum(map(len, holders.values())) == self._num_keys <= self._max_keys, "keys are miscounted"
        assert holders == {key: set(held) for key, held in self._holders.items()}, (
            "holders of keys are miscounted"
        )
        depths = {key: depth for program in programs for depth, key in enumerate(program.keys)}
        assert depths == self._depths, "keys are in wrong places"
        shared = sum(len(held) > 1 for held in holders.values())
        assert shared == self.num_shared_keys, "shared keys are miscounted"
        for owner in self._owners.values():
            assert owner.num_keys == sum(len(p.keys) for p in owner.programs.values()), (
                "an owner is miscounted"
            )

    def _insert(self, program_id: ProgramId, program: Program) -> None:
        owner = self._owners.setdefault(program_id.owner, _Owner())
        owner.programs[program_id.program] = program
        self._by_age[program] = None
        self._num_programs += 1

    def _first_unshared(self, program: Program) -> int:
        own = 1 if self.knows(program) else 0
        return bisect_left(program.keys, True, key=lambda key: self.num_holders(key) <= own)

    def _set_keys(self, owner: _Owner, program: Program, keys: tuple[bytes, ...]) -> tuple[bytes, ...]:
        """What nobody has any more."""
        old = program.keys
        same = num_shared(old, keys)
        left = []
        for key in old[same:]:
            held = self._holders[key]
            del held[program]
            self.num_shared_keys -= len(held) == 1
            if not held:
                del self._holders[key], self._depths[key]
                left.append(key)
        for depth in range(same, len(keys)):
            held = self._holders.setdefault(keys[depth], {})
            self._depths[keys[depth]] = depth
            held[program] = None
            self.num_shared_keys += len(held) == 2
        program.keys = keys
        owner.num_keys += len(keys) - len(old)
        self._num_keys += len(keys) - len(old)
        for watcher in self._watchers:
            watcher.lost(program, old[same:])
            watcher.got(program, keys[same:])
        return tuple(left)

    def _shrink(self) -> list[Program]:
        """The programs that had to go; what they alone had is of no use, and stays until it is evicted."""
        gone = []
        while self._num_programs > self._max_programs:
            gone.append(self._drop(max(self._owners.values(), key=lambda owner: len(owner.programs))))
        while self._num_keys > self._max_keys:
            gone.append(self._drop(max(self._owners.values(), key=lambda owner: owner.num_keys)))
        return gone

    def _drop(self, owner: _Owner) -> Program:
        program = next(iter(owner.programs.values()))
        self.forget(program)
        return program
