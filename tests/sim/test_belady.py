"""Turns are strings here: every letter is a block, and a chain's blocks are told apart by all letters before them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from braid.core.program import ProgramRef
from braid.sched.config import SchedulerConfig
from braid.sched.event_log import EventLines, Recorder, head
from braid.sched.observer import Origins, TurnStart, TurnStop
from braid.sim.belady import BlockTree, LogError, TurnLog, belady, logged, lru, read_logs, regrets, reloaded
from braid.sim.executor import FixedTime
from braid.sim.run import Arrival, simulate

HEAD = head(1, 4, "lru")


class Writer:
    """Lines of turns that are given by their letters; a block holds one token."""

    def __init__(self) -> None:
        self._lines = EventLines(lambda program: "p", num_blocks=100)
        self.lines: list[dict[str, Any]] = [HEAD]
        self._num = 0

    def start(
        self, letters: str, found: int = 0, *, again: int | None = None, origins: Origins | None = None
    ) -> int:
        number = self._num if again is None else again
        self._num += again is None
        known = Origins() if origins is None else origins
        turn = TurnStart(0.0, number, None, None, len(letters), keys(letters), found, known, 0.0, False, 0)
        self.lines.append(self._lines.started(turn))
        return number

    def stop(self, number: int, letters: str) -> None:
        self.lines.append(self._lines.stopped(TurnStop(0.0, number, None, 0, keys(letters), "stop")))

    def log(self) -> TurnLog:
        (log,) = read_logs(self.lines)
        return log


def keys(letters: str) -> list[bytes]:
    return [letters[: end + 1].encode() for end in range(len(letters))]


def one_by_one(*turns: str) -> TurnLog:
    """Every turn starts and stops before the next starts, and answers nothing."""
    writer = Writer()
    for letters in turns:
        writer.stop(writer.start(letters), letters)
    return writer.log()


def hits(log: TurnLog, num_blocks: int) -> tuple[int, int]:
    return lru(log, num_blocks).found, belady(log, num_blocks).found


def test_a_cut_divides_a_run_and_keeps_its_end() -> None:
    tree = BlockTree()
    whole = tree.add(0, 5)
    front = tree.cut(whole, 2)
    assert [tree.length(run) for run in tree.path(whole)] == [2, 3]
    assert tree.path(front) == [front]
    assert tree.cut(whole, 2) == front
    assert tree.cut(whole, 0) == 0
    assert tree.cut(whole, 9) == whole


def test_blocks_are_told_apart_by_where_they_stand() -> None:
    log = one_by_one("abc", "abd", "xbc")
    assert hits(log, 100) == (2, 2)


def test_a_loop_that_does_not_fit() -> None:
    """LRU finds nothing of three programs that take turns in two places; Belady always keeps the one that is next."""
    log = one_by_one(*"abcabc")
    assert hits(log, 2) == (0, 2)
    assert hits(log, 3) == (3, 3)
    assert hits(log, 1) == (0, 0), "who runs needs the place"


def test_the_end_of_a_chain_goes_first() -> None:
    assert hits(one_by_one("abcd", "x", "abcd"), 4) == (3, 3)


def test_what_runs_takes_room() -> None:
    """The first turn runs all the time: of the pool's blocks two are not there for the others."""
    writer = Writer()
    long = writer.start("yz")
    for letters in ("a", "b", "a"):
        writer.stop(writer.start(letters), letters)
    writer.stop(long, "yz")
    log = writer.log()
    assert hits(log, 4) == (1, 1)
    assert hits(log, 3) == (0, 0)
    assert hits(log, 1) == (0, 0)


def test_an_answer_is_there_for_the_next_turn() -> None:
    writer = Writer()
    writer.stop(writer.start("ab"), "abcd")
    writer.start("abcde")
    assert hits(writer.log(), 8) == (4, 4)


def test_what_an_aborted_turn_did_not_compute_is_not_there() -> None:
    writer = Writer()
    writer.stop(writer.start("abcd"), "ab")
    writer.stop(writer.start("abcd"), "")
    writer.start("abcd")
    log = writer.log()
    assert hits(log, 8) == (4, 4), "two blocks for each of the later turns"


def test_two_turns_share_what_runs() -> None:
    writer = Writer()
    one, two = writer.start("ab"), writer.start("ab")
    writer.stop(one, "ab")
    writer.stop(two, "ab")
    assert hits(writer.log(), 2) == (2, 2)


def test_a_preempted_turn_starts_again() -> None:
    writer = Writer()
    number = writer.start("ab")
    writer.stop(number, "a")
    writer.stop(writer.start("ab", again=number), "abc")
    log = writer.log()
    assert hits(log, 8) == (1, 1)
    assert lru(log, 8).wanted == 4


def test_what_the_log_itself_found() -> None:
    writer = Writer()
    writer.stop(writer.start("abc"), "abc")
    writer.start("abcd", found=2)
    assert logged(writer.log()) == (7, 2)


