"""Whole replays against the stub server, and where each defect of other tools is tested.

     1  columns read by position           test_readers_burstgpt: test_columns_go_by_name, test_eight_columns
     2  a mode of the generator crashes    here: test_every_mode_runs_from_the_command_line
     3  a filter that filters nothing      test_readers_burstgpt: test_filtered_counts_are_the_files
     4  output lengths lost or clipped     here: test_every_length_is_the_traces
     5  only the first rows are read       test_replay_choose; test_scale: test_rows_without_a_program_are_thinned...
     6  order and rate of sends lost       here: test_requests_are_sent_in_the_order_and_at_the_times_of_the_plan
     7  turns do not wait, ids lost        here: test_a_turn_waits_for_the_answer_before_it_and_the_gap
     8  max_tokens 0                       here: test_no_request_asks_for_nothing
     9  lag relative to the least late     here: test_a_client_that_is_late_throughout_says_so
    10  the clock starts behind a queue    here: test_queueing_is_part_of_the_latency,
                                           test_a_client_that_is_late_throughout_says_so
    11  speed-up squeezes think times      test_scale: test_gaps_between_turns_are_untouched
    12  long prompts slow the client       here: test_long_prompts_are_written_before_the_start
    13  a busy client inflates latencies   here: test_tokens_are_seen_when_they_are_sent_or_the_run_is_invalid;
                                           test_replay_measure: test_reasons_of_the_rows
    14  requests lost without a word       here: test_every_fault_is_an_outcome, test_a_dead_sender_loses_nothing,
                                           test_a_run_that_is_stopped_keeps_what_it_has;
                                           test_replay_measure: test_nothing_is_lost_whatever_came

Nothing here depends on how fast the machine is: what is compared are bounds that hold on any, or two records of the
same thing.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from braid.cli import main
from braid.lab.fit.profile import save_profile
from braid.lab.fit.trace import fit_trace
from braid.lab.measures.measure import measure
from braid.lab.replay import supervise
from braid.lab.replay.asking.target import ServerFacts, Target, probe
from braid.lab.replay.live import NoLive, Reading
from braid.lab.replay.planning.plan import PlanOptions
from braid.lab.replay.record import Run
from braid.lab.replay.run import RunOptions, replay
from braid.lab.replay.stub.server import running
from braid.lab.replay.stub.state import FAULTS, Seen, Stub, StubOptions
from braid.lab.replay.supervise import Stop
from braid.lab.table import Trace, TraceInfo, conform, save

EASY = RunOptions(lag_limit_s=1e6, timeout_s=60.0)
"""No limit: these runs are about other things than the speed of this machine."""
LONG_PROMPT, LONG_ANSWER = 65_536, 30_000
BLOCK = 16


def trace_of(rows: dict[str, list[Any]], **info: Any) -> Trace:
    return Trace(conform(pl.DataFrame(rows, strict=False)), TraceInfo(source="made for a test", **info))


def lone(times: list[float], in_tok: int = 12, out_tok: int = 3) -> Trace:
    """Requests that wait for nothing, each with a prompt of its own length, by which it is known again."""
    lengths = [in_tok + number for number in range(len(times))]
    return trace_of({"t_s": times, "in_tok": lengths, "out_tok": [out_tok] * len(times)})


@dataclass(frozen=True, slots=True)
class Replayed:
    """A run, and what the stub saw of it."""

    run: Run
    log: list[Seen]

    @property
    def frame(self) -> pl.DataFrame:
        return self.run.frame

    def seen_of(self, row: dict[str, Any]) -> Seen:
        """What the stub saw of a planned request; only programs that the trace names send their names.

        A request that met the end of a connection that had carried others is sent once more.
        """
        found = [
            seen
            for seen in self.log
            if seen.program in ("", row["program"]) and seen.prompt_tokens == row["in_tok"]
        ]
        assert all(seen.fault == "reset" for seen in found[:-1])
        return found[-1]


def asked(stub: Stub) -> ServerFacts:
    facts = probe(Target(url=stub.url))
    stub.log.clear()
    return facts


def played(stub: Stub, trace: Trace, plan: PlanOptions | None = None, **options: Any) -> Replayed:
    facts = options.pop("facts", None) or asked(stub)
    options = {"options": EASY, "lead_s": 0.05, **options}
    run = replay(trace, Target(url=stub.url), plan, facts=facts, **options)
    assert sum(run.frame["status"].value_counts()["count"]) == run.frame.height  # whatever happened
    return Replayed(run, list(stub.log))


def agents() -> Trace:
    """Two programs of four turns, lone requests among them, failed rows, one that cannot be sent, and long ones."""
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(("ann", "ben")):
        for turn in range(4):
            blocks = [7, 8, *(100 * number + k for k in range(turn + 1))]
            rows.append(
                {
                    "t_s": 0.05 * number + 0.2 * turn,
                    "program_id": name,
                    "turn": turn,
                    "in_tok": len(blocks) * BLOCK - 3,
                    "out_tok": 5 + turn,
                    "gap_before_s": 0.06 + 0.01 * turn if turn else None,
                    "e2e_s": 0.1,
                    "block_ids": blocks,
                }
            )
    rows += [
        {"t_s": 0.03 * k, "in_tok": 33 + k, "out_tok": 1 + k, "block_ids": [900 + k] * 3} for k in range(12)
    ]
    rows.append({"t_s": 0.1, "in_tok": 20, "out_tok": 0, "status": "failed", "block_ids": [50, 51]})
    rows.append({"t_s": 0.2, "in_tok": 0, "out_tok": 0, "status": "failed"})
    rows.append(
        {"t_s": 0.25, "in_tok": LONG_PROMPT, "out_tok": 2, "block_ids": list(range(10**6, 10**6 + 4096))}
    )
    rows.append({"t_s": 0.3, "in_tok": 10, "out_tok": LONG_ANSWER, "block_ids": [60]})
    columns = {name: [row.get(name) for row in rows] for name in {name for row in rows for name in row}}
    columns["status"] = [row.get("status", "ok") for row in rows]
    return trace_of(columns, block_size=BLOCK)


BODIES: list[os.stat_result] = []
"""``bytes.bin`` of the replay that most tests look at, before its senders started and after they ended."""


@pytest.fixture(scope="module")
def whole() -> Iterator[Replayed]:
    """One replay that most tests look at."""
    play = supervise.play

    def watched(folder: Path, *args: Any, **named: Any) -> supervise.Played:
        BODIES.append((folder / "bytes.bin").stat())
        assert folder.stat().st_mode & 0o777 == 0o700
        found = play(folder, *args, **named)
        BODIES.append((folder / "bytes.bin").stat())
        return found

    with pytest.MonkeyPatch.context() as patch, running(StubOptions(ttft_s=0.01, cache_block=BLOCK)) as stub:
        patch.setattr("braid.lab.replay.run.play", watched)
        yield played(stub, agents())


def test_every_request_is_answered_as_planned(whole: Replayed) -> None:
    frame = whole.frame
    assert frame.filter(pl.col("status") != "ok").select("request", "status", "reason").rows() == []
    assert frame["prompt_tokens"].to_list() == frame["in_tok"].to_list()
    assert frame["completion_tokens"].to_list() == frame["out_tok"].to_list()
    assert frame["chunk_tokens"].list.sum().to_list() == frame["out_tok"].to_list()
    assert dict(whole.run.head.unsendable)["zero_input"] == 1
    assert whole.run.head.problems == ()


def test_every_length_is_the_traces(whole: Replayed) -> None:
    """Defect 4."""
    trace = agents().frame
    for row in whole.frame.rows(named=True):
        seen, source = whole.seen_of(row), trace.row(row["source_row"], named=True)
        assert seen.prompt_tokens == row["in_tok"] == source["in_tok"]
        assert seen.max_tokens == row["out_tok"]
        if source["out_tok"]:
            assert row["out_tok"] == source["out_tok"]
    assert LONG_ANSWER in whole.frame["completion_tokens"]


def test_requests_are_sent_in_the_order_and_at_the_times_of_the_plan(whole: Replayed) -> None:
    """Defect 6: what waits for nothing is scheduled when the plan says; nothing goes before its time, or out of
    order."""
    frame = whole.frame
    free = frame.filter(pl.col("after").list.len() == 0)
    assert free["scheduled_s"].to_numpy() == pytest.approx(free["start_s"].to_numpy(), abs=1e-9)
    assert free["start_s"].max() - free["start_s"].min() == pytest.approx(0.33, abs=1e-9)  # type: ignore[operator]
    assert (frame["sent_s"] >= frame["scheduled_s"]).all()
    by_schedule = frame.sort("scheduled_s", "request")
    assert by_schedule["sent_s"].is_sorted()


def test_a_turn_waits_for_the_answer_before_it_and_the_gap(whole: Replayed) -> None:
    """Defect 7."""
    ends = dict(whole.frame.select("request", "end_s").rows())
    later = whole.frame.filter(pl.col("turn") > 0)
    assert later.height == 6
    for row in later.rows(named=True):
        before = max(ends[number] for number in row["after"])
        assert row["delay_s"] == pytest.approx(0.06 + 0.01 * row["turn"])
        assert row["scheduled_s"] == pytest.approx(before + row["delay_s"], abs=1e-6)
        assert row["sent_s"] >= row["scheduled_s"]
    assert [seen.max_tokens for seen in whole.log if seen.program == "ann"] == [5, 6, 7, 8]
    assert {seen.program for seen in whole.log} == {"", "ann", "ben"}


def test_no_request_asks_for_nothing(whole: Replayed) -> None:
    """Defect 8: the failed row is sent with a length of its like."""
    assert min(seen.max_tokens for seen in whole.log) >= 1
    failed = whole.frame.filter(pl.col("in_tok") == 20)
    assert failed.height == 1
    assert 1 <= failed["out_tok"].item() <= LONG_ANSWER


def test_long_prompts_are_written_before_the_start(whole: Replayed) -> None:
    """Defect 12: the longest prompt is as exact as the others, and was there as bytes before a sender started."""
    before, after = BODIES
    assert before.st_size >= LONG_PROMPT * len(",123")
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    row = whole.frame.filter(pl.col("in_tok") == LONG_PROMPT).row(0, named=True)
    assert (row["prompt_tokens"], row["status"]) == (LONG_PROMPT, "ok")


def test_what_the_trace_shares_is_shared(whole: Replayed) -> None:
    """An endless cache holds of every prompt the full blocks that another one began with."""
    prompts = [
        tuple(row["block_ids"][: row["in_tok"] // BLOCK])
        for row in agents().frame.rows(named=True)
        if row["in_tok"]
    ]
    prefixes = [prompt[: num + 1] for prompt in prompts for num in range(len(prompt))]
    expected = (len(prefixes) - len(set(prefixes))) * BLOCK
    assert expected > 200
    assert whole.frame["cached_tokens"].sum() == expected


def test_the_record_says_what_was_done(whole: Replayed) -> None:
    head = whole.run.head
    assert (head.model, head.endpoint, head.output_enforced, head.history) == (
        "stub",
        "/v1/completions",
        True,
        "recorded",
    )
    assert head.run["form"] == "ids"
    assert head.window_s[1] == pytest.approx(whole.frame["scheduled_s"].max())
    assert "cores" in head.machine
    assert measure(whole.run).conserved


def test_a_client_that_is_late_throughout_says_so() -> None:
    """Defects 9 and 10: the run begins 200 ms before the sender is told so."""
    with running(StubOptions()) as stub:
        done = played(stub, lone([0.0] * 5), lead_s=-0.2, options=RunOptions(lag_limit_s=0.02))
    lag = (done.frame["sent_s"] - done.frame["scheduled_s"]).to_numpy()
    assert lag.min() >= 0.2
    found = measure(done.run)
    assert not found.valid
    assert any("send lag" in reason for reason in found.verdict.reasons)
    assert found.latency["ttft"] is not None
    assert found.latency["ttft"].p50 >= 0.2


def test_queueing_is_part_of_the_latency() -> None:
    """Defect 10: one at a time, 40 ms each, all due at once."""
    with running(StubOptions(concurrency=1, ttft_s=0.04)) as stub:
        done = played(stub, lone([0.0] * 5))
    ttft = np.sort((done.frame["chunk_times_s"].list.first() - done.frame["scheduled_s"]).to_numpy())
    assert (ttft >= 0.04 * np.arange(1, 6) - 0.005).all()


class Nap(NoLive):
    """Stops the senders for a while, once, in the middle of a run."""

    def __init__(self) -> None:
        self.senders: list[Any] = []
        self.napped = False

    def update(self, reading: Reading) -> None:
        if self.napped or not reading.counts["sent"]:
            return
        self.napped = True
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for sender in self.senders:
                os.kill(sender.pid, number)
            time.sleep(0.3 if number is signal.SIGSTOP else 0)


def test_tokens_are_seen_when_they_are_sent_or_the_run_is_invalid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect 13: the client is put to sleep for 300 ms while tokens come; the run says that it cannot be believed."""
    nap = Nap()
    monkeypatch.setattr(supervise, "POLL_S", 0.02)
    begin = supervise.Senders.begin

    def told(self: supervise.Senders, start: float, key: str | None) -> None:
        nap.senders = self._all
        begin(self, start, key)

    monkeypatch.setattr(supervise.Senders, "begin", told)
    with running(StubOptions(tbt_s=0.01)) as stub:
        times = [0.02 * n for n in range(40)]
        done = played(stub, lone(times, out_tok=40), live=nap, options=RunOptions(lag_limit_s=0.05))
    assert nap.napped
    assert not measure(done.run).valid
    gaps = np.diff(done.frame["chunk_times_s"].explode().drop_nulls().sort().to_numpy())
    assert gaps.max() >= 0.25  # no token was seen then, though the server went on


