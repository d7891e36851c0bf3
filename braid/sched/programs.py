"""What is remembered of programs between their turns: which blocks the latest turn left, and no token."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

MAX_PROGRAMS = 4096


class ProgramId(NamedTuple):
    """Ids are the client's; two owners' equal ids are two programs."""

    owner: str
    program: str


@dataclass(slots=True, eq=False)
class Program:
    """``keys`` are those of the full blocks of its latest finished turn, which had ``num_tokens`` tokens."""

    id: ProgramId
    keys: tuple[bytes, ...] = ()
    num_turns: int = 0
    num_tokens: int = 0
    last_time: float = 0.0


@dataclass(slots=True, eq=False)
class _Owner:
    """The programs of one owner, least recently used first."""

    programs: OrderedDict[str, Program] = field(default_factory=OrderedDict)
    num_keys: int = 0


class ProgramTable:
    """Programs by id, bounded in number and in keys.

    Where it is full, the owner that has most loses its least recently used program: nobody can push others out by
    naming many programs.

    Args:
        max_keys: keys of all programs together.
    """

    def __init__(self, max_keys: int, max_programs: int = MAX_PROGRAMS) -> None:
        self._max_keys, self._max_programs = max_keys, max_programs
        self._owners: dict[str, _Owner] = {}
        self._users: Counter[bytes] = Counter()
        self._num_programs = self._num_keys = 0

    def __len__(self) -> int:
        return self._num_programs

    def get(self, program_id: ProgramId) -> Program | None:
        owner = self._owners.get(program_id.owner)
        return None if owner is None else owner.programs.get(program_id.program)

    def record(self, program_id: ProgramId, keys: Sequence[bytes], num_tokens: int, now: float) -> None:
        """A turn has finished."""
        owner = self._owners.setdefault(program_id.owner, _Owner())
        program = owner.programs.get(program_id.program)
        if program is None:
            program = owner.programs[program_id.program] = Program(program_id)
            self._num_programs += 1
        owner.programs.move_to_end(program_id.program)
        self._set_keys(owner, program, tuple(keys[: self._max_keys]))
        program.num_turns += 1
        program.num_tokens = num_tokens
        program.last_time = now
        self._shrink()

    def forget(self, program_id: ProgramId) -> Program | None:
        """Drop a program; what was known of it."""
        owner = self._owners.get(program_id.owner)
        program = None if owner is None else owner.programs.pop(program_id.program, None)
        if owner is None or program is None:
            return None
        keys = program.keys
        self._set_keys(owner, program, ())
        program.keys = keys
        self._num_programs -= 1
        if not owner.programs:
            del self._owners[program_id.owner]
        return program

    def unshared(self, program: Program) -> tuple[bytes, ...]:
        """The last of its keys, from the first that no other known program has."""
        own = 1 if self.get(program.id) is program else 0
        return program.keys[bisect_left(program.keys, True, key=lambda key: self._users[key] <= own) :]

    def check_integrity(self) -> None:
        """Prove that the counts are those of the entries.

        Raises:
            AssertionError: naming what does not add up; a bug in Braid.
        """
        programs = [program for owner in self._owners.values() for program in owner.programs.values()]
        users = Counter(key for program in programs for key in program.keys)
        assert len(programs) == self._num_programs <= self._max_programs, "programs are miscounted"
        assert users.total() == self._num_keys <= self._max_keys, "keys are miscounted"
        assert users == self._users, "users of keys are miscounted"
        for owner in self._owners.values():
            assert owner.num_keys == sum(len(p.keys) for p in owner.programs.values()), (
                "an owner is miscounted"
            )

    def _set_keys(self, owner: _Owner, program: Program, keys: tuple[bytes, ...]) -> None:
        """Keys form chains, so two of them are equal up to some place and nowhere after it."""
        old = program.keys
        short = min(len(old), len(keys))
        same = bisect_left(range(short), True, key=lambda index: old[index] != keys[index])
        for key in old[same:]:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]
        for key in keys[same:]:
            self._users[key] += 1
        program.keys = keys
        owner.num_keys += len(keys) - len(old)
        self._num_keys += len(keys) - len(old)

    def _shrink(self) -> None:
        while self._num_programs > self._max_programs:
            self._drop(max(self._owners.values(), key=lambda owner: len(owner.programs)))
        while self._num_keys > self._max_keys:
            self._drop(max(self._owners.values(), key=lambda owner: owner.num_keys))

    def _drop(self, owner: _Owner) -> None:
        self.forget(next(iter(owner.programs.values())).id)