def test_what_came_from_below_was_not_on_the_device() -> None:
    writer = Writer()
    writer.stop(writer.start("abcd"), "abcd")
    writer.start("abcde", found=4, origins=Origins(1, host_reload=1, disk_reload=2, compulsory=1))
    log = writer.log()
    assert (logged(log), reloaded(log)) == ((9, 1), (9, 3))
    (row,) = regrets([log], [4])
    assert (row.logged, row.reloaded) == ((9, 1), (9, 3))
    (row,) = regrets([log], [2])
    assert (row.logged, row.reloaded) == (None, None), "the log's pool was of another size"


def subsets(blocks: frozenset[str], num: int) -> Iterator[frozenset[str]]:
    """The largest that have at most ``num`` elements."""
    for chosen in combinations(sorted(blocks), max(0, min(num, len(blocks)))):
        yield frozenset(chosen)


def brute_force(accesses: Sequence[str], num_blocks: int) -> int:
    """The most blocks that can be found, by trying everything. Turns come one by one; a turn's blocks are all there
    while it runs."""
    states = {frozenset[str](): 0}
    for letters in accesses:
        path = frozenset(letters[: end + 1] for end in range(len(letters)))
        after: dict[frozenset[str], int] = {}
        for kept, found in states.items():
            there = 0
            while there < len(letters) and letters[: there + 1] in kept:
                there += 1
            for beside in subsets(kept - path, num_blocks - len(path)):
                for state in subsets(beside | path, num_blocks):
                    after[state] = max(after.get(state, 0), found + there)
        states = after
    return max(states.values())


CHAINS = st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=6)


@given(CHAINS, st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_nothing_is_better_than_belady(turns: list[str], num_blocks: int) -> None:
    assert belady(one_by_one(*turns), num_blocks).found == brute_force(turns, num_blocks)


@given(st.data(), st.integers(0, 12))
@settings(max_examples=100, deadline=None)
def test_lru_is_never_better(data: Any, num_blocks: int) -> None:
    """Turns overlap, answer, are aborted."""
    writer, running = Writer(), dict[int, str]()
    for _ in range(data.draw(st.integers(1, 25))):
        if running and data.draw(st.booleans()):
            number = data.draw(st.sampled_from(sorted(running)))
            letters = running.pop(number) + data.draw(st.text("ab", max_size=2))
            writer.stop(number, letters[: data.draw(st.integers(0, len(letters)))])
        else:
            letters = data.draw(st.text("ab", max_size=5))
            running[writer.start(letters)] = letters
    log = writer.log()
    worse, best, most = (
        rule.found for rule in (lru(log, num_blocks), belady(log, num_blocks), lru(log, 10_000))
    )
    assert worse <= best <= most <= lru(log, num_blocks).wanted


def test_a_simulated_engine_is_between_nothing_and_belady() -> None:
    """The replay of LRU misses only what the engine keeps besides: blocks that are not full, answers under way."""
    recorder = Recorder(8, 50, "lru")
    config = SchedulerConfig(
        num_blocks=50, block_size=8, max_model_len=200, max_num_seqs=4, max_num_batched_tokens=64
    )
    chain: list[Arrival] = []
    for program in range(6):
        prompt, ref = [1] * 16 + [program + 5] * 40, ProgramRef(owner="", program=str(program))
        for turn in range(6):
            after = (len(chain) - 1,) if turn else ()
            reply = [turn + 50] * 8
            chain.append(
                Arrival(program * 3.0, tuple(prompt), 8, 0, after, 2.0 + 3 * (program % 3), reply, ref)
            )
            prompt = [*prompt, *reply, *[program * 10 + turn + 100] * 12]
    report = simulate(chain, config, FixedTime(0.1), observer=recorder)
    (log,) = read_logs(recorder.lines)
    found = logged(log).found
    assert found == report.stats.prefix_hits
    assert 0 < found <= belady(log, 50).found
    assert found == pytest.approx(lru(log, 50).found, rel=0.1)
    assert report.stats.num_preemptions == 0
    (row,) = regrets([log], [])
    assert (row.num_blocks, row.logged, row.best) == (50, logged(log), belady(log, 50))
    assert row.best.found < row.endless.found


def test_every_life_is_a_log_of_its_own() -> None:
    one, two = Writer(), Writer()
    one.start("ab")
    two.start("ab")
    logs = read_logs([*one.lines, *two.lines])
    assert [lru(log, 4).found for log in logs] == [0, 0]


def test_lines_of_dropped_turns_are_counted() -> None:
    writer = Writer()
    writer.stop(writer.start("ab"), "ab")
    writer.start("abc")
    log = read_logs([HEAD, {"event": "dropped", "lines": 2}, writer.lines[3]])[0]
    assert (log.num_dropped, log.num_unknown) == (2, 1)
    assert lru(log, 4) == (3, 0)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([{"event": "start"}], "line 1 does not begin a log"),
        ([{**HEAD, "v": 9}], "line 1 is of version 9"),
        ([{**HEAD, "block_size": 0}], "line 1 has block_size 0"),
        ([HEAD, {"event": "start"}], "line 2 has no 'turn'"),
        ([HEAD, {"event": "stop", "turn": "x", "blocks": 1, "like": None}], "line 2 invalid literal"),
        ([3], "line 1"),
    ],
)
def test_lines_that_are_none(lines: list[Any], words: str) -> None:
    with pytest.raises(LogError, match=words):
        read_logs(lines)