def test_every_fault_is_an_outcome() -> None:
    """Defect 14, and each fault is told apart."""
    shares = {fault: 0.09 for fault in FAULTS if fault != "silence"}
    with running(StubOptions()) as stub:
        facts = asked(stub)
    with running(StubOptions(faults=shares, retry_after_s=9)) as stub:
        done = played(stub, lone([0.002 * n for n in range(50)], out_tok=6), facts=facts)
    expected = {
        "": "ok",
        "429": "refused",
        "503": "refused",
        "500": "error",
        "error_event": "error",
        "html": "rubbish",
        "rubbish": "rubbish",
        "not_http": "rubbish",
        "reset": "cut",
        "cut": "cut",
    }
    for row in done.frame.rows(named=True):
        assert row["status"] == expected[done.seen_of(row).fault], (done.seen_of(row).fault, row["reason"])
        assert (row["reason"] == "") == (row["status"] == "ok")
        assert (row["retry_after_s"] == 9.0) == (row["status"] == "refused")
    counts = Counter(seen.fault for seen in done.log)
    assert set(counts) == set(expected)
    found = measure(done.run)
    assert found.conserved
    assert sum(found.outcomes.values()) == done.frame.height == 50


def test_silence_is_a_time_out() -> None:
    """Defect 14: counted from the scheduled time."""
    with running(StubOptions()) as stub:
        facts = asked(stub)
    with running(StubOptions(faults={"silence": 1.0})) as stub:
        options = RunOptions(lag_limit_s=1e6, timeout_s=0.2)
        done = played(stub, lone([0.0, 0.1]), facts=facts, options=options)
    assert done.frame["status"].to_list() == ["timed_out", "timed_out"]
    assert (done.frame["end_s"] - done.frame["scheduled_s"]).min() >= 0.2  # type: ignore[operator]


