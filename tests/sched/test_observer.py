"""What an observer hears, and what is counted of it. Blocks hold 4 tokens; the pool has 16."""

from __future__ import annotations

from typing import Any

import pytest

from braid.core.program import ProgramRef
from braid.policy.agents.program import Finish, Program, ProgramId
from braid.sched.entry import Entry
from braid.sched.event_log import EventLines, Recorder
from braid.sched.observer import Observers, Origins, TurnStart, TurnStop
from braid.sched.tally import Tally


class Listener:
    num_dropped = 3

    def __init__(self) -> None:
        self.starts: list[TurnStart] = []
        self.stops: list[TurnStop] = []
        self.tales: list[tuple[ProgramId, Finish, float]] = []

    def started(self, turn: TurnStart) -> None:
        self.starts.append(turn)

    def stopped(self, turn: TurnStop) -> None:
        self.stops.append(turn)

    def told(self, program: ProgramId, finish: Finish, now: float) -> None:
        self.tales.append((program, finish, now))


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def crank(make_crank: Any, listener: Listener) -> Any:
    return make_crank(observer=listener, max_model_len=64)


def ref(program: str, parent: str | None = None) -> ProgramRef:
    return ProgramRef(owner="o", program=program, parent=parent)


def turn(
    crank: Any, program: str | None, prompt: Any, *, parent: str | None = None, max_tokens: int = 1
) -> Any:
    own = None if program is None else ref(program, parent)
    request = crank.add(f"{crank.now}", prompt, max_tokens=max_tokens, program=own, arrival_time=crank.now)
    crank.run()
    return request


def test_a_first_turn(crank: Any, listener: Listener) -> None:
    crank.now = 5.0
    turn(crank, "p", range(10), max_tokens=4)
    (start,), (stop,) = listener.starts, listener.stops
    assert start.program == stop.program == ("o", "p")
    assert (start.number, start.num_tokens, len(start.keys), start.num_found) == (0, 10, 2, 0)
    assert start.origins == Origins(compulsory=10)
    assert (start.waited_s, start.is_again, start.parent) == (0.0, False, None)
    assert stop.keys[:2] == start.keys
    assert (stop.num_tokens, len(stop.keys), stop.reason) == (14, 3, "length")


def test_a_later_turn_hits_and_a_child_knows_its_parent(crank: Any, listener: Listener) -> None:
    turn(crank, "p", range(12))
    turn(crank, "p", range(20))
    turn(crank, "child", range(16), parent="p")
    _, later, child = listener.starts
    assert later.origins == Origins(device_hit=12, compulsory=8)
    assert child.parent == ("o", "p")
    assert child.origins == Origins(device_hit=12, compulsory=4)


def test_what_was_evicted_is_recomputed(crank: Any, listener: Listener) -> None:
    turn(crank, "p", range(13))
    turn(crank, None, 63)
    turn(crank, "p", range(21))
    assert [start.origins for start in listener.starts] == [
        Origins(compulsory=13),
        Origins(compulsory=63),
        Origins(recompute=12, compulsory=9),
    ]
    assert [start.num_evicted for start in listener.starts] == [0, 3, 8]


def test_a_preempted_turn_is_recomputed(make_crank: Any, listener: Listener) -> None:
    crank = make_crank(observer=listener, num_blocks=6, max_model_len=24)
    crank.add("one", 8, max_tokens=12)
    crank.add("two", 8, max_tokens=12)
    crank.run()
    lost = [stop for stop in listener.stops if stop.reason == "preempted"]
    again = [start for start in listener.starts if start.is_again]
    assert len(lost) == len(again) == 1
    assert again[0].number == lost[0].number
    computed = again[0].num_tokens - 1
    assert again[0].origins == Origins(recompute=computed - 4 * again[0].num_found)
    stats = crank.scheduler.stats()
    assert stats.tokens_by_origin["compulsory"] == 16
    assert stats.tokens_by_origin["recompute"] == again[0].origins.recompute
    assert stats.turn_preemptions.counts[:2] == (1, 1)


def test_first_and_later_turns_wait_apart(crank: Any) -> None:
    turn(crank, "p", range(10))
    turn(crank, "p", range(10))
    turn(crank, None, range(10))
    stats = crank.scheduler.stats()
    assert sum(stats.ttft_first.counts) == 2
    assert sum(stats.ttft_later.counts) == 1
    assert stats.ttft_later.total == 1.0


def test_the_oldest_newcomer(make_crank: Any) -> None:
    crank = make_crank(max_num_seqs=1)
    crank.add("running", 8, max_tokens=20)
    crank.add("old", 8, arrival_time=0.0)
    crank.now = 2.0
    crank.step()
    crank.now = 7.0
    crank.add("young", 8, arrival_time=7.0)
    crank.step()
    assert crank.scheduler.stats().oldest_newcomer_wait == 7.0
    crank.run()
    assert crank.scheduler.stats().oldest_newcomer_wait == 0.0


