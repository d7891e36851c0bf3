"""The order in which idle blocks go, against a model that looks at everything."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from braid.policy.agents.plain import LeastRecent
from braid.policy.agents.policy import Rank
from braid.policy.agents.program import Program, ProgramId
from braid.sched.programs import ProgramTable
from braid.sched.ranked import RankedBlocks
from braid.sched.ranks import Ranks


class GivenRanks(LeastRecent):
    """By a table of (protection, value)."""

    is_ranked = True

    def __init__(self) -> None:
        self.of: dict[str, tuple[int, float]] = {}

    def rank(self, program: Program, now: float) -> Rank:
        assert program.id is not None
        protection, value = self.of.get(program.id.program, (0, 0.0))
        return Rank(protection, value, 1.0)


class World:
    """A table, ranks, and idle blocks; a key's block is found by its path."""

    def __init__(self) -> None:
        self.policy = GivenRanks()
        self.table = ProgramTable(1000)
        self.ranks = Ranks(self.policy, self.table)
        self.idle = RankedBlocks(self.table, self.ranks)
        self.blocks: dict[bytes, int] = {}

    def turn(self, name: str, path: str) -> Program:
        program, _ = self.table.meet(ProgramId("o", name), None, 0.0)
        self.table.record(program, chain(path))
        self.ranks.changed(program, 0.0)
        return program

    def rank(self, name: str, protection: int, value: float) -> None:
        self.policy.of[name] = (protection, value)
        program = self.table.get(ProgramId("o", name))
        if program is not None:
            self.ranks.changed(program, 0.0)

    def forget(self, name: str) -> None:
        program = self.table.get(ProgramId("o", name))
        if program is not None:
            self.table.forget(program)
            self.ranks.forget(program)

    def block(self, key: bytes) -> int:
        return self.blocks.setdefault(key, len(self.blocks))

    def release(self, path: str) -> None:
        """Last block first, as the pool does."""
        for key in reversed(chain(path)):
            if self.block(key) not in self.idle:
                self.idle.add(self.block(key), key)

    def pops(self) -> list[str]:
        """The paths of all idle blocks, in the order in which they go."""
        names = {block: key.decode() for key, block in self.blocks.items()}
        return [names[self.idle.pop(0.0)] for _ in range(len(self.idle))]


def chain(path: str) -> list[bytes]:
    """Keys that are the paths to them."""
    return [path[: end + 1].encode() for end in range(len(path))]


def test_the_lowest_goes_first_from_its_end_and_nobody_before_all() -> None:
    world = World()
    world.turn("p", "abc")
    world.turn("q", "xyz")
    for name, value in (("p", 2.0), ("q", 1.0)):
        world.rank(name, 0, value)
    for path in ("abc", "xyz", "nn", "mm"):
        world.release(path)
    assert world.pops() == ["nn", "n", "mm", "m", "xyz", "xy", "x", "abc", "ab", "a"]


def test_protection_counts_before_value() -> None:
    world = World()
    world.turn("p", "a")
    world.turn("q", "x")
    world.rank("p", 1, 0.0)
    world.rank("q", 0, 9.0)
    world.release("a")
    world.release("x")
    assert world.pops() == ["x", "a"]


def test_what_is_shared_goes_with_the_best_who_has_it() -> None:
    world = World()
    for name, path, value in (("p", "abp", 1.0), ("q", "abq", 3.0), ("r", "rr", 2.0)):
        world.turn(name, path)
        world.rank(name, 0, value)
        world.release(path)
    assert world.pops() == ["abp", "rr", "r", "abq", "ab", "a"]


def test_a_rank_that_falls_or_rises_counts_at_once() -> None:
    world = World()
    for name, path in (("p", "ap"), ("q", "aq"), ("r", "r")):
        world.turn(name, path)
        world.release(path)
    world.rank("p", 0, 5.0)
    world.rank("q", 0, 4.0)
    world.rank("r", 0, 1.0)
    world.rank("p", 0, 0.0)
    world.rank("r", 0, 4.5)
    assert world.pops() == ["ap", "aq", "a", "r"]


def test_among_equals_the_one_goes_first_of_which_nothing_was_heard_for_longest() -> None:
    world = World()
    for name in "pqr":
        world.turn(name, name)
        world.release(name)
    world.turn("p", "p")
    assert world.pops() == ["q", "r", "p"]


def test_the_demoted_go_first_and_those_of_a_program_that_is_forgotten() -> None:
    world = World()
    world.turn("p", "ab")
    world.turn("q", "xy")
    world.rank("q", 2, 0.0)
    world.release("ab")
    world.release("xy")
    world.release("n")
    world.idle.demote(world.block(b"xy"))
    assert world.idle.pop(0.0) == world.block(b"xy")
    world.forget("p")
    assert world.pops() == ["ab", "a", "n", "x"]


def test_what_is_put_back_is_where_it_was() -> None:
    world = World()
    world.turn("p", "ab")
    for path in ("ab", "m", "n"):
        world.release(path)
    first = [world.idle.pop(0.0) for _ in range(3)]
    for block in reversed(first):
        key = next(key for key, known in world.blocks.items() if known == block)
        world.idle.put_back(block, key)
    world.idle.check_integrity()
    assert world.pops() == ["m", "n", "ab", "a"]


