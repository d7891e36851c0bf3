"""Sweeps against a server that is a formula: no process is started."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from braid.cli.app import main
from braid.core.errors import InvalidParameterError
from braid.core.metrics import SLO
from braid.lab.replay import run as run_module
from braid.lab.replay.asking import target as target_module
from braid.lab.replay.asking.target import ServerFacts, Vocabulary
from braid.lab.replay.live import Live, Reading
from braid.lab.replay.outcome import Outcome, outcome_frame
from braid.lab.replay.planning.plan import PlanOptions, ReplayPlan
from braid.lab.replay.record import Run, RunHead, join, load_run
from braid.lab.replay.supervise import ReplayError, Stop
from braid.lab.sweep.search import Probe, SearchOptions
from braid.lab.sweep.sweep import Sweep, SweepOptions, Watch, reading_of, sweep, wilson
from braid.lab.sweep.words import sentence
from braid.lab.table import Trace, TraceError, TraceInfo, conform, save

Play = Callable[[ReplayPlan, Probe, Live, Stop], Run]
CAPACITY = 6.0
"""Requests per second that the made-up server bears; the trace has 3."""


@pytest.fixture(scope="module")
def trace() -> Trace:
    rng = np.random.default_rng(0)
    at = np.sort(rng.uniform(0, 400, 1200))
    frame = pl.DataFrame(
        {"t_s": at, "in_tok": rng.integers(5, 50, 1200), "out_tok": rng.integers(2, 20, 1200)}
    )
    return Trace(conform(frame), TraceInfo(source="made", format="test"))


OPTIONS = SweepOptions(search=SearchOptions(), slo=SLO(ttft=1.0), warmup_s=5.0, measure_s=60.0)


@pytest.fixture(scope="module")
def play(make_head: Callable[..., RunHead]) -> Callable[..., Play]:
    """A player of a server that keeps TTFT within 1 s for fewer requests the more come per second."""

    def made(lag_at: float = np.inf, gone_at: int = 10**9) -> Play:
        def player(plan: ReplayPlan, probe: Probe, live: Live, stop: Stop) -> Run:
            rng = np.random.default_rng(probe.number)
            rate = plan.num_requests / OPTIONS.span_s
            slow = 1 / (1 + 9 * (CAPACITY / rate) ** 10)
            ttft = np.where(rng.random(plan.num_requests) < slow, 3.0, 0.2)
            lag = 0.5 if rate > lag_at else 0.0
            gone = probe.number >= gone_at
            outcomes = [
                Outcome(
                    request=number, status="unreachable" if gone else "ok", scheduled_s=at, sent_s=at + lag,
                    chunk_times_s=() if gone else (at + late, at + late + 0.1), chunk_tokens=() if gone else (1, 1),
                    end_s=at + late + 0.1, attempts=1,
                )
                for number, (at, late) in enumerate(zip(plan.frame["start_s"], ttft.tolist(), strict=True))
            ]  # fmt: skip
            head = make_head(window_s=(5.0, 65.0), plan_sha256=plan.sha256, label=f"load {probe.load:.3g}")
            return Run(head, join(plan.frame, outcome_frame(outcomes, plan.num_requests, "")))

        return player

    return made


def test_the_limit_of_a_known_server_is_found(trace: Trace, play: Callable[..., Play]) -> None:
    found = sweep(trace, PlanOptions(), OPTIONS, play())
    kind, met, missed = found.answer
    assert kind == "bracketed"
    assert met is not None
    assert missed is not None
    assert met < missed <= met * 1.1
    assert 0.85 * CAPACITY < 3 * met < 1.1 * CAPACITY
    assert sentence(found).startswith("The server keeps TTFT <= 1 s for 90 % of the requests at ")
    assert f"{met:.3g}x the load (" in sentence(found)
    assert f"no longer at {missed:.3g}x" in sentence(found)
    point = found.points[0]
    assert (point.load, point.repeat, point.invalid) == (1.0, 0, "")
    assert point.planned_rate == pytest.approx(3.0, rel=0.25)
    assert point.low is not None
    assert point.attainment is not None
    assert 0 < point.low < point.attainment <= 1


def test_every_replay_has_content_of_its_own_and_repeats_are_nested(
    trace: Trace, play: Callable[..., Play]
) -> None:
    plans: dict[tuple[float, int], ReplayPlan] = {}
    inner = play()

    def player(plan: ReplayPlan, probe: Probe, live: Live, stop: Stop) -> Run:
        plans[probe.load, probe.repeat] = plan
        return inner(plan, probe, live, stop)

    found = sweep(trace, PlanOptions(), OPTIONS, player)
    assert len({plan.options.seed for plan in plans.values()}) == len(plans) == len(found.points) > 5
    same = [
        set(plans[load, 0].frame["program"]) for load in sorted(load for load, repeat in plans if repeat == 0)
    ]
    for lower, higher in pairwise(same):
        assert len(lower - higher) <= 2, "only at the edges of the stretch"


def test_rates(trace: Trace, play: Callable[..., Play]) -> None:
    by_rate = replace(OPTIONS, by="rate", search=SearchOptions(start=2.0))
    found = sweep(trace, PlanOptions(), by_rate, play())
    assert found.answer.kind == "bracketed"
    assert found.answer.met is not None
    assert 0.8 * CAPACITY < found.answer.met < 1.15 * CAPACITY
    assert "programs/s" in sentence(found)
    assert "no more than 18.5 per second" in found.notes[0]


def test_a_late_client_ends_the_search_without_a_verdict_on_the_server(
    trace: Trace, play: Callable[..., Play]
) -> None:
    found = sweep(trace, PlanOptions(), OPTIONS, play(lag_at=4.0))
    kind, met, missed = found.answer
    assert kind == "client_limited"
    assert met is not None
    assert missed is not None
    assert 3 * met < 4.4 < 3.3 * missed
    text = sentence(found)
    assert "every replay was invalid, so its limit is unknown" in text
    assert "replays were invalid and decided nothing" in text
    late = [point for point in found.points if point.invalid]
    assert all("The client was late" in point.invalid for point in late)
    assert reading_of(late[0]).invalid == late[0].invalid


def test_a_server_that_is_gone_decides_nothing(trace: Trace, play: Callable[..., Play]) -> None:
    found = sweep(trace, PlanOptions(), OPTIONS, play(gone_at=1))
    assert len(found.points) == 1
    assert found.answer == ("stopped", 1.0, None)
    assert "could not be reached in replay 2" in found.notes[-1]
    assert "so far: kept at 1x the load" in sentence(found)


def test_what_is_known_is_kept_when_it_ends_early(trace: Trace, play: Callable[..., Play]) -> None:
    inner = play()

    def failing(error: BaseException) -> Play:
        def player(plan: ReplayPlan, probe: Probe, live: Live, stop: Stop) -> Run:
            if probe.number == 2:
                raise error
            return inner(plan, probe, live, stop)

        return player

    for error in (KeyboardInterrupt(), ReplayError("no more ports")):
        found = sweep(trace, PlanOptions(), OPTIONS, failing(error))
        assert len(found.points) == 2
        assert found.answer.kind == "stopped"
    assert "no more ports" in found.notes[-1]
    with pytest.raises(ReplayError, match="never"):
        sweep(trace, PlanOptions(), OPTIONS, lambda *_: (_ for _ in ()).throw(ReplayError("never")))


def test_wrong_sweeps_are_refused(trace: Trace, play: Callable[..., Play]) -> None:
    with pytest.raises(InvalidParameterError, match="needs a limit"):
        SweepOptions(search=SearchOptions(), slo=SLO())
    with pytest.raises(InvalidParameterError, match="measured time above 0"):
        replace(OPTIONS, measure_s=0.0)
    with pytest.raises(TraceError, match=r"have enough requests from .* the first load is 1: change --first"):
        sweep(trace, PlanOptions(), replace(OPTIONS, measure_s=4.0), play())
    with pytest.raises(TraceError, match="lies in 905 s to 965 s, which would be measured: see --start"):
        sweep(trace, PlanOptions(start_s=900.0), OPTIONS, play())
    clockless = replace(trace, frame=trace.frame.with_columns(pl.lit(None, pl.Float64).alias("t_s")))
    with pytest.raises(TraceError, match="no arrival times"):
        sweep(clockless, PlanOptions(), OPTIONS, play())


def reading(elapsed_s: float, failed: int = 0, open_: int = 0, ttft: float | None = None) -> Reading:
    counts = dict.fromkeys(("refused", "error", "timed_out", "cut", "unreachable", "rubbish"), 0)
    recent = np.empty(0) if ttft is None else np.full(50, ttft)
    return Reading(
        elapsed_s=elapsed_s, span_s=65.0, planned=200, counts={**counts, "refused": failed, "open": open_},
        lag_max_s=0.0, recent_ttft_s=recent, silent_s=0.0,
    )  # fmt: skip


class Heard:
    def __init__(self) -> None:
        self.readings, self.words = 0, list[str]()

    def update(self, reading: Reading) -> None:
        self.readings += 1

    def stopping(self, why: str) -> None:
        self.words.append(why)


@pytest.mark.parametrize(
    ("readings", "stops"),
    [
        ([reading(6, failed=41)], True),
        ([reading(6, failed=40)], False),
        ([reading(4, failed=41)], False),
        ([reading(4, failed=20), reading(20, failed=50)], False),
        ([reading(4, failed=20), reading(20, failed=62)], True),
        ([reading(20, open_=100, ttft=1.5)], True),
        ([reading(20, open_=100, ttft=0.5)], False),
        ([reading(20, open_=100)], False),
    ],
)
def test_a_replay_is_stopped_once_its_target_is_out_of_reach(readings: list[Reading], stops: bool) -> None:
    """200 requests, of which 20 may miss: 40 certain ones are enough, those of the warm-up not counted."""
    stop, heard = Stop(), Heard()
    watch = Watch(OPTIONS, 200, stop, heard)
    for one in readings:
        watch.update(one)
        watch.update(one)
    assert heard.readings == 2 * len(readings)
    assert watch.hopeless is stops
    assert stop.presses == int(stops)
    watch.stopping("stopping")
    assert heard.words == ["the target is out of reach: stopping" if stops else "stopping"]


def test_a_hopeless_replay_is_a_miss(trace: Trace, play: Callable[..., Play]) -> None:
    inner = play()

    def player(plan: ReplayPlan, probe: Probe, live: Live, stop: Stop) -> Run:
        run = inner(plan, probe, live, stop)
        if probe.load <= 1:
            return run
        live.update(reading(20, failed=10_000))
        assert stop.presses == 1
        return Run(RunHead(**{**_fields(run.head), "stopped": "interrupted"}), run.frame)

    found = sweep(trace, PlanOptions(), OPTIONS, player)
    assert found.answer.kind == "bracketed"
    assert found.answer.met == 1.0
    assert all(point.hopeless == (point.load > 1) for point in found.points)


def _fields(head: RunHead) -> dict[str, Any]:
    return {name: getattr(head, name) for name in head.__struct_fields__}


def test_wilson() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(30, 30) == pytest.approx((0.8865, 1.0), abs=1e-3)
    assert wilson(45, 50) == pytest.approx((0.7864, 0.9565), abs=1e-3)


def test_the_verb(
    trace: Trace,
    play: Callable[..., Play],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    inner, numbers = play(), iter(range(1000))

    def replay(plan: ReplayPlan, target: object, *, label: str, live: Live, stop: Stop, **_: object) -> Run:
        return inner(plan, Probe(1.0, 0, next(numbers)), live, stop)

    facts = ServerFacts(model="m", max_tokens=4096, server="s", form="ids", vocabulary=Vocabulary((), ()))
    monkeypatch.setattr(run_module, "replay", replay)
    monkeypatch.setattr(target_module, "probe", lambda *_: facts)
    save(trace, tmp_path / "x.parquet")
    words = ["trace", "sweep", str(tmp_path / "x.parquet"), "--warmup", "5", "--measure", "60"]
    words += ["--resolution", "0.5", "--ends", "1"]
    out = tmp_path / "out"
    assert main([*words, "--slo-ttft", "1", "--out", str(out), "--json", str(tmp_path / "s.json")]) == 0
    captured = capsys.readouterr()
    assert "The server keeps TTFT <= 1 s for 90 % of the requests at " in captured.out
    assert "replay 1: 1x the load -> http://127.0.0.1:8000" in captured.err
    told = json.loads((tmp_path / "s.json").read_text())
    assert told == json.loads((out / "sweep.json").read_text())
    assert told["answer"]["kind"] == "bracketed"
    assert len(told["points"]) == len(list(out.glob("replay-*")))
    assert load_run(out / "replay-01").head.label == "load 1"
    page = (out / "page.html").read_text()
    assert page.count("<img") == 1
    assert "<script" not in page
    for wrong, message in (
        ([], "needs a limit"),
        (["--slo-ttft", "1", "--arrivals", "concurrency"], "no load to sweep"),
        (["--slo-ttft", "1", "--span", "9"], "--warmup and --measure"),
        (["--slo-ttft", "1", "--attainment", "2"], "at most 1, got 2"),
    ):
        assert main([*words, *wrong]) == 2
        assert message in capsys.readouterr().err


def test_sentences_of_every_kind(trace: Trace, play: Callable[..., Play]) -> None:
    found: Sweep = sweep(trace, PlanOptions(), replace(OPTIONS, search=SearchOptions(highest=1.0)), play())
    assert "up to the highest load allowed, 1x the load" in sentence(found)
    slow = replace(OPTIONS, slo=SLO(ttft=0.01))
    found = sweep(trace, PlanOptions(), replace(slow, search=SearchOptions(lowest=0.5)), play())
    assert "not even at 0.5x the load" in sentence(found)
    found = sweep(trace, PlanOptions(), replace(OPTIONS, search=SearchOptions(lowest=0.5)), play(lag_at=0.0))
    assert sentence(found).startswith("Nothing is known of TTFT <= 1 s")