def test_what_is_told_and_counted(crank: Any, listener: Listener) -> None:
    turn(crank, "p", range(10))
    crank.scheduler.told(ref("p"), Finish.TOOL, "grep", 3.0)
    turn(crank, "p", range(20))
    stats = crank.scheduler.stats()
    assert listener.tales == [(("o", "p"), Finish.TOOL, 3.0)]
    assert stats.programs_kept["handed over"] == 1
    assert stats.keep_sources["none"] >= 2
    assert stats.agent_log_dropped == 3


def test_aborted_turns_stop_with_what_they_have(crank: Any, listener: Listener) -> None:
    crank.add("waiting", 8)
    crank.scheduler.abort("waiting", 0.0)
    assert not listener.stops
    crank.add("running", 8, max_tokens=20)
    crank.step()
    crank.step()
    crank.scheduler.abort("running", 2.0)
    (stop,) = listener.stops
    assert (stop.reason, len(stop.keys)) == ("abort", 2)


def test_reloads_are_no_device_hits(new_request: Any) -> None:
    tally = Tally(4)
    request = new_request("r", 30)
    entry = Entry(request, Program(None, 0.0), 0, b"", reusable=6, num_host_blocks=1, num_disk_blocks=2)
    assert tally.started(entry, 5) == Origins(8, 4, 8, recompute=4, compulsory=6)
    request.num_preemptions, entry.num_lost = 1, 22
    entry.num_host_blocks, entry.num_disk_blocks = 0, 1
    assert tally.started(entry, 4) == Origins(disk_reload=4, recompute=6)
    assert tally.tokens == {
        "device_hit": 8,
        "host_reload": 4,
        "disk_reload": 12,
        "recompute": 10,
        "compulsory": 6,
    }


def test_what_came_up_and_went_again_is_no_reload(new_request: Any) -> None:
    entry = Entry(new_request("r", 30), Program(None, 0.0), 0, b"", reusable=6)
    entry.count_loaded(2, 1, 2)
    found = {2: (8, 0, 0), 3: (8, 4, 0), 4: (8, 4, 4), 6: (12, 4, 8)}
    for num_found, expected in found.items():
        assert Tally(4).started(entry, num_found)[:3] == expected
    entry.count_loaded(3, 0, 2)
    assert entry.first_loaded == 2, "it came up in two parts"
    assert Tally(4).started(entry, 6)[:3] == (8, 4, 12)
    entry.wait_anew()
    assert Tally(4).started(entry, 6)[:3] == (24, 0, 0)


def test_several_observers_are_one() -> None:
    one, two = Listener(), Listener()
    both = Observers(one, two)
    both.started(TurnStart(0.0, 0, None, None, 1, (), 0, Origins(), 0.0, False, 0))
    both.stopped(TurnStop(1.0, 0, None, 1, (), "stop"))
    both.told(ProgramId("o", "p"), Finish.TEXT, 2.0)
    assert len(one.starts) == len(two.starts) == len(one.stops) == len(two.stops) == len(two.tales) == 1
    assert both.num_dropped == 6


class TestLines:
    def lines(self, crank: Any, recorder: Recorder) -> list[tuple[Any, ...]]:
        turns = [line for line in recorder.lines if "turn" in line]
        return [(line["event"], line["turn"], line["blocks"], line["like"]) for line in turns]

    def test_blocks_are_named_by_who_had_them_first(self, make_crank: Any) -> None:
        recorder = Recorder(4, 16, "lru")
        crank = make_crank(observer=recorder, max_model_len=64)
        turn(crank, "p", range(9), max_tokens=4)
        turn(crank, "q", [*range(4), *range(50, 58)], max_tokens=1)
        turn(crank, "p", range(8), max_tokens=1)
        assert self.lines(crank, recorder) == [
            ("start", 0, 2, None),
            ("stop", 0, 3, [0, 2]),
            ("start", 1, 2, [0, 1]),
            ("stop", 1, 3, [1, 2]),
            ("start", 2, 1, [0, 1]),
            ("stop", 2, 2, [0, 2]),
        ]

    def test_forgetting_begins_at_the_ends(self) -> None:
        lines = EventLines(lambda program: "p", num_blocks=1)
        chain = [bytes([index]) for index in range(20)]
        lines.stopped(TurnStop(0.0, 0, None, 0, chain, "stop"))
        assert lines.stopped(TurnStop(0.0, 1, None, 0, chain, "stop"))["like"] == [0, 16]
        assert lines.stopped(TurnStop(0.0, 2, None, 0, chain[:3], "stop"))["like"] == [0, 3]
        assert len(lines._owners) == 16

    def test_no_content(self, make_crank: Any) -> None:
        recorder = Recorder(4, 16, "lru")
        crank = make_crank(observer=recorder, max_model_len=64)
        turn(crank, "p", range(1000, 1020))
        words = str(recorder.lines)
        assert not any(str(token) in words for token in range(1000, 1020))
        assert "0x" not in words