def test_a_block_of_nobody_becomes_a_programs() -> None:
    world = World()
    world.release("ab")
    world.release("n")
    world.turn("p", "ab")
    assert world.pops() == ["n", "ab", "a"]


paths = st.text("ab", min_size=1, max_size=5)
names = st.sampled_from("pqrstu")


def test_the_end_of_a_chain_is_found_again_after_it_was_nearer() -> None:
    world = World()
    world.turn("p", "abcdef")
    for path in ("a", "ab", "abcde"):
        world.idle.add(world.block(path.encode()), path.encode())
    assert [world.idle.pop(0.0) for _ in range(2)] == [world.block(b"abcde"), world.block(b"ab")]
    world.idle.add(world.block(b"abcd"), b"abcd")
    world.idle.check_integrity()
    assert world.pops() == ["abcd", "a"]


class RankedMachine(RuleBasedStateMachine):
    """Programs come, change and go; the model keeps blocks of nobody in a list, and searches all others."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.nobodys: list[bytes] = []
        self.owned: set[bytes] = set()
        self.is_tidy = True
        """Every turn has used the blocks that it could find."""

    def _holders(self, key: bytes) -> list[Program]:
        return list(self.world.table.holders(key))

    def _change(self, before: dict[str, tuple[bytes, ...]]) -> None:
        """Blocks whose last holder has left go to the front, the last of a chain first; found ones leave the list."""
        for keys in before.values():
            for key in keys:
                if key in self.owned and not self._holders(key):
                    self.owned.discard(key)
                    self.nobodys.insert(0, key)
        for key in list(self.nobodys):
            if self._holders(key):
                self.nobodys.remove(key)
                self.owned.add(key)

    def _keys(self, name: str) -> dict[str, tuple[bytes, ...]]:
        program = self.world.table.get(ProgramId("o", name))
        return {} if program is None else {name: program.keys}

    @rule(name=names, path=paths, uses=st.sampled_from([True, True, True, False]))
    def turn(self, name: str, path: str, uses: bool) -> None:
        if uses:
            self.use(path)
        elif any(self.world.block(key) in self.world.idle for key in chain(path)):
            self.is_tidy = False
        before = self._keys(name)
        demoted = set(self.nobodys)
        self.world.turn(name, path)
        gained = set(chain(path)) - set(before.get(name, ()))
        kept = [key for key in self.nobodys if key in demoted - gained]
        self._change(before)
        # Demoted blocks whose key the program had before stay in front.
        for key in kept:
            if key not in self.nobodys:
                self.owned.discard(key)
        fresh = [key for key in self.nobodys if key not in kept]
        self.nobodys = fresh + kept

    @rule(name=names, protection=st.integers(0, 2), value=st.sampled_from([0.0, 1.0, 2.0]))
    def rank(self, name: str, protection: int, value: float) -> None:
        self.world.rank(name, protection, value)

    @rule(name=names)
    def forget(self, name: str) -> None:
        before = self._keys(name)
        kept = list(self.nobodys)
        self.world.forget(name)
        self._change(before)
        self.nobodys = [key for key in self.nobodys if key not in kept] + kept
        self.owned -= set(kept)

    @rule(path=paths)
    def release(self, path: str) -> None:
        for key in reversed(chain(path)):
            if key not in self.owned and key not in self.nobodys:
                if self._holders(key):
                    self.owned.add(key)
                else:
                    self.nobodys.append(key)
        self.world.release(path)

    @rule(path=paths)
    def use(self, path: str) -> None:
        for key in chain(path):
            self.world.idle.discard(self.world.block(key))
            self.owned.discard(key)
            if key in self.nobodys:
                self.nobodys.remove(key)

    @rule(name=names)
    def demote(self, name: str) -> None:
        """What is a program's own goes first, from its end."""
        program = self.world.table.get(ProgramId("o", name))
        own = () if program is None else self.world.table.unshared(program)
        for key in own:
            if key not in self.owned and key not in self.nobodys:
                continue
            self.world.idle.demote(self.world.block(key))
            self.owned.discard(key)
            if key in self.nobodys:
                self.nobodys.remove(key)
            self.nobodys.insert(0, key)

    @precondition(lambda self: self.owned or self.nobodys)
    @rule(count=st.integers(1, 6))
    def evict(self, count: int) -> None:
        for _ in range(min(count, len(self.owned) + len(self.nobodys))):
            if self.nobodys:
                expected = self.nobodys.pop(0)
            else:
                expected = min(self.owned, key=self._goes)
                self.owned.discard(expected)
            assert self.world.idle.pop(0.0) == self.world.block(expected)
            orphans = [key for key in self.owned if key.startswith(expected)]
            assert not (orphans and self.is_tidy), "a block stays whose beginning has gone"

    def _goes(self, key: bytes) -> tuple[object, ...]:
        return max(self.world.ranks.place(program) for program in self._holders(key)), -len(key)

    @invariant()
    def is_whole(self) -> None:
        self.world.idle.check_integrity()
        self.world.table.check_integrity()
        self.world.ranks.check_integrity()
        assert set(self.world.idle) == {self.world.block(key) for key in [*self.owned, *self.nobodys]}


TestRankedMachine = RankedMachine.TestCase
TestRankedMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