def test_a_dead_sender_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect 14: what it told before it died is kept, the rest was not sent."""
    begin = supervise.Senders.begin

    def killed(self: supervise.Senders, start: float, key: str | None) -> None:
        self._all[1].kill()
        self._all[1].wait()
        begin(self, start, key)

    monkeypatch.setattr(supervise.Senders, "begin", killed)
    with running(StubOptions()) as stub:
        options = RunOptions(num_senders=2, lag_limit_s=1e6)
        done = played(stub, lone([0.0] * 9), options=options)
    dead = done.frame.filter(pl.col("group") % 2 == 1)
    assert dead["status"].to_list() == ["unsent"] * 4
    assert set(dead["reason"]) == {"sender died"}
    assert done.frame.filter(pl.col("group") % 2 == 0)["status"].to_list() == ["ok"] * 5
    assert len(done.run.head.problems) == 1
    assert "sender 1 died (SIGKILL)" in done.run.head.problems[0]
    assert not measure(done.run).valid


class Presses(NoLive):
    """Presses the stop switch when two answers are there."""

    def __init__(self, stop: Stop, times: int) -> None:
        self._stop, self._times = stop, times
        self.told: list[str] = []

    def update(self, reading: Reading) -> None:
        if reading.counts["ok"] == 2 and not self._stop.presses:
            for _ in range(self._times):
                self._stop.press()

    def stopping(self, why: str) -> None:
        self.told.append(why)


@pytest.mark.parametrize("presses", [1, 2])
def test_a_run_that_is_stopped_keeps_what_it_has(presses: int, tmp_path: Path) -> None:
    """Defect 14; the second press is for senders that do not listen."""
    stop = Stop()
    live = Presses(stop, presses)
    with running(StubOptions()) as stub:
        done = played(stub, lone([0.0, 0.0, 500.0, 600.0]), live=live, stop=stop)
    assert done.frame["status"].to_list()[2:] == ["unsent", "unsent"]
    assert set(done.frame["reason"][2:]) == {"the run was stopped"}
    assert done.run.head.stopped
    assert done.run.head.problems == ()
    assert live.told[0].startswith("stopping")
    if presses == 1:
        assert done.frame["status"].to_list()[:2] == ["ok", "ok"]
        assert measure(done.run).valid


PLANS = (
    ["--arrivals", "trace"],
    ["--arrivals", "trace", "--turns", "timestamp"],
    ["--arrivals", "rate", "--rate", "5", "--cv", "2"],
    ["--arrivals", "concurrency", "--concurrency", "2"],
    ["--failed", "skip", "--too-long", "cut", "--max-tokens", "100", "--length-factor", "0.5"],
    ["--failed", "cancel", "--max-gap", "0.01", "--programs", "4", "--seed", "3"],
    ["--window", "random", "--span", "0.1"],
)


def test_every_mode_runs_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Defect 2: of the generator, and of the replay's plan."""
    trace, profile, out = tmp_path / "t.parquet", tmp_path / "p.json", tmp_path / "g.parquet"
    save(agents(), trace)
    rng = np.random.default_rng(0)
    save_profile(
        fit_trace(lone(np.cumsum(rng.gamma(0.5, 1.0, 400)).tolist()), candidates=("poisson", "gamma")),
        profile,
    )
    for arrivals in ("chosen", "poisson", "gamma"):
        words = [
            "trace",
            "generate",
            str(profile),
            "--out",
            str(out),
            "--arrivals",
            arrivals,
            "--requests",
            "50",
        ]
        assert main([*words, "--no-failures"]) == 0, arrivals
        assert pl.read_parquet(out).height == 50
    hashes = set()
    for flags in PLANS:
        assert (
            main(["trace", "replay", str(trace), "--plan-only", "--json", str(tmp_path / "j"), *flags]) == 0
        ), flags
        facts = json.loads((tmp_path / "j").read_text())
        assert facts["requests"] > 0
        hashes.add(facts["sha256"])
    assert len(hashes) == len(PLANS)
    assert "sha256" in capsys.readouterr().out
